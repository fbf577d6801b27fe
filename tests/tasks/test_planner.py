"""Windows are planned when asked for or ahead, and their shards are with the workers from then on."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import Future
from datetime import datetime
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.attempts import record_attempt
from data.errors import InputError, RunError
from data.ledger import Commit, Ledger
from data.run_folder import RunFolder
from tasks.configuration import load_settings
from tasks.deadline import OutOfTime
from tasks.endings import WorkerDied
from tasks.events import EventLog
from tasks.job import RunOptions, prepare
from tasks.outage import failed
from tasks.pool import WorkerPool
from tasks.progress import Progress
from tasks.run import OpenRun
from tasks.seat import Event
from tests.flows.conftest import MODEL


class Queue:
    """What a pool of workers was given."""

    late = False

    def __init__(self) -> None:
        self.shards: list[str] = []
        self.begun = 0
        self.futures: list[Future[Event]] = []

    def begin(self) -> None:
        self.begun += 1

    def submit(self, shard: dict[str, Any], *, first: bool = False, alone: bool = False) -> Future[Event]:  # noqa: ARG002
        place = 0 if first else len(self.shards)
        self.shards.insert(place, shard["id"])
        self.futures.insert(place, Future())
        return self.futures[place]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """700 prompts of 100 ids each."""
    rows = [{"ids": [5 + (row * 31 + place * 7) % 300 for place in range(100)]} for row in range(700)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "in.parquet")
    return tmp_path / "in.parquet"


def opened(source: Path, deadline: str | None = None, priority: str | None = None) -> tuple[OpenRun, Queue]:
    given: dict[str, dict[str, Any]] = {
        "input": {"path": str(source)},
        "output": {"path": str(source.parent / "out")},
        "job": {"prompt_ids": "ids"},
        "model": {"path": str(MODEL)},
        "schedule": {"deadline": deadline, "priority": priority},
    }
    job = prepare(load_settings(None, given, ()), RunOptions(), datetime.now(), "overnight infer")
    folder = RunFolder.create(job.run_path, job.identity)
    events, queue = EventLog(folder.events), Queue()
    pool = cast(WorkerPool, queue)
    return OpenRun(job, folder, Ledger(folder), events, Progress(), pool, None, 0.0), queue


def told(run: OpenRun) -> list[str]:
    return [json.loads(line)["event"] for line in run.folder.events.read_text().splitlines()]


def test_a_window_planned_ahead_is_with_the_workers_before_it_is_asked_for(source: Path) -> None:
    run, queue = opened(source)
    run.planner.plan_ahead()
    assert told(run) == ["planned"]
    (window,) = run.windows
    assert queue.shards == [shard.id for shard in window.shards]
    assert len(queue.shards) > 1
    assert not run.planner.ended, "nobody has asked for the last window yet"
    assert run.planner.next() is window
    assert run.planner.ended
    assert told(run) == ["planned"]


def test_a_window_is_the_same_whenever_it_is_planned(source: Path) -> None:
    run, queue = opened(source)
    run.planner.plan_ahead()
    ahead = run.planner.next()
    shutil.rmtree(run.folder.path)
    asked, other = opened(source)
    assert asked.planner.next() == ahead
    assert other.shards == queue.shards


def test_what_is_wrong_is_raised_where_the_window_is_asked_for(source: Path) -> None:
    damaged = bytearray(source.read_bytes())
    damaged[100:2000] = bytes(1900)
    source.write_bytes(damaged)
    run, queue = opened(source)
    run.planner.plan_ahead()
    assert not run.planner.ended
    with pytest.raises(
        InputError, match=r"in\.parquet is not a whole Parquet file: .*; write or copy it again"
    ) as caught:
        run.planner.next()
    report = failed(run, caught.value, ours=True)
    assert (report.state, report.message) == ("failed", str(caught.value))
    assert queue.shards == []
    assert not list(run.folder.plan.glob("*.json"))


def test_a_plan_keeps_its_order_and_the_user_is_told(source: Path) -> None:
    run, _ = opened(source)
    window = run.planner.next()
    again, _ = opened(source, priority="ids | length")
    assert again.folder.path == run.folder.path, "the priority is no part of the run's id"
    assert again.planner.next() == window
    assert told(again) == ["planned", "planned", "warning"]
    assert "--fresh plans it anew" in again.folder.events.read_text()
    shutil.rmtree(run.folder.path)
    ordered, _ = opened(source, priority="-(ids | first) if ids | first > 100 else 'low'")
    assert ordered.planner.next() != window
    message = ordered.folder.events.read_text()
    assert "rows without a number for schedule.priority" in message
    assert "--fresh" not in message


def test_the_deadline_ends_planning_and_keeps_what_is_planned(source: Path) -> None:
    run, queue = opened(source, "1s")  # sooner than a result can be published
    run.planner.plan_ahead()
    assert run.planner.next() is None
    assert run.planner.ended
    assert run.late
    assert run.partial
    assert not list(run.folder.plan.glob("*.json"))
    before, _ = opened(source, "1h")
    window = before.planner.next()
    assert before.deadline is not None
    assert before.deadline.rows == 700
    assert not before.late
    again, queue = opened(source, "1s")
    assert again.planner.next() is None
    assert again.windows == [window]
    assert queue.shards == []


def test_the_deadline_ends_the_planning_of_a_window(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, _ = opened(source, "1h")
    assert run.deadline is not None
    monkeypatch.setattr(type(run.deadline), "check", check := Checks())
    assert run.planner.next() is None
    assert check.count == 2, "once before, once while the rows are read"
    assert run.deadline.rows == 700
    assert run.planner.ended
    assert not list(run.folder.plan.glob("*.json"))
    assert not list(run.folder.tmp.iterdir())


class Checks:
    """In place of `Deadline.check`: the deadline comes at the second look."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1
        if self.count == 2:
            raise OutOfTime("the deadline came first")


