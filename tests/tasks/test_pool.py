"""The worker pool over real processes: how work is shared, and to whom a shard goes."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import pytest

from data.errors import RunError
from tasks.endings import WorkerDied
from tests.tasks.conftest import MakePool, work


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


def test_a_shard_that_cannot_be_stored_is_no_fault_of_the_worker(make_pool: MakePool) -> None:
    pool = make_pool(1)
    with pytest.raises(RunError, match="disk full"):
        pool.submit(work(0, "fail")).result(timeout=60)
    assert pool.submit(work(1)).result(timeout=60)["shard"] == "s1"


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


def test_nothing_is_put_beside_a_suspect_either(make_pool: MakePool, events: list[dict[str, Any]]) -> None:
    pool = make_pool(1, depth=3)
    pid = pool.submit(work(0)).result(timeout=60)["pid"]
    suspect = pool.submit(work(1, "die", seconds=1.0), alone=True)
    time.sleep(0.3)  # its worker has it by then
    later = pool.submit(work(2))
    with pytest.raises(WorkerDied):
        suspect.result(timeout=60)
    assert [event["shards"] for event in events if event["event"] == "died"] == [["s1"]]
    assert later.result(timeout=60)["pid"] != pid
