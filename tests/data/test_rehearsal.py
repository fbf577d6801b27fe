"""How long publishing takes is measured on the real rows, and nothing of it stays."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from data.errors import RunError
from data.ledger import Ledger
from data.rehearsal import rehearse
from data.settings import InputSettings, OutputSettings

ROWS = [{"id": number, "text": f"text {number}"} for number in range(60)]


@pytest.mark.parametrize("lines", [False, True])
@pytest.mark.parametrize("name", ["out", "out.jsonl", "out.parquet"])
def test_a_row_takes_some_time_and_nothing_is_left(lab: Callable[..., Any], lines: bool, name: str) -> None:
    made = lab([json.dumps(row) for row in ROWS] if lines else ROWS)
    made.output = OutputSettings(path=str(made.root / name))
    windows = made.windows()
    made.work(windows[0].shards[:1])
    (commit,) = Ledger(made.run).commits().values()
    source = InputSettings(path=str(made.source))
    pace = rehearse(made.run, source, made.output, commit)
    assert 0 < pace.row < 1
    assert 0 < pace.shard < 1
    assert not list(made.run.tmp.iterdir())
    assert not made.target.exists()
    made.compute()
    assert made.publish().ok == len(ROWS)


def test_damaged_answers_are_told_and_nothing_is_left(lab: Callable[..., Any]) -> None:
    made = lab(ROWS)
    made.compute()
    commit = next(iter(Ledger(made.run).commits().values()))
    (made.run.shards / f"{commit.sha256}.parquet").write_bytes(b"damaged")
    with pytest.raises(RunError, match="damaged"):
        rehearse(made.run, InputSettings(path=str(made.source)), made.output, commit)
    assert not list(made.run.tmp.iterdir())
