"""KV blocks as numbers: which are free, who holds which, and which prompt content they hold.

A block is `size` consecutive KV positions. A full block of prompt positions may be published under a hash that covers
everything before it too; another sequence with the same beginning then holds the same block. A published block that
nobody holds stays until its place is needed, least recently used first. Plain Python, no torch: the pool decides, the
paged cache stores.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from hashlib import blake2b

import numpy as np


def prefix_hashes(prompt: np.ndarray, size: int) -> list[bytes]:
    """16 bytes for each block that `prompt` fills wholly, chained so that equal hashes mean equal beginnings."""
    data = np.ascontiguousarray(prompt, dtype=np.int64).tobytes()
    hashes: list[bytes] = []
    parent = b""
    width = size * 8
    for start in range(0, len(data) - width + 1, width):
        parent = blake2b(parent + data[start : start + width], digest_size=16).digest()
        hashes.append(parent)
    return hashes


class BlockPool:
    """`count` blocks of `size` positions, numbered from `first`."""

    def __init__(self, count: int, size: int, first: int = 0) -> None:
        assert count > 0
        assert size > 0
        self.count = count
        self.size = size
        self._first = first
        self._holders: dict[int, int] = {}
        self._free: list[int] = []
        self._content: dict[int, bytes] = {}
        self._published: dict[bytes, int] = {}
        self._unheld: OrderedDict[int, None] = OrderedDict()
        self.reset()

    @property
    def available(self) -> int:
        """Blocks that an allocation can take."""
        return len(self._free) + len(self._unheld)

    @property
    def held(self) -> int:
        """Blocks that at least one sequence holds."""
        return len(self._holders)

    def blocks_for(self, positions: int) -> int:
        return -(-positions // self.size)

    def shared(self, hashes: Sequence[bytes]) -> list[int]:
        """Blocks that hold the longest published beginning of `hashes`; nothing is taken yet."""
        found: list[int] = []
        for content in hashes:
            block = self._published.get(content)
            if block is None:
                break
            found.append(block)
        return found

    def allocate(self, shared: Sequence[int], total: int) -> list[int] | None:
        """Hold `shared` and as many new blocks as make `total`; None, and nothing changed, if they do not fit."""
        idle = sum(1 for block in shared if block in self._unheld)
        if total - len(shared) > self.available - idle:
            return None
        for block in shared:
            self._unheld.pop(block, None)
            self._holders[block] = self._holders.get(block, 0) + 1
        fresh = [self._take() for _ in range(total - len(shared))]
        for block in fresh:
            self._holders[block] = 1
        return [*shared, *fresh]

    def publish(self, block: int, content: bytes) -> None:
        """Let others share a held block. A no-op where the content is published already."""
        assert block in self._holders
        if content not in self._published and block not in self._content:
            self._published[content] = block
            self._content[block] = content

    def release(self, blocks: Sequence[int]) -> list[int]:
        """Give up one hold on each block; the blocks that nobody holds any more."""
        unheld = []
        # Last block first, so that the end of a prefix is evicted before its beginning.
        for block in reversed(blocks):
            holders = self._holders[block] - 1
            if holders:
                self._holders[block] = holders
                continue
            del self._holders[block]
            unheld.append(block)
            if block in self._content:
                self._unheld[block] = None
            else:
                self._free.append(block)
        return unheld

    def withdraw(self, blocks: Iterable[int]) -> None:
        """Publish these held blocks no longer, because what they hold is wrong."""
        for block in blocks:
            assert block in self._holders
            content = self._content.pop(block, None)
            if content is not None:
                del self._published[content]

    def reset(self) -> None:
        """Forget what is published. Every block must be free of holders."""
        assert not self._holders, "blocks are still held"
        self._free = list(range(self._first + self.count - 1, self._first - 1, -1))
        self._content.clear()
        self._published.clear()
        self._unheld.clear()

    def _take(self) -> int:
        if self._free:
            return self._free.pop()
        block, _ = self._unheld.popitem(last=False)
        del self._published[self._content.pop(block)]
        return block
