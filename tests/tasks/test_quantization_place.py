"""Where a checkpoint is made and published: what a kill leaves, what is replaced, and what is not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data.errors import Held, InputError
from engine.quantizer_report import REPORT_NAME
from tasks.quantization_place import QuantizationPlace, identity_of

IDENTITY = {"model": "a", "calibration": "b"}


def make(place: QuantizationPlace, content: str) -> None:
    """A candidate as the engine leaves it."""
    place.candidate.mkdir()
    (place.candidate / "config.json").write_text(content)
    (place.candidate / REPORT_NAME).write_text(json.dumps({"layers": []}))


def begin(path: Path, *, fresh: bool = False) -> QuantizationPlace:
    place = QuantizationPlace(path)
    with place.lock():
        place.settle()
        place.begin(IDENTITY, fresh=fresh)
    return place


def content(path: Path) -> str:
    return (path / "config.json").read_text()


def test_a_checkpoint_gets_its_name_at_the_end_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    place = begin(tmp_path / "small")
    make(place, "new")
    assert not place.path.exists()
    place.record({"identity": IDENTITY})
    place.publish()
    assert content(place.path) == "new"
    assert identity_of(place.path) == IDENTITY
    assert [path.name for path in tmp_path.iterdir() if path.name != ".overnight"] == ["small"]
    assert list((tmp_path / ".overnight").iterdir()) == []


def test_another_checkpoint_is_replaced_with_fresh_alone_and_only_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "small"
    path.mkdir()
    (path / "config.json").write_text("old")
    with pytest.raises(
        InputError, match="exists already: name another folder with --output, or replace it with --fresh"
    ):
        begin(path)
    place = begin(path, fresh=True)
    make(place, "new")
    place = begin(path)  # goes on after a kill, without --fresh
    assert content(path) == "old"
    place.publish()
    assert content(path) == "new"


@pytest.mark.parametrize("moved", ["old", "both"])
def test_a_kill_while_one_is_replaced_loses_neither(moved: str, tmp_path: Path) -> None:
    path = tmp_path / "small"
    path.mkdir()
    (path / "config.json").write_text("old")
    place = begin(path, fresh=True)
    make(place, "new")
    path.rename(tmp_path / ".small.replaced")
    if moved == "both":
        place.candidate.rename(path)
    with place.lock():
        place.settle()
        assert content(path) == ("new" if moved == "both" else "old")
        if moved == "both":
            place.finish()
        else:
            place.begin(IDENTITY, fresh=False)
            place.publish()
    assert content(path) == "new"
    assert [entry.name for entry in tmp_path.iterdir() if entry.name != ".overnight"] == ["small"]


def test_a_refused_checkpoint_is_kept_under_another_name_and_is_judged_again(tmp_path: Path) -> None:
    place = begin(tmp_path / "small")
    make(place, "new")
    place.record({"identity": IDENTITY})
    place.refuse()
    assert not place.path.exists()
    assert content(tmp_path / "small.refused") == "new"
    again = begin(tmp_path / "small")
    assert content(again.candidate) == "new"
    again.publish()
    assert [path.name for path in tmp_path.iterdir() if path.name != ".overnight"] == ["small"]


def test_work_of_other_settings_is_not_gone_on_with(tmp_path: Path) -> None:
    place = begin(tmp_path / "small")
    make(place, "half")
    with pytest.raises(InputError, match="begun with another calibration: go on with the same, or drop that work"):
        place.begin(IDENTITY | {"calibration": "c"}, fresh=False)
    place.begin(IDENTITY | {"calibration": "c"}, fresh=True)
    assert not place.candidate.exists()


def test_one_driver_at_a_time(tmp_path: Path) -> None:
    place = QuantizationPlace(tmp_path / "small")
    with place.lock(), pytest.raises(Held, match="is in use by process"), QuantizationPlace(tmp_path / "small").lock():
        pass


@pytest.mark.parametrize("what", ["a file", "a folder of other things", "a link"])
def test_what_is_no_checkpoint_is_not_replaced(what: str, tmp_path: Path) -> None:
    path = tmp_path / "small"
    if what == "a file":
        path.write_text("mine")
    elif what == "a link":
        (tmp_path / "other").mkdir()
        path.symlink_to(tmp_path / "other")
    else:
        path.mkdir()
        (path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="move it away, or name another"):
        begin(path, fresh=True)
