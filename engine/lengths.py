"""How long answers get, learned while they are generated.

Answers that ended by themselves are counted by length; those that run, or were cut at their longest, are known only to
be longer than what they reached. The chance that an answer ends within a range of lengths is its ends divided by the
answers that came so far (Kaplan and Meier, 1958). Counting ends alone would learn from the short answers of a batch
first and take every answer for short. Lengths fall into ranges a sixteenth wide; beyond those that enough answers have
reached, the chance stays that of the last of them.

What the lengths mean for memory is left to engine.demand. Plain numpy, no clocks.
"""

from __future__ import annotations

from bisect import bisect_right

import numpy as np

# Answers before anything is concluded, and answers that must have reached a range to judge it.
_LEAST_ANSWERS = 64
_LEAST_REACHED = 16
# The last ranges of which the chance beyond them is taken together.
_LAST_RANGES = 4
# Counts are halved here, so that the lengths of later rows weigh more than those of long ago.
_MOST_ANSWERS = 8192
_LONGEST = 1 << 24


def _edges() -> list[int]:
    edges = [0]
    while edges[-1] < _LONGEST:
        edges.append(edges[-1] + max(1, edges[-1] // 16))
    return edges


class AnswerLengths:
    """Counts of finished answers by length, and the chance of an answer to go on."""

    def __init__(self) -> None:
        self._edges = _edges()
        self._bounds = np.array(self._edges, np.float64)
        self._ended = np.zeros(len(self._edges))
        self._cut = np.zeros(len(self._edges))
        self._seen = 0

    def observe(self, tokens: int, *, ended: bool) -> None:
        """Count an answer of `tokens` tokens that `ended` by itself, or was cut there."""
        counts = self._ended if ended else self._cut
        counts[bisect_right(self._edges, tokens) - 1] += 1
        self._seen += 1
        if self._seen >= _MOST_ANSWERS:
            self._ended /= 2
            self._cut /= 2
            self._seen //= 2

    def ends(self, running: np.ndarray, longest: int) -> np.ndarray:
        """Float64 [longest + 1], E: an answer of n tokens comes to m with probability exp(E[n] - E[m]).

        running: int64 [R], tokens that the unfinished answers have. All 0, so that every answer is expected to run to
        its longest, until enough answers were seen.
        """
        if self._seen < _LEAST_ANSWERS or not self._ended.any():
            return np.zeros(longest + 1)
        going = self._cut + np.bincount(np.searchsorted(self._bounds, running, "right") - 1, minlength=len(self._edges))
        reached = np.cumsum((self._ended + going)[::-1])[::-1] - going / 2
        known = int(np.argmax(reached < _LEAST_REACHED))
        ended = self._ended[:known] / reached[:known]
        last = slice(max(0, known - _LAST_RANGES), known)
        beyond = self._ended[last].sum() / reached[last].sum() if known else 0.0
        chance = np.full(len(self._edges) - 1, beyond)
        chance[:known] = ended
        # Nothing is certain: an answer of a range in which all others ended may still be longer.
        rate = -np.log1p(-np.minimum(chance, 1 - 1 / (2 * _LEAST_REACHED)))
        total = np.concatenate([[0.0], np.cumsum(rate)])
        return np.asarray(np.interp(np.arange(longest + 1), self._bounds, total))
