"""Histograms of lengths."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from data.histogram import BINS, add, count_lengths, edge, middles


@given(st.lists(st.integers(0, 1 << 22), max_size=50))
def test_every_length_lies_between_the_edges_of_its_bin(lengths: list[int]) -> None:
    counts = count_lengths(lengths)
    assert len(counts) < BINS
    assert list(counts) == [
        sum(edge(number) <= length < edge(number + 1) for length in lengths) for number in range(len(counts))
    ]
    assert sum(counts) == len(lengths)
    assert add([count_lengths(lengths[:10]), count_lengths(lengths[10:])]) == counts


def test_the_middle_of_a_bin_lies_in_it() -> None:
    counts = count_lengths(np.arange(1000))
    assert all(edge(number) <= middle < edge(number + 1) for number, middle in enumerate(middles(counts)))
