"""Shortening a prompt that is too long, where `input.on_too_long = "truncate"` asks for it.

What is shortened is the row's text, from its end, never the instruction around it: cutting tokens off a chat prompt
would remove the words that ask for an answer. All values longer than some length are cut to that length, and the
greatest length that fits is found by bisection.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from data.templates import Rendered
from data.tokenizer import Ids


def shorten(contents: Sequence[Rendered], encode: Callable[[Sequence[Rendered]], Ids | None], room: int) -> Ids | None:
    """Ids of the longest shortening with at most `room` ids; None if even the empty one is longer.

    Args:
        contents: the rendered texts of the prompt with their regions.
        encode: ids of shortened contents, empty where nothing is left, None if they have more than `room` for certain.
    """
    best: Ids | None = None
    low, high = 0, max((end - start for content in contents for start, end in content.regions), default=0)
    while low <= high:
        # Short lengths first while nothing has fitted, so that a text of megabytes is not encoded ten times.
        length = (low + high) // 2 if best is not None else min((low + high) // 2, max(4 * room, 1))
        ids = encode([content.shortened(length) for content in contents])
        if ids is not None and len(ids) <= room:
            best, low = ids, length + 1
        else:
            high = length - 1
    return best if best is not None and len(best) else None


def cut(ids: Ids, room: int, suffix: Sequence[int]) -> Ids:
    """The first ids of a framed text with the closing control tokens kept, `room` in all, as transformers truncates."""
    if len(ids) <= room:
        return ids
    kept = max(room - len(suffix), 0)
    return np.concatenate([ids[:kept], np.array(suffix, ids.dtype)])
