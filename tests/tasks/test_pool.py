"""The worker pool over real processes: work is shared, deaths are survived, nothing is left behind."""

from __future__ import annotations

import ctypes
import math
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest

from data.errors import RunError
from engine.supervisor import Child
from tasks.deadline import FIXED_SECONDS, Deadline, OutOfTime
from tasks.endings import Interrupted, NoWorkers, WorkerDied
from tasks.growth import SHARDS
from tasks.pool import WorkerPool

ROOT = Path(__file__).parent.parent.parent
MakePool = Callable[..., WorkerPool]


@pytest.fixture
def events() -> list[dict[str, Any]]:
    return []


@pytest.fixture
def make_pool(tmp_path: Path, events: list[dict[str, Any]]) -> Iterator[MakePool]:
    pools: list[WorkerPool] = []

    def make(
        size: int = 2,
        target: str = "main",
        stall: float = 60.0,
        retries: int = 2,
        depth: int = 1,
        tokens: float = 0.0,
        deadline: Deadline | None = None,
        growth: float = math.inf,
    ) -> WorkerPool:
        def start(index: int) -> Child:
            name = f"tests.tasks.obedient_worker:{target}"
            return Child(name, environment={"PYTHONPATH": str(ROOT)}, log=tmp_path / f"{index}.log", beats=True)

        pool = WorkerPool(
            size,
            depth,
            start,
            tokens=tokens,
            growth=growth,
            deadline=deadline,
            stall_timeout=stall,
            retries=retries,
            on_event=events.append,
        )
        pools.append(pool)
        return pool

    yield make
    for pool in pools:
        pool.close()


def work(number: int, do: str = "work", **more: Any) -> dict[str, Any]:
    return {"id": f"s{number}", "do": do, **more}


def test_idle_workers_take_the_next_shard(make_pool: MakePool) -> None:
    pool = make_pool(2)
    futures = [pool.submit(work(n, seconds=0.05)) for n in range(20)]
    answers = [future.result(timeout=60) for future in futures]
    assert [answer["shard"] for answer in answers] == [f"s{n}" for n in range(20)]
    assert {answer["worker"] for answer in answers} == {0, 1}


def test_a_slow_shard_does_not_hold_the_others_up(make_pool: MakePool) -> None:
    pool = make_pool(2)
    slow = pool.submit(work(0, seconds=20))
    others = [pool.submit(work(n)) for n in range(1, 10)]
    assert all(future.result(timeout=15) for future in others)
    assert not slow.done()


def test_a_worker_holds_as_many_small_shards_as_its_tokens_allow(
    make_pool: MakePool, events: list[dict[str, Any]]
) -> None:
    pool = make_pool(1, tokens=250.0)
    kinds = ["work", "die", *["work"] * 8]
    futures = [pool.submit(work(n, do, seconds=0.5, cost=100.0)) for n, do in enumerate(kinds)]
    with pytest.raises(WorkerDied):
        futures[1].result(timeout=60)
    assert next(event["shards"] for event in events if event["event"] == "died") == ["s1", "s2", "s3"]


def test_the_first_worker_leaves_the_others_their_share(make_pool: MakePool) -> None:
    pool = make_pool(3, tokens=1e9)
    futures = [pool.submit(work(n, seconds=0.2, cost=1.0)) for n in range(9)]
    counts = Counter(future.result(timeout=60)["worker"] for future in futures)
    assert max(counts.values()) <= 4


def test_a_killed_worker_is_replaced_and_the_rest_goes_on(make_pool: MakePool, events: list[dict[str, Any]]) -> None:
    pool = make_pool(2)
    deadly = pool.submit(work(0, "die"))
    others = [pool.submit(work(n, seconds=0.01)) for n in range(1, 10)]
    with pytest.raises(WorkerDied, match=r"SIGKILL.*about to die"):
        deadly.result(timeout=60)
    assert all(future.result(timeout=60) for future in others)
    pids = {event["pid"] for event in events if event["event"] == "ready"}
    again = [pool.submit(work(n, seconds=0.2)) for n in range(10, 20)]
    assert {future.result(timeout=60)["worker"] for future in again} == {0, 1}
    assert len({event["pid"] for event in events if event["event"] == "ready"} | pids) == 3


def test_a_stalled_worker_is_replaced(make_pool: MakePool) -> None:
    pool = make_pool(1, stall=4.0)
    with pytest.raises(WorkerDied, match="no progress for 4 s"):
        pool.submit(work(0, "hang")).result(timeout=60)
    assert pool.submit(work(1)).result(timeout=60)["shard"] == "s1"


def test_a_shard_that_cannot_be_stored_is_no_fault_of_the_worker(make_pool: MakePool) -> None:
    pool = make_pool(1)
    with pytest.raises(RunError, match="disk full"):
        pool.submit(work(0, "fail")).result(timeout=60)
    assert pool.submit(work(1)).result(timeout=60)["shard"] == "s1"


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


def test_a_listener_that_fails_ends_the_wait_and_the_workers(tmp_path: Path) -> None:
    def full(event: dict[str, Any]) -> None:
        if event["event"] == "ready":
            raise OSError(28, "No space left on device")

    def start(index: int) -> Child:
        name = "tests.tasks.obedient_worker:main"
        return Child(name, environment={"PYTHONPATH": str(ROOT)}, log=tmp_path / f"{index}.log", beats=True)

    others = psutil.Process().children(recursive=True)
    pool = WorkerPool(2, 1, start, stall_timeout=60, retries=1, on_event=full)
    with pytest.raises(NoWorkers, match="pool of workers failed"):
        pool.submit(work(0)).result(timeout=60)
    pool.close()
    mine = [child for child in psutil.Process().children(recursive=True) if child not in others]
    assert [child for child in mine if "engine.child" in child.cmdline()] == []