def test_a_shard_is_asked_for_once_and_handed_out_anew_after_its_worker_died(source: Path) -> None:
    run, queue = opened(source)
    shards = run.planner.next().shards
    lot = shards[:2]

    def answers() -> list[Future[Event]]:
        futures = run.answers(lot)
        return [futures[shard.id] for shard in lot if shard.id in futures]

    assert answers() == queue.futures[:2]
    queue.futures[0].set_exception(WorkerDied("worker 0 ended"))
    assert answers() == queue.futures[:2], "before all others"
    assert queue.shards == [shard.id for shard in (*lot, *shards)]
    (run.folder.commits / f"{lot[0].id}.json").write_bytes(commit(lot[0].id))
    assert answers() == queue.futures[:1]
    assert queue.shards[0] == lot[1].id


def commit(shard: str) -> bytes:
    return Commit(shard, "0" * 64, 1, 1, 0, {"input": 1, "output": 1}, 1.0, 0, 1).to_bytes()


def test_workers_begin_with_the_first_shard_or_while_much_is_planned(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, queue = opened(source)
    run.planner.plan_ahead()
    assert queue.begun == 0, "handing out a shard is enough"
    shutil.rmtree(run.folder.path)
    monkeypatch.setattr("tasks.planner.EAGER_ROWS", 500)
    run, queue = opened(source)
    run.planner.plan_ahead()
    assert queue.begun > 0


def test_errors_over_the_budget_are_refused_unless_something_is_computed(source: Path) -> None:
    rows = pq.read_table(source).to_pylist()
    pq.write_table(pa.Table.from_pylist([*rows, *[{"ids": None}] * 300]), source)
    for _ in range(2):  # planned, and loaded
        run, queue = opened(source)
        run.planner.plan_ahead()
        with pytest.raises(RunError, match=r"300 of 1,000 rows cannot be asked \(bad_prompt_ids 300\).*budget=0\.3 "):
            run.planner.next()
        assert (queue.shards, queue.begun) == ([], 0)
    record_attempt(run.folder, run.windows[0].shards[0].id, 0)
    run, queue = opened(source)
    assert run.planner.next() is not None
    assert queue.shards
    assert "300 of 1,000 rows cannot be asked" in run.folder.events.read_text()
