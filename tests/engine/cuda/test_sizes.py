"""Batch sizes: few, never too small, and none that a larger one makes pointless."""

from __future__ import annotations

import pytest

from engine.cuda.sizes import Sizes


@pytest.mark.parametrize("most", [1, 16, 17, 200, 1000, 3900, 4096])
def test_every_number_of_rows_fits_and_little_is_filled_up(most: int) -> None:
    sizes = Sizes(most)
    for rows in range(1, most + 1):
        size = sizes.fit(rows)
        assert rows <= size <= sizes.largest
        assert size - rows < max(64, rows / 8) if rows > 128 else size <= max(16, 2 * rows)


def test_sizes_are_few() -> None:
    sizes = Sizes(1024)
    assert len({sizes.fit(rows) for rows in range(1, 1025)}) <= 20


def test_a_size_that_is_no_faster_than_a_larger_one_is_left_out() -> None:
    sizes = Sizes(1024)
    cost = {448: 550, 960: 1023}
    sizes.choose(lambda rows: float(cost.get(rows, rows)))
    assert sizes.fit(448) == 512
    assert sizes.fit(950) == 1024
    assert sizes.fit(384) == 384
    assert sizes.below(512) == 384
    assert sizes.below(1024) == 896


def test_sizes_are_left_as_they_are_where_all_rows_cost_alike() -> None:
    """Each row costs its share: nothing is left out; and batches of many tiles are not even timed."""
    plain, timed = Sizes(4096), Sizes(4096)
    asked: list[int] = []

    def seconds(rows: int) -> float:
        asked.append(rows)
        return float(rows)

    timed.choose(seconds)
    assert max(asked) <= 1024
    assert [plain.fit(rows) for rows in range(1, 4097)] == [timed.fit(rows) for rows in range(1, 4097)]


def test_there_is_no_size_below_the_smallest() -> None:
    assert Sizes(64).below(16) is None
