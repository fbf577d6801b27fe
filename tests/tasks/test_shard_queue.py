"""The order in which waiting shards are handed out."""

from __future__ import annotations

import math
from concurrent.futures import Future
from typing import Any

from tasks.shard_queue import ShardQueue, Waiting


def shard(name: str, cost: float = 1.0) -> Waiting:
    future: Future[dict[str, Any]] = Future()
    return Waiting({"id": name, "cost": cost}, future)


def taken(queue: ShardQueue, room: float = math.inf) -> list[str]:
    names = []
    while (waiting := queue.take(room)) is not None:
        names.append(waiting.shard["id"])
    return names


def test_shards_come_in_turn_and_those_tried_again_before_them() -> None:
    queue = ShardQueue()
    for name in "abc":
        queue.put(shard(name))
    queue.put(shard("again"), first=True)
    assert taken(queue) == ["again", "a", "b", "c"]


def test_what_does_not_fit_into_the_time_left_is_passed_over() -> None:
    queue = ShardQueue()
    queue.put(shard("large", 9.0))
    queue.put(shard("small", 1.0))
    assert taken(queue, room=5.0) == ["small"]
    assert queue.holds_only_above(5.0)
    assert len(queue) == 1
