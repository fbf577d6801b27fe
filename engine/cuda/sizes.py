"""The batch sizes that decode steps are filled up to, so that a few graphs serve every number of rows.

Products are cut into tiles, and a library chooses for each size anew how, now and then badly: 448 rows may take a
quarter longer than 512. So the layers' products of each size are timed at the start, and a size is left out where a
larger one is as fast. Beside products, rows that only fill up a batch cost little: they have one key to attend to, and
a part in the head and the choice of a token, which are not timed.

Plain Python without torch: how products are timed is the caller's.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator

# Rows that products are cut into, and the smallest batch: one row takes as long as these.
_TILE = 64
_LEAST = 16
# Batches above this are many tiles, which are cut alike.
_TIMED = 1024
# A size is kept if it takes at most this much of the time of a larger one.
_FASTER = 0.98


def _sizes(most: int) -> Iterator[int]:
    """Powers of two while the weights take longest to read; then a tile or an eighth apart, whichever is more."""
    size = _LEAST
    while size < most:
        yield size
        size += size if size < 2 * _TILE else max(_TILE, 1 << size.bit_length() >> 4)
    yield size


class Sizes:
    """The sizes for up to so many rows."""

    def __init__(self, most: int) -> None:
        self._sizes = list(_sizes(most))

    @property
    def largest(self) -> int:
        """A size that holds all rows."""
        return self._sizes[-1]

    def choose(self, seconds: Callable[[int], float]) -> None:
        """Leave out what does not pay. seconds: how long the products of so many rows take."""
        kept: list[int] = []
        least = float("inf")
        for size in reversed(self._sizes):
            if size > _TIMED or (taken := seconds(size)) <= _FASTER * least:
                kept.append(size)
                least = least if size > _TIMED else taken
        self._sizes = kept[::-1]

    def fit(self, rows: int) -> int:
        """The smallest size that holds so many rows."""
        return self._sizes[bisect_left(self._sizes, rows)]

    def below(self, size: int) -> int | None:
        """The size before `size`, if any."""
        at = bisect_left(self._sizes, size)
        return self._sizes[at - 1] if at else None
