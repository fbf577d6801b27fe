"""A partial result that was damaged or added to: it stops no complete one, and nothing of a user goes with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data.audit import audit
from data.errors import InputError, RunError
from data.publish import prepare_output
from tests.data.publishing import ROWS, expected, settings


def flip(data: Path) -> None:
    content = data.read_bytes()
    data.write_bytes(content[:100] + bytes([content[100] ^ 1]) + content[101:])


DAMAGE: dict[str, Callable[[Path], object]] = {"a bit": flip, "all of it": Path.unlink}


@pytest.fixture(params=["out", "out.jsonl"])
def partial(lab: Callable[..., Any], request: pytest.FixtureRequest) -> Any:
    """A run whose first window is published."""
    made = lab(ROWS)
    made.output = settings(made, path=str(made.root / request.param))
    made.work(made.windows()[0].shards)
    made.publish(partial=True)
    return made


def data_of(made: Any) -> Path:
    return made.target if made.target.suffix else made.target / "part-00000.parquet"


@pytest.mark.parametrize("damage", DAMAGE)
def test_the_complete_result_takes_the_place_of_a_damaged_partial_one(partial: Any, damage: str) -> None:
    DAMAGE[damage](data_of(partial))
    partial.compute()
    assert prepare_output(partial.run, partial.output) is not None
    assert partial.publish().complete
    assert partial.rows() == expected(ROWS)
    assert audit(partial.target).valid


@pytest.mark.parametrize("damage", DAMAGE)
def test_at_the_next_deadline_a_damaged_partial_result_is_made_anew(partial: Any, damage: str) -> None:
    DAMAGE[damage](data_of(partial))
    manifest = partial.publish(partial=True)
    assert not manifest.complete
    assert audit(partial.target).valid
    assert partial.publish(partial=True) == manifest
    partial.compute()
    partial.publish()
    assert partial.rows() == expected(ROWS)


@pytest.mark.parametrize("name", ["notes.txt", ".notes", "part-00007.parquet"])
def test_a_file_of_a_user_beside_a_partial_result_is_named_and_stays(lab: Callable[..., Any], name: str) -> None:
    made = lab(ROWS)
    made.output = settings(made)
    made.work(made.windows()[0].shards)
    made.publish(partial=True)
    (made.target / name).write_text("mine")
    made.compute()
    with pytest.raises((InputError, RunError), match=f"{name}.* move it away"):
        made.publish()
    (made.target / name).rename(made.root / name)
    assert made.publish().complete
    assert (made.root / name).read_text() == "mine"
