"""The block pool under any order of calls: one owner a private block, sharing by content only, nothing lost."""

from __future__ import annotations

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from engine.blocks import BlockPool, prefix_hashes

SIZE = 4
COUNT = 12


def test_hashes_cover_everything_before_them() -> None:
    one = prefix_hashes(np.arange(19), SIZE)
    assert len(one) == 4
    other = np.arange(19)
    other[5] = 99
    two = prefix_hashes(other, SIZE)
    assert one[0] == two[0]
    assert not set(one[1:]) & set(two[1:])
    assert prefix_hashes(np.arange(19, dtype=np.uint32), SIZE) == one
    assert prefix_hashes(np.arange(3), SIZE) == []


def test_least_recently_used_content_goes_first_and_the_end_of_a_prefix_before_its_beginning() -> None:
    pool = BlockPool(4, SIZE)
    blocks = pool.allocate([], 3)
    assert blocks is not None
    for block, content in zip(blocks, [b"a", b"b", b"c"], strict=True):
        pool.publish(block, content)
    assert pool.release(blocks) == blocks[::-1]
    assert pool.available == 4
    assert pool.allocate([], 2) is not None
    assert pool.shared([b"a", b"b", b"c"]) == blocks[:2]


def test_shared_blocks_that_nobody_holds_are_not_counted_twice() -> None:
    pool = BlockPool(3, SIZE)
    blocks = pool.allocate([], 2)
    assert blocks is not None
    pool.publish(blocks[0], b"a")
    pool.release(blocks)
    shared = pool.shared([b"a"])
    assert pool.allocate(shared, 4) is None
    assert pool.allocate(shared, 3) is not None
    assert pool.available == 0


class PoolMachine(RuleBasedStateMachine):
    """Holders with prompts over two token values, so that beginnings are often equal."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(COUNT, SIZE, first=1)
        self.holders: list[tuple[list[int], list[bytes], int]] = []

    @rule(prompt=st.lists(st.integers(0, 1), min_size=1, max_size=20), extra=st.integers(0, 12))
    def allocate(self, prompt: list[int], extra: int) -> None:
        hashes = prefix_hashes(np.array([value // 2 for value in prompt]), SIZE)
        shared = self.pool.shared(hashes)
        total = max(len(shared), self.pool.blocks_for(len(prompt) + extra))
        before = (self.pool.available, self.pool.held)
        blocks = self.pool.allocate(shared, total)
        if blocks is None:
            assert (self.pool.available, self.pool.held) == before
            assert total > COUNT - len({block for held, _, _ in self.holders for block in held} - set(shared))
            return
        assert len(set(blocks)) == total
        others = {block for held, _, _ in self.holders for block in held}
        assert not others & set(blocks[len(shared) :]), "a new block belongs to somebody"
        assert all(1 <= block <= COUNT for block in blocks)
        self.holders.append((blocks, hashes, len(shared)))

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def publish(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.holders) - 1))
        blocks, hashes, published = self.holders[index]
        for at in range(published, min(len(hashes), len(blocks))):
            self.pool.publish(blocks[at], hashes[at])
        self.holders[index] = (blocks, hashes, max(published, len(hashes)))

    @precondition(lambda self: self.holders)
    @rule(data=st.data(), spoiled=st.booleans())
    def release(self, data: st.DataObject, spoiled: bool) -> None:
        blocks, hashes, _ = self.holders.pop(data.draw(st.integers(0, len(self.holders) - 1)))
        if spoiled:
            self.pool.withdraw(blocks)
            assert not set(self.pool.shared(hashes)) & set(blocks)
        others = {block for held, _, _ in self.holders for block in held}
        assert set(self.pool.release(blocks)) == set(blocks) - others

    @precondition(lambda self: not self.holders)
    @rule()
    def reset(self) -> None:
        self.pool.reset()
        assert self.pool.available == COUNT

    @invariant()
    def nothing_is_lost(self) -> None:
        held = {block for blocks, _, _ in self.holders for block in blocks}
        assert self.pool.held == len(held)
        assert self.pool.held + self.pool.available == COUNT

    def teardown(self) -> None:
        for blocks, _, _ in self.holders:
            self.pool.release(blocks)
        assert self.pool.available == COUNT


TestPool = PoolMachine.TestCase
TestPool.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
