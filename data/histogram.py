"""Counts of lengths in log-spaced bins, two for each doubling: few enough to keep, and they add up.

Bin 0 holds length 0; bin k holds lengths from `edge(k)` up to, but not with, `edge(k + 1)`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

BINS = 48
"""Enough for lengths up to 6 million tokens."""

_EDGES = np.array([0, 1, 2, 3, *(round(2 ** (k / 2)) for k in range(4, BINS - 1))], np.int64)

Counts = tuple[int, ...]
"""How many lengths lie in each bin, without the empty bins at the end."""


def edge(number: int) -> int:
    """The least length of a bin."""
    return int(_EDGES[number])


def count_lengths(lengths: npt.ArrayLike) -> Counts:
    """The histogram of lengths."""
    bins = np.searchsorted(_EDGES, np.asarray(lengths, np.int64), side="right") - 1
    return tuple(np.bincount(bins).tolist()) if bins.size else ()


def add(histograms: Iterable[Sequence[int]]) -> Counts:
    """The histogram of all lengths of some histograms."""
    total = np.zeros(BINS, np.int64)
    for counts in histograms:
        total[: len(counts)] += np.asarray(counts, np.int64)
    return tuple(np.trim_zeros(total, "b").tolist())


def middles(counts: Sequence[int]) -> npt.NDArray[np.float64]:
    """The typical length of each bin."""
    found = [(edge(number) + edge(number + 1) - 1) / 2 for number in range(len(counts))]
    return np.array(found, np.float64)
