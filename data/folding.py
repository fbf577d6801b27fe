"""Which sequences are the same, in which order they run, and where shards are cut. Arrays only, no files.

Keys are 16 byte digests held as two uint64, so that a window of ten million rows is sorted without Python objects.
Sequences are ordered by shared prefix: hashes of the first 32, 128, 512 and 2048 tokens, compared in that order, bring
sequences together that begin alike at any of those depths. The hashes decide an order and nothing else, so collisions
are harmless. All of it is a pure function of the tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Integers: TypeAlias = npt.NDArray[np.int64]
Hashes: TypeAlias = npt.NDArray[np.uint64]

DEPTHS = (32, 128, 512, 2048)

MAX_BANDS = 16
MIN_SHARDS = 16
MIN_SEQUENCES = 16
MAX_SEQUENCES = 8192
TAIL_SHARE = 10
"""One part in this many of the work is cut into smaller shards."""
TAIL_SEQUENCES = 64
"""Fewer than this would leave a device's batch empty, which costs more than workers that wait for the last one."""


@dataclass(frozen=True, slots=True)
class Groups:
    """Equal keys: `first` [G] is where each key appears first, in that order."""

    first: Integers
    inverse: Integers
    """The group of each key [N]."""

    @property
    def sizes(self) -> Integers:
        return np.bincount(self.inverse, minlength=len(self.first)).astype(np.int64)

    @property
    def rank(self) -> Integers:
        """How many equal keys come before each key [N]."""
        order = np.argsort(self.inverse, kind="stable")
        rank = np.empty(len(order), np.int64)
        rank[order] = np.arange(len(order)) - np.repeat(np.cumsum(self.sizes) - self.sizes, self.sizes)
        return rank


def group(keys: Hashes) -> Groups:
    """Group the equal rows of `keys` [N, 2]."""
    order = np.lexsort((keys[:, 1], keys[:, 0]))
    ordered = keys[order]
    starts = np.ones(len(keys), bool)
    starts[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    begin = np.flatnonzero(starts)
    # lexsort is stable, so the first of a group is the earliest row of it.
    by_key = order[begin]
    number = np.empty(len(begin), np.int64)
    number[np.argsort(by_key, kind="stable")] = np.arange(len(begin))
    of_sorted = np.cumsum(starts) - 1
    inverse = np.empty(len(keys), np.int64)
    inverse[order] = number[of_sorted]
    return Groups(np.sort(by_key), inverse)


def prefix_hashes(tokens: npt.NDArray[np.uint32], lengths: Integers) -> Hashes:
    """Hashes [N, D] of the first tokens of N sequences that lie end to end in `tokens`, at each of `DEPTHS`.

    Depths below which no sequence reaches would repeat the hashes of the depth before them and are left out.
    """
    starts = np.cumsum(lengths) - lengths
    position = np.arange(len(tokens)) - np.repeat(starts, lengths)
    weighted = (tokens.astype(np.uint64) + np.uint64(1)) * _WEIGHTS[np.minimum(position, DEPTHS[-1] - 1)]
    total = np.zeros(len(tokens) + 1, np.uint64)
    np.cumsum(weighted, out=total[1:])
    used = 1 + sum(depth < lengths.max(initial=0) for depth in DEPTHS[:-1])
    return np.stack([total[starts + np.minimum(lengths, depth)] - total[starts] for depth in DEPTHS[:used]], axis=1)


def join_hashes(parts: Sequence[Hashes]) -> Hashes:
    """Hashes [N, D] of many sequences from those of some each, whose deepest hash stands for what is left out."""
    joined = np.empty((sum(map(len, parts)), max((part.shape[1] for part in parts), default=1)), np.uint64)
    start = 0
    for part in parts:
        stop = start + len(part)
        joined[start:stop, : part.shape[1]] = part
        joined[start:stop, part.shape[1] :] = part[:, -1:]
        start = stop
    return joined


def order_by_prefix(hashes: Hashes, rows: Integers) -> Integers:
    """The order in which those of `rows` with common beginnings are neighbours, as places in `rows`; else as they came.

    A column at a time, from the last one: of ten million rows the hashes are not copied as a whole.
    """
    order = np.arange(len(rows))
    for column in reversed(range(hashes.shape[1])):
        order = order[np.argsort(hashes[rows[order], column], kind="stable")]
    return order


def bands(priorities: npt.NDArray[np.float64]) -> list[Integers]:
    """The sequences of each priority, the highest first; where there are more than `MAX_BANDS` different ones,
    neighbours together in bands of about equal numbers of sequences. Equal priorities are never parted."""
    order = np.argsort(-priorities, kind="stable").astype(np.int64)
    ends = np.cumsum(np.unique(-priorities, return_counts=True)[1])
    if len(ends) > MAX_BANDS:
        shares = len(order) * np.arange(1, MAX_BANDS + 1) // MAX_BANDS
        ends = np.unique(ends[np.searchsorted(ends, shares)])
    return [np.sort(band) for band in np.split(order, ends[:-1])] if len(order) else []


def cut(cost: Integers, shard_cost: int, least: int = MIN_SHARDS) -> list[tuple[int, int]]:
    """Cut sequences, in their order, into shards: half-open ranges that cover all of them.

    Shards cost about the same, but those of the last tenth of the work are smaller, so that workers that take one after
    another finish together. At least `least` shards where there are sequences enough, and `MIN_SEQUENCES` to
    `MAX_SEQUENCES` in each (fewer only if there are fewer in all).
    """
    count = len(cost)
    if not count:
        return []
    total = np.cumsum(cost)
    wanted = max(-(-int(total[-1]) // max(shard_cost, 1)), least)
    equal = max(min(wanted, count // MIN_SEQUENCES), -(-count // MAX_SEQUENCES), 1)
    ends = _ends(equal, count / equal)
    ranges = []
    start = 0
    for number, end in enumerate(ends, 1):
        left = len(ends) - number
        stop = int(np.searchsorted(total, total[-1] * end)) + 1
        low = max(start + min(MIN_SEQUENCES, count), count - left * MAX_SEQUENCES)
        high = min(start + MAX_SEQUENCES, count - left * MIN_SEQUENCES)
        stop = count if not left else max(min(stop, high), low)
        ranges.append((start, stop))
        start = stop
    return ranges


def _ends(equal: int, sequences: float) -> list[float]:
    """Where shards end, as shares of the work, if it would be cut into `equal` ones with `sequences` each.

    The last tenth is cut into halves of such a shard and then quarters, where these still fill a batch.
    """
    last = -(-equal // TAIL_SHARE)
    if equal < MIN_SHARDS or sequences < 4 * TAIL_SEQUENCES:
        return [number / equal for number in range(1, equal + 1)]
    sizes = np.repeat([1.0, 0.5, 0.25], [equal - last, last, 2 * last])
    ends = (np.cumsum(sizes) / equal).tolist()
    return [*ends[:-1], 1.0]


def _splitmix(count: int) -> Hashes:
    """Odd pseudo-random weights, the same for ever: splitmix64 (Steele, Lea and Flood, 2014)."""
    with np.errstate(over="ignore"):
        state: Any = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        weights: Hashes = (state ^ (state >> np.uint64(31))) | np.uint64(1)
    return weights


_WEIGHTS = _splitmix(DEPTHS[-1])
