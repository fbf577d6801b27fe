"""What becomes of a run some of whose workers fail their canaries."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from engine.supervisor import Child
from tasks.endings import NoWorkers
from tasks.pool import WorkerPool
from tests.tasks.conftest import ROOT


def pool_of(folder: Path, good: int, bad: int, **variables: str) -> tuple[WorkerPool, list[dict[str, Any]]]:
    """Workers of which the first ones are ready and the others fail their canaries."""
    events: list[dict[str, Any]] = []

    def start(index: int) -> Child:
        first = {"OVERNIGHT_FIRST": "1"} if index < good else {}
        environment = {"PYTHONPATH": str(ROOT), **first, **variables}
        return Child("tests.tasks.obedient_worker:doubting", environment=environment, log=folder / f"{index}.log")

    pool = WorkerPool(good + bad, 1, start, stall_timeout=60, retries=0, on_event=events.append)
    pool.begin()
    return pool, events


def wait_for_refusals(events: list[dict[str, Any]], count: int) -> None:
    deadline = time.monotonic() + 60
    while sum(event["event"] == "refused" for event in events) < count:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_one_of_three_is_done_without(tmp_path: Path) -> None:
    pool, events = pool_of(tmp_path, 2, 1)
    try:
        wait_for_refusals(events, 1)
        assert pool.submit({"id": "a", "do": "work"}).result(60)["event"] == "done"
        assert pool.open
    finally:
        pool.close()


def test_one_that_is_refused_before_any_other_is_ready_ends_nothing(tmp_path: Path) -> None:
    pool, events = pool_of(tmp_path, 2, 1, OVERNIGHT_LATE="3")
    try:
        wait_for_refusals(events, 1)
        assert not any(event["event"] == "ready" for event in events)
        assert pool.submit({"id": "a", "do": "work"}).result(60)["event"] == "done"
    finally:
        pool.close()


@pytest.mark.parametrize(("good", "bad", "certain"), [(1, 2, False), (2, 1, True)])
def test_most_of_them_or_damaged_files_end_the_run(tmp_path: Path, good: int, bad: int, certain: bool) -> None:
    pool, events = pool_of(tmp_path, good, bad, **({"OVERNIGHT_CERTAIN": "1"} if certain else {}))
    try:
        wait_for_refusals(events, bad)
        with pytest.raises(NoWorkers, match="other answers"):
            pool.submit({"id": "a", "do": "work"}).result(60)
    finally:
        pool.close()


def test_a_question_goes_to_another_worker_that_is_ready(tmp_path: Path) -> None:
    pool, events = pool_of(tmp_path, 2, 0)
    try:
        deadline = time.monotonic() + 60
        while sum(event["event"] == "ready" for event in events) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        silent = {"do": "hang"}
        assert pool.ask(silent, besides=0) == 1
        assert pool.ask(silent, besides=1) == 0
    finally:
        pool.close()
