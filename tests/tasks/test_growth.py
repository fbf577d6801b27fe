"""Which processes are replaced for their memory: those that go on growing, never those that come to rest."""

from __future__ import annotations

import random
from itertools import accumulate

import pytest

from tasks.growth import SHARDS, Growth, growth_limit

MB = 1 << 20


def when(values: list[int], limit: int = 100 * MB, base: int = 1000 * MB) -> int | None:
    """After which shard the process is to be replaced."""
    growth = Growth(limit)
    growth.begin(base)
    for number, value in enumerate(values):
        growth.note(value)
        if growth.endless:
            return number
    return None


def test_a_leak_is_found_once_it_is_more_than_its_share() -> None:
    assert when([(1000 + 2 * shard) * MB for shard in range(100)]) == 51
    assert when([(1000 + 90 * shard) * MB for shard in range(100)]) == SHARDS - 1
    numbers = random.Random(0)
    assert when([int((1000 + 10 * shard + numbers.gauss(0, 20)) * MB) for shard in range(100)]) is not None


@pytest.mark.parametrize("seed", range(50))
def test_a_process_that_comes_to_rest_is_kept(seed: int) -> None:
    """It takes what it needs in its first shards, far more than its share, and moves about from then on."""
    numbers = random.Random(seed)
    rise = list(accumulate([0.2] * 5))
    level = [1.0 + numbers.gauss(0, 0.02) for _ in range(500)]
    assert when([int((1000 + 4000 * part) * MB) for part in rise + level]) is None


def test_a_large_step_is_kept() -> None:
    """An allocator takes a large piece at a time."""
    assert when([(1000 + 500 * (shard // 10)) * MB for shard in range(40)]) is None
    assert when([(1000 + 500 * (shard // 3)) * MB for shard in range(40)]) is not None


def test_a_new_process_begins_anew_and_one_that_is_gone_tells_nothing() -> None:
    growth = Growth(1)
    growth.begin(0)
    for value in range(SHARDS):
        growth.note(10 + value)
    assert growth.endless
    growth.begin(100)
    growth.note(None)
    assert not growth.endless
    assert growth.grown == 0


def test_each_worker_has_its_share_of_the_machine() -> None:
    assert growth_limit(256 << 30, 8) == 8 << 30
