"""How the pool ends, by itself, by its driver or by a deadline: no process and no wait is left behind."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest

from engine.supervisor import Child
from tasks.deadline import FIXED_SECONDS, Deadline, OutOfTime
from tasks.endings import Interrupted, NoWorkers
from tasks.pool import WorkerPool
from tests.tasks.conftest import ROOT, MakePool, work


def seconds_from_now(seconds: float) -> Deadline:
    """A deadline before which work must end in so many seconds."""
    return Deadline(datetime.now(UTC) + timedelta(seconds=seconds + FIXED_SECONDS))


def test_workers_that_refuse_end_the_wait_with_their_reason(make_pool: MakePool) -> None:
    pool = make_pool(2, "refusing")
    with pytest.raises(NoWorkers, match="no such model"):
        pool.submit(work(0)).result(timeout=60)
    assert not pool.open


def test_workers_that_never_come_up_end_the_wait(make_pool: MakePool) -> None:
    with pytest.raises(NoWorkers, match="died repeatedly"):
        make_pool(2, "dying", retries=1).submit(work(0)).result(timeout=60)


def test_closing_leaves_no_process_and_no_open_future(make_pool: MakePool, events: list[dict[str, Any]]) -> None:
    pool = make_pool(2)
    futures = [pool.submit(work(n, seconds=30)) for n in range(5)]
    while sum(event["event"] == "ready" for event in events) < 2:
        time.sleep(0.05)
    pool.close()
    for future in futures:
        with pytest.raises(Interrupted):
            future.result(timeout=1)
    assert not any(psutil.pid_exists(event["pid"]) for event in events if event["event"] == "started")
    with pytest.raises(Interrupted):
        pool.submit(work(9)).result(timeout=1)


def test_draining_finishes_what_is_held_and_nothing_more(make_pool: MakePool, events: list[dict[str, Any]]) -> None:
    pool = make_pool(1)
    first, second = pool.submit(work(0, seconds=1)), pool.submit(work(1))
    while not any(event["event"] == "ready" for event in events):
        time.sleep(0.05)
    time.sleep(0.3)
    pool.close(patience=20)
    assert first.result(timeout=1)["shard"] == "s0"
    with pytest.raises(Interrupted):
        second.result(timeout=1)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("kind", ["started", "ready", "died", "done"])
def test_a_listener_that_fails_ends_the_wait_and_the_workers(tmp_path: Path, kind: str) -> None:
    def full(event: dict[str, Any]) -> None:
        if event["event"] == kind:
            raise OSError(28, "No space left on device")

    def start(index: int) -> Child:
        name = "tests.tasks.obedient_worker:main"
        return Child(name, environment={"PYTHONPATH": str(ROOT)}, log=tmp_path / f"{index}.log", beats=True)

    others = psutil.Process().children(recursive=True)
    pool = WorkerPool(1, 1, start, stall_timeout=60, retries=1, on_event=full)
    futures = [pool.submit(work(0, "die" if kind == "died" else "work")), pool.submit(work(1))]
    ends = [future.exception(timeout=60) for future in futures]
    pool.close()
    assert isinstance(ends[1], NoWorkers)
    assert "No space left on device" in str(ends[1])
    mine = [child for child in psutil.Process().children(recursive=True) if child not in others]
    assert [child for child in mine if "engine.child" in child.cmdline()] == []


def test_a_shard_that_would_be_late_is_not_begun_and_a_smaller_one_is(
    make_pool: MakePool, events: list[dict[str, Any]]
) -> None:
    pool = make_pool(1, deadline=seconds_from_now(40))
    sizes = [1.0, 1000.0, 0.5, 1000.0]  # a second each for the first unit; 1000 would take a quarter of an hour
    futures = [pool.submit(work(n, seconds=size if size < 2 else 0, cost=size)) for n, size in enumerate(sizes)]
    started = time.monotonic()
    assert futures[2].result(timeout=30)["shard"] == "s2"
    for future in (futures[1], futures[3]):
        with pytest.raises(OutOfTime):
            future.result(timeout=10)
    assert time.monotonic() - started < 30, "it is over once nothing can be begun, not at the deadline"
    assert pool.late
    assert [event for event in events if event["event"] == "deadline"] == [
        {"event": "deadline", "given_up": 0, "waiting": 2}
    ]
    with pytest.raises(OutOfTime):
        pool.submit(work(9)).result(timeout=1)


def test_what_is_in_flight_at_the_deadline_is_given_up(make_pool: MakePool, events: list[dict[str, Any]]) -> None:
    now = [0.0]
    pool = make_pool(1, deadline=Deadline(datetime.fromtimestamp(3600, UTC), lambda: now[0]))
    futures = [pool.submit(work(n, "hang", cost=1.0)) for n in range(2)]
    while not any(event["event"] == "ready" for event in events):
        time.sleep(0.05)
    time.sleep(0.3)
    assert not any(future.done() for future in futures)
    now[0] = 3600.0
    for future in futures:
        with pytest.raises(OutOfTime):
            future.result(timeout=10)
    pool.close()
    assert not any(psutil.pid_exists(event["pid"]) for event in events if event["event"] == "started")
    assert not pool.open
    assert events[-2] == {"event": "deadline", "given_up": 1, "waiting": 1}
    assert (events[-1]["event"], events[-1]["shards"]) == ("stopped", ["s0"])


def test_workers_end_with_a_killed_driver(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from engine.supervisor import Child\n"
        "child = Child('tests.tasks.obedient_worker:main', environment={}, log=Path(sys.argv[1]))\n"
        "child.receive(); child.send({'id': 's', 'do': 'hang'}); print(child.pid, flush=True); time.sleep(1000)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", script, str(tmp_path / "log")]
    with subprocess.Popen(command, env=environment, cwd=ROOT, stdout=subprocess.PIPE) as driver:
        assert driver.stdout is not None
        worker = psutil.Process(int(driver.stdout.readline()))
        driver.kill()
    worker.wait(timeout=10)


def test_dismissed_workers_end_while_their_driver_goes_on(make_pool: MakePool, events: list[dict[str, Any]]) -> None:
    pool = make_pool(2)
    assert pool.submit(work(0)).result(timeout=60)
    children = [psutil.Process(event["pid"]) for event in events if event["event"] == "started"]
    started = time.monotonic()
    pool.dismiss()
    assert time.monotonic() - started < 0.05
    assert not pool.open
    with pytest.raises(Interrupted):
        pool.submit(work(1)).result(timeout=10)
    assert psutil.wait_procs(children, timeout=10)[1] == []
    pool.close()
    assert not [event for event in events if event["event"] == "died"]
