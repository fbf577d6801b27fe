"""The scheduler under any requests, stops and read order: within budget and blocks, each sequence finishes once."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter, deque

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.blocks import BlockPool
from engine.scheduler import Scheduler, Step
from engine.sequence import Sequence

SIZE = 4


def sequence(prompt: list[int], max_tokens: int, identity: int = 0) -> Sequence:
    return Sequence([identity], np.array(prompt, np.int64), max_tokens, bytes(16))


class Device:
    """Stands in for model and KV cache: checks that a step reads only what was written, and by whom."""

    def __init__(self) -> None:
        self.content: dict[tuple[int, int], tuple[int, ...]] = {}
        self.written: Counter[int] = Counter()

    def run(self, step: Step, budget: int) -> None:
        assert 0 < step.tokens <= budget
        work = [(s, s.written - 1, s.written) for s in step.decode]
        work += [(c.sequence, c.start, c.stop) for c in step.chunks]
        lines = [(s.blocks[p // SIZE], p % SIZE) for s, start, stop in work for p in range(start, stop)]
        assert len(lines) == len(set(lines)), "two tokens write one line"
        for s, start, stop in work:
            for p in range(start, stop):
                self.content[s.blocks[p // SIZE], p % SIZE] = self.history(s, p)
        for s, _, stop in work:
            for p in range(stop):
                assert self.content[s.blocks[p // SIZE], p % SIZE] == self.history(s, p), "KV of another beginning"

    def history(self, s: Sequence, position: int) -> tuple[int, ...]:
        """What the KV at a position depends on; answers are told apart by their sequence."""
        if position < len(s.prompt):
            return tuple(s.prompt[: position + 1].tolist())
        return (-1, id(s), position)


requests = st.lists(
    st.tuples(
        st.lists(st.integers(0, 1), min_size=1, max_size=30).map(
            lambda p: [value if i > 9 else 0 for i, value in enumerate(p)]
        ),
        st.integers(1, 12),
        st.integers(1, 12),
    ),
    min_size=1,
    max_size=14,
)


@settings(max_examples=120, deadline=None)
@given(
    requests=requests,
    blocks=st.integers(11, 30),
    rows=st.integers(1, 6),
    budget=st.integers(1, 40),
    ahead=st.integers(0, 2),
)
def test_every_sequence_finishes_once_within_the_budget(
    requests: list[tuple[list[int], int, int]], blocks: int, rows: int, budget: int, ahead: int
) -> None:
    """Each request names its prompt, its limit, and after how many tokens it stops by itself."""
    pool = BlockPool(blocks, SIZE)
    scheduler = Scheduler(pool, max_rows=rows, max_batch_tokens=budget)
    device = Device()
    waiting = [sequence(prompt, limit, i) for i, (prompt, limit, _) in enumerate(requests)]
    for s in waiting:
        assert scheduler.fits(s)
        scheduler.add(s)
    launched: deque[Step] = deque()
    started: list[int] = []
    finished: list[int] = []
    for _ in range(2000):
        if not scheduler.has_work:
            break
        step = scheduler.plan()
        if step is not None:
            started += [s.ids[0] for s in step.admitted]
            device.run(step, budget)
            launched.append(step)
        assert scheduler.running <= rows
        assert pool.held <= blocks
        while len(launched) > (ahead if step is not None else 0):
            for s in launched.popleft().sampled:
                if s.finished:
                    continue
                s.tokens.append(0)
                assert len(s.tokens) <= s.launched <= s.max_tokens
                if len(s.tokens) == min(requests[s.ids[0]][1:]):
                    scheduler.finish(s)
                    finished.append(s.ids[0])
    assert sorted(finished) == list(range(len(requests)))
    assert started == list(range(len(requests))), "requests start in the order in which they came"
    assert pool.held == 0
    assert pool.available == blocks


def test_planning_needs_no_torch() -> None:
    code = "import sys, engine.scheduler, engine.stopping, engine.request; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_common_beginning_is_computed_once_even_in_one_step() -> None:
    scheduler = Scheduler(BlockPool(100, SIZE), max_rows=10, max_batch_tokens=100)
    for tail in range(5):
        scheduler.add(sequence([7] * 40 + [tail] * 3, 2))
    step = scheduler.plan()
    assert step is not None
    assert [(chunk.start, chunk.stop) for chunk in step.chunks] == [(0, 43)] + [(40, 43)] * 4
    assert scheduler.shared_tokens == 160


def test_an_equal_prompt_still_computes_its_last_position() -> None:
    scheduler = Scheduler(BlockPool(100, SIZE), max_rows=10, max_batch_tokens=100)
    scheduler.add(sequence([7] * 8, 2))
    scheduler.add(sequence([7] * 8, 2))
    step = scheduler.plan()
    assert step is not None
    assert [(chunk.start, chunk.stop) for chunk in step.chunks] == [(0, 8), (4, 8)]


def test_decoding_goes_before_prompts_and_a_long_prompt_is_cut() -> None:
    scheduler = Scheduler(BlockPool(100, SIZE), max_rows=10, max_batch_tokens=10)
    scheduler.add(sequence([1] * 6, 3))
    scheduler.add(sequence([2] * 20, 1))
    steps = [scheduler.plan() for _ in range(4)]
    shape = [
        (len(step.decode), [(chunk.start, chunk.stop) for chunk in step.chunks], len(step.sampled))
        for step in steps
        if step
    ]
    assert shape == [(0, [(0, 6), (0, 4)], 1), (1, [(4, 13)], 1), (1, [(13, 20)], 2)]
    assert scheduler.has_work
    assert scheduler.plan() is None


def test_what_is_larger_than_the_pool_does_not_fit() -> None:
    scheduler = Scheduler(BlockPool(3, SIZE), max_rows=1, max_batch_tokens=8)
    assert scheduler.fits(sequence([1] * 8, 5))
    assert not scheduler.fits(sequence([1] * 8, 6))


def test_reset_makes_the_next_plan_independent_of_the_past() -> None:
    scheduler = Scheduler(BlockPool(20, SIZE), max_rows=3, max_batch_tokens=20)

    def rows() -> list[tuple[int, list[int], int]]:
        sequences = [sequence([5] * 9 + [i], 1) for i in range(3)]
        for s in sequences:
            scheduler.add(s)
        while scheduler.has_work:
            step = scheduler.plan()
            assert step is not None
            for s in step.sampled:
                scheduler.finish(s)
        return [(s.row, s.blocks, s.published) for s in sequences]

    first = rows()
    assert rows() != first
    scheduler.reset()
    assert rows() == first
