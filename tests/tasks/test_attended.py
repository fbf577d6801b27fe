"""Every way in which a process can fail to go on ends the wait for it, and is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from data.errors import RunError
from engine.supervisor import Child
from tasks.attended import attend

ROOT = Path(__file__).parents[2]


def attended(names: list[str], folder: Path, patience: float) -> list[dict[str, Any]]:
    heard: list[dict[str, Any]] = []

    def take(message: dict[str, Any]) -> bool:
        heard.append(message)
        return "done" in message

    children = [
        Child(f"tests.tasks.odd_processes:{name}", environment={"PYTHONPATH": str(ROOT)}, log=folder / name, beats=True)
        for name in names
    ]
    try:
        attend(children, patience, take)
    finally:
        for child in children:
            child.end()
    return heard


def test_all_are_heard_until_they_are_done(tmp_path: Path) -> None:
    assert len(attended(["diligent", "diligent"], tmp_path, 60.0)) == 14


def test_a_start_may_take_longer_than_a_step(tmp_path: Path) -> None:
    assert len(attended(["loading"], tmp_path, 2.0)) == 2


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("dying", "has ended \\(exit status 1\\): the disk is on fire; see .*dying"),
        ("stopped", "was stopped or hangs"),
        ("idle", "made no progress for workers.stall_timeout = 8 seconds"),
    ],
)
def test_one_that_does_not_go_on_is_named(
    name: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.attended.SILENCE_SECONDS", 6.0)
    with pytest.raises(RunError, match=said):
        attended([name], tmp_path, 8.0)
