"""A worker whose weights change in memory says so, names what it has committed, and blames no shard."""

from __future__ import annotations

from typing import Any

import pytest

from tasks.weights_guard import WEIGHTS_CHANGED, WeightsChanged, WeightsGuard


class Watch:
    def __init__(self, *looks: tuple[bool, bool]) -> None:
        self._looks, self.looked = iter(looks), True

    def intact(self) -> bool:
        self.looked, intact = next(self._looks)
        return intact


class Work:
    survived = 0

    def survive(self) -> None:
        self.survived += 1
        raise OSError("the disk is full")


def test_shards_since_the_last_good_look_are_named_and_those_that_are_held_are_cleared() -> None:
    told: list[dict[str, Any]] = []
    watch: Any = Watch((True, True), (False, True), (True, True), (False, True), (False, True), (True, False))
    guard = WeightsGuard(3, watch, told.append)
    for shard in "abcde":
        guard.look([])
        guard.committed(shard)
    held: Any = [Work(), Work()]
    with pytest.raises(WeightsChanged, match="worker 3"):
        guard.look(held)
    (event,) = told
    assert (event["event"], event["code"], event["shards"]) == ("warning", WEIGHTS_CHANGED, ["c", "d", "e"])
    assert "c, d, e" in event["message"]
    assert [work.survived for work in held] == [1, 1]


def test_without_a_watch_nothing_is_looked_at() -> None:
    guard = WeightsGuard(0, None, lambda event: pytest.fail(str(event)))
    guard.committed("a")
    guard.look([])
