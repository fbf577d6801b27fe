"""A row being generated: its prompt, what was sampled so far, and the KV blocks it holds.

Plain state without torch. The scheduler moves `written` and `launched` when a step is planned; tokens are appended
when that step's result is read, which on CUDA is one step later.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass(slots=True, eq=False)
class Sequence:
    """One prompt and its growing answer; several requests where equal ones were folded."""

    ids: list[int]
    """Ids of the requests that this sequence answers."""
    prompt: np.ndarray
    """int64 [P], P >= 1."""
    max_tokens: int
    key: bytes
    """16 bytes that key the samples: a digest of the prompt."""
    occurrence: int = 0
    tokens: list[int] = field(default_factory=list)
    """Tokens read so far, without the stop id."""

    # Set by the scheduler on admission.
    row: int = -1
    """Its line in the tensors that live across steps."""
    admission: int = 0
    """How many were admitted before it, and itself."""
    blocks: list[int] = field(default_factory=list)
    """Those of its positions so far at least; none while its KV is on the host."""
    shared: int = 0
    """How many of the first of them were there already."""
    hashes: list[bytes] | None = None
    """Content of each block that the prompt fills wholly, chained from the first; made once."""

    # Moved by the scheduler when a step is planned.
    written: int = 0
    """Positions whose KV is in the cache, or will be after the steps planned so far."""
    launched: int = 0
    """Tokens sampled by the steps planned so far; at least len(tokens)."""
    published: int = 0
    """Leading blocks that other sequences may already share."""

    # Set when the answer ends.
    finished: bool = False
    stop: str | None = None
    """The stop string that matched."""
    tail: bytes = b""
    """The end of the text that may still grow into a stop string."""

    @property
    def positions(self) -> int:
        """Most KV positions it can come to hold: the last token is never fed back."""
        return len(self.prompt) + self.max_tokens - 1

    @property
    def decodes(self) -> bool:
        """Whether its next step feeds back one sampled token."""
        return 0 < self.launched < self.max_tokens
