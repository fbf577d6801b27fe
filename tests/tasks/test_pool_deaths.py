"""Workers of the pool that die, hang, fall silent or grow: they are replaced, and nothing else is."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from engine.supervisor import Child
from tasks.endings import WorkerDied
from tasks.growth import SHARDS
from tasks.pool import WorkerPool
from tests.tasks.conftest import ROOT, MakePool, wait_until, work


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


def test_deaths_of_suspects_do_not_end_a_worker_for_good(make_pool: MakePool) -> None:
    pool = make_pool(1, retries=1)
    for number in range(4):
        with pytest.raises(WorkerDied):
            pool.submit(work(number, "die"), alone=True).result(timeout=100)
    assert pool.submit(work(9)).result(timeout=60)["shard"] == "s9"


@pytest.mark.parametrize("depth", [1, 3])
def test_a_worker_whose_memory_grows_without_end_is_replaced_between_two_shards(
    make_pool: MakePool, events: list[dict[str, Any]], depth: int
) -> None:
    """Once it holds none: those that it has by then are finished."""
    pool = make_pool(1, growth=8 << 20, depth=depth)
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


def test_a_worker_that_cannot_be_started_does_not_end_the_others(tmp_path: Path) -> None:
    def start(index: int) -> Child:
        if index == 1:
            raise OSError(24, "Too many open files")
        name = "tests.tasks.obedient_worker:main"
        return Child(name, environment={"PYTHONPATH": str(ROOT)}, log=tmp_path / f"{index}.log", beats=True)

    pool = WorkerPool(2, 1, start, stall_timeout=60, retries=1, on_event=[].append)
    assert [pool.submit(work(n)).result(timeout=60)["worker"] for n in range(3)] == [0, 0, 0]
    pool.close()