def test_a_worker_that_cannot_be_started_does_not_end_the_others(tmp_path: Path) -> None:
    def start(index: int) -> Child:
        if index == 1:
            raise OSError(24, "Too many open files")
        name = "tests.tasks.obedient_worker:main"
        return Child(name, environment={"PYTHONPATH": str(ROOT)}, log=tmp_path / f"{index}.log", beats=True)

    pool = WorkerPool(2, 1, start, stall_timeout=60, retries=1, on_event=[].append)
    assert [pool.submit(work(n)).result(timeout=60)["worker"] for n in range(3)] == [0, 0, 0]
    pool.close()


def seconds_from_now(seconds: float) -> Deadline:
    """A deadline before which work must end in so many seconds."""
    return Deadline(datetime.now(UTC) + timedelta(seconds=seconds + FIXED_SECONDS))


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


@pytest.mark.parametrize("do", ["stop", "hold"])
def test_a_worker_that_says_nothing_is_replaced_and_never_used_again(
    make_pool: MakePool, events: list[dict[str, Any]], do: str
) -> None:
    """Found by its silence: progress, which nobody expects before the stall limit, is not waited for."""
    pool = make_pool(1, stall=6.0)
    with pytest.raises(WorkerDied, match="no sign of life for 6 s"):
        pool.submit(work(0, do)).result(timeout=60)
    (first,) = [event["pid"] for event in events if event["event"] == "started"]
    assert not psutil.pid_exists(first)
    assert pool.submit(work(1)).result(timeout=60)["pid"] != first


def test_a_worker_that_is_stopped_without_any_work_is_found(make_pool: MakePool, events: list[dict[str, Any]]) -> None:
    pool = make_pool(1, stall=4.0)
    pid = pool.submit(work(0)).result(timeout=60)["pid"]
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: any(event["event"] == "died" for event in events))
    assert [event["how"] for event in events if event["event"] == "died"] == ["no sign of life for 4 s"]
    assert pool.submit(work(1)).result(timeout=60)["pid"] != pid


def test_an_answer_that_nobody_waits_for_changes_nothing(make_pool: MakePool, events: list[dict[str, Any]]) -> None:
    pool = make_pool(1)
    assert pool.submit(work(0, "twice")).result(timeout=60)["shard"] == "s0"
    assert pool.submit(work(1)).result(timeout=60)["shard"] == "s1"
    assert [event["shard"] for event in events if event["event"] == "done"] == ["s0", "s1"]


def test_a_suspect_has_its_worker_to_itself(make_pool: MakePool, events: list[dict[str, Any]]) -> None:
    pool = make_pool(1, depth=3)
    futures = [pool.submit(work(n, do, seconds=0.3), alone=n == 1) for n, do in enumerate(["work", "die", "work"])]
    with pytest.raises(WorkerDied):
        futures[1].result(timeout=60)
    assert [event["shards"] for event in events if event["event"] == "died"] == [["s1"]]
    assert futures[0].result(timeout=60)
    assert futures[2].result(timeout=60)


def test_deaths_of_suspects_do_not_end_a_worker_for_good(make_pool: MakePool) -> None:
    pool = make_pool(1, retries=1)
    for number in range(4):
        with pytest.raises(WorkerDied):
            pool.submit(work(number, "die"), alone=True).result(timeout=100)
    assert pool.submit(work(9)).result(timeout=60)["shard"] == "s9"


def test_a_worker_whose_memory_grows_without_end_is_replaced_between_two_shards(
    make_pool: MakePool, events: list[dict[str, Any]]
) -> None:
    pool = make_pool(1, growth=8 << 20)
    futures = [pool.submit(work(n, "leak")) for n in range(2 * SHARDS)]
    pids = [future.result(timeout=60)["pid"] for future in futures]
    assert 1 < len(set(pids)) <= 3
    assert not [event for event in events if event["event"] == "died"]
    warned = [event["message"] for event in events if event["event"] == "warning"]
    assert len(warned) == len(set(pids)) - 1
    assert "went on growing" in warned[0]
    assert sum(event["event"] == "replaced" for event in events) == len(warned), "what it was asked goes to others"


def test_a_healthy_worker_is_kept_whatever_it_holds(make_pool: MakePool, events: list[dict[str, Any]]) -> None:
    pool = make_pool(1, growth=8 << 20)
    kinds = ["leak"] * 12 + ["work"] * 3 * SHARDS
    futures = [pool.submit(work(n, do)) for n, do in enumerate(kinds)]
    assert len({future.result(timeout=60)["pid"] for future in futures}) == 1
    assert not [event for event in events if event["event"] == "warning"]


def test_time_in_which_the_driver_did_not_run_is_not_held_against_a_worker(make_pool: MakePool) -> None:
    """The whole of this process sleeps in C, as it would if it were stopped; the worker's messages wait meanwhile."""
    pool = make_pool(1, stall=4.0)
    pid = pool.submit(work(0)).result(timeout=60)["pid"]
    future = pool.submit(work(1, seconds=1.0))
    time.sleep(0.5)
    ctypes.PyDLL(None).sleep(9)
    assert future.result(timeout=60)["pid"] == pid
    assert pool.submit(work(2)).result(timeout=60)["pid"] == pid


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)
