"""Folding and cutting against plain Python."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.folding import (
    DEPTHS,
    MAX_SEQUENCES,
    MIN_SEQUENCES,
    MIN_SHARDS,
    cut,
    group,
    join_hashes,
    order_by_prefix,
    prefix_hashes,
)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=60))
def test_grouping_numbers_keys_by_first_appearance(pairs: list[tuple[int, int]]) -> None:
    groups = group(np.array(pairs, np.uint64).reshape(-1, 2))
    order = list(dict.fromkeys(pairs))
    assert groups.first.tolist() == [pairs.index(pair) for pair in order]
    assert groups.inverse.tolist() == [order.index(pair) for pair in pairs]
    assert groups.rank.tolist() == [pairs[:position].count(pair) for position, pair in enumerate(pairs)]
    assert groups.sizes.tolist() == [pairs.count(pair) for pair in order]


@given(st.integers(0, 400), st.integers(1, 5000), st.randoms(use_true_random=False))
def test_cut_covers_all_sequences_within_the_bounds(count: int, target: int, random: object) -> None:
    cost = np.array([random.randint(1, 300) for _ in range(count)], np.int64)  # type: ignore[attr-defined]
    ranges = cut(cost, target)
    assert [start for start, _ in ranges] == [0, *[stop for _, stop in ranges[:-1]]][: len(ranges)]
    assert (ranges[-1][1] if ranges else 0) == count
    sizes = [stop - start for start, stop in ranges]
    assert all(MIN_SEQUENCES <= size <= MAX_SEQUENCES for size in sizes) or len(sizes) == 1
    if count >= MIN_SHARDS * MIN_SEQUENCES:
        assert len(sizes) >= MIN_SHARDS


@pytest.mark.parametrize("count", [8193, 50_000, MAX_SEQUENCES * 20])
@pytest.mark.parametrize("heavy", [False, True])
def test_cut_never_exceeds_the_largest_shard(count: int, heavy: bool) -> None:
    cost = np.ones(count, np.int64)
    if heavy:
        cost[: count // 2] = 10_000
    sizes = [stop - start for start, stop in cut(cost, 10**12)]
    assert sum(sizes) == count
    assert max(sizes) <= MAX_SEQUENCES
    assert min(sizes) >= MIN_SEQUENCES


def test_shards_cost_about_the_same() -> None:
    cost = np.random.default_rng(0).integers(50, 1000, 20_000)
    costs = [int(cost[start:stop].sum()) for start, stop in cut(cost, 100_000)]  # too few sequences each for a tail
    assert len(costs) == -(-int(cost.sum()) // 100_000)
    assert max(costs) - min(costs) <= 2000


@settings(max_examples=30)
@given(st.lists(st.lists(st.integers(0, 2**32 - 1), max_size=40), min_size=1, max_size=20))
def test_prefix_hashes_depend_on_the_prefix_alone(rows: list[list[int]]) -> None:
    flat = np.array([token for row in rows for token in row], np.uint32)
    hashes = prefix_hashes(flat, np.array([len(row) for row in rows], np.int64))
    for row, found in zip(rows, hashes, strict=True):
        alone = prefix_hashes(np.array(row, np.uint32), np.array([len(row)], np.int64))
        assert found.tolist() == join_hashes([alone, hashes])[0].tolist()
        head = prefix_hashes(np.array(row[: DEPTHS[0]], np.uint32), np.array([min(len(row), DEPTHS[0])], np.int64))[0]
        assert found[0] == head[0]


def test_hashes_of_short_sequences_are_joined_with_those_of_long_ones() -> None:
    """Chunk by chunk, each as deep as its longest sequence, or all at once: the same."""
    lengths = [5, 32, 33, 3, 200, 700, 1, 3000]
    rows = [np.random.default_rng(length).integers(0, 99, length).astype(np.uint32) for length in lengths]
    parts = [prefix_hashes(row, np.array([len(row)], np.int64)) for row in rows]
    assert [part.shape[1] for part in parts] == [1, 1, 2, 1, 3, 4, 1, 4]
    whole = prefix_hashes(np.concatenate(rows), np.array(lengths, np.int64))
    assert np.array_equal(join_hashes(parts), whole)
    assert join_hashes([]).shape == (0, 1)


def test_sequences_with_a_common_beginning_become_neighbours() -> None:
    random = np.random.default_rng(0)
    documents = random.integers(0, 50_000, (40, 300))
    rows = [np.concatenate([documents[number % 40], random.integers(0, 50_000, 20)]) for number in range(400)]
    flat = np.concatenate(rows).astype(np.uint32)
    hashes = prefix_hashes(flat, np.array([len(row) for row in rows], np.int64))
    order = order_by_prefix(hashes, np.arange(len(rows)))
    assert np.array_equal(order, np.lexsort(hashes.T[::-1])), "by the first beginning, then by the longer ones"
    some = np.arange(0, len(rows), 3)
    assert np.array_equal(order_by_prefix(hashes, some), np.lexsort(hashes[some].T[::-1]))
    followed = [int(left) % 40 == int(right) % 40 for left, right in pairwise(order)]
    assert followed.count(False) == 39


def test_the_last_tenth_of_the_work_is_cut_smaller() -> None:
    cost = np.random.default_rng(0).integers(50, 1000, 20_000)
    ranges = cut(cost, 400_000)
    costs = [int(cost[start:stop].sum()) for start, stop in ranges]
    equal = -(-int(cost.sum()) // 400_000)
    last = -(-equal // 10)
    body, halves, quarters = costs[: equal - last], costs[equal - last : equal], costs[equal:]
    assert len(quarters) == 2 * last
    for part, size in ((body, 1.0), (halves, 0.5), (quarters, 0.25)):
        assert all(abs(found / (cost.sum() / equal) - size) < 0.02 for found in part)
    # Workers that take whole shards from one queue finish nearer to each other than with equal shards.
    even = [int(piece.sum()) for piece in np.array_split(cost, equal)]
    assert all(_spread(costs, workers) < 0.55 * max(body) for workers in (2, 3, 4, 8))
    assert max(_spread(even, workers) for workers in (2, 3, 4, 8)) > 0.9 * max(body)


def _spread(costs: list[int], workers: int) -> int:
    free = [0] * workers
    for cost in costs:
        free[free.index(min(free))] += cost
    return max(free) - min(free)
