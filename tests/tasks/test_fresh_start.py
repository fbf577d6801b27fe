"""A flow run that is to start afresh does so once, however often it is tried and whatever came between."""

from __future__ import annotations

import secrets
from dataclasses import replace
from pathlib import Path

import pytest

from data.errors import Held
from data.lock import locked
from tasks.job import Job, prepare
from tasks.run import opened
from tests.tasks.test_places import job


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def attempt(place: Path, flow_run: str | None, *, fresh: bool = True) -> Job:
    made = job(place, run_dir=place / "run")
    options = replace(made.options, fresh=fresh, flow_run=flow_run)
    return prepare(made.settings, options, made.day, "prefect flow-run retry")


def start(place: Path, flow_run: str | None, *, fresh: bool = True) -> str:
    """Open the run as a flow run does; returns what tells its ledger from those that were set aside."""
    with opened(attempt(place, flow_run, fresh=fresh)) as run:
        mark = run.folder.path / "mark"
        if not mark.exists():
            mark.write_text(secrets.token_hex(8))
        return mark.read_text()


def test_a_retry_starts_afresh_if_its_first_attempt_was_refused_and_else_goes_on(tmp_path: Path) -> None:
    before = start(tmp_path, None, fresh=False)
    with locked(tmp_path / "run" / "lock", "the run"), pytest.raises(Held):
        start(tmp_path, "first")
    first = start(tmp_path, "first")
    assert first != before
    assert start(tmp_path, "first") == first, "a retry goes on with what the attempt before has begun"
    assert start(tmp_path, None, fresh=False) == first


def test_each_flow_run_has_a_fresh_start_of_its_own_and_a_late_retry_undoes_none(tmp_path: Path) -> None:
    first = start(tmp_path, "first")
    second = start(tmp_path, "second")
    assert second != first
    assert start(tmp_path, "first") == second
    assert start(tmp_path, None) != second, "a command that asks for it has no attempts before"
