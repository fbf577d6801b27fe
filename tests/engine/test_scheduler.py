"""The scheduler under any requests, stops and read order: within budget and blocks, each sequence finishes once."""

from __future__ import annotations

import subprocess
import sys
from collections import deque

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.blocks import BlockPool
from engine.lengths import AnswerLengths
from engine.scheduler import Scheduler
from engine.sequence import Sequence
from engine.step import Step

SIZE = 4


def sequence(prompt: list[int], max_tokens: int, identity: int = 0) -> Sequence:
    return Sequence([identity], np.array(prompt, np.int64), max_tokens, bytes(16))


class Device:
    """Stands in for runner and KV cache: checks that a step reads only what was written, and by whom."""

    def __init__(self) -> None:
        self.content: dict[tuple[int, int], tuple[int, ...]] = {}
        self.host: dict[Sequence, list[list[tuple[int, ...] | None]]] = {}
        self.tables: dict[int, list[int]] = {}
        self.owners: dict[int, Sequence] = {}
        self.decoded: list[Sequence] = []

    def run(self, step: Step, budget: int) -> None:
        assert 0 < step.tokens <= budget
        self.move(step)
        assert step.same == (step.decode == self.decoded)
        self.decoded = list(step.decode)
        assert [s.written for s in step.decode] == sorted((s.written for s in step.decode), reverse=True)
        work = [(s, s.written - 1, s.written) for s in step.decode]
        work += [(c.sequence, c.start, c.stop) for c in step.chunks]
        lines = [self.line(s, p) for s, start, stop in work for p in range(start, stop)]
        assert len(lines) == len(set(lines)), "two tokens write one line"
        for s, start, stop in work:
            for p in range(start, stop):
                self.content[self.line(s, p)] = self.history(s, p)
        for s, _, stop in work:
            for p in range(stop):
                assert self.content[self.line(s, p)] == self.history(s, p), "KV of another beginning"

    def move(self, step: Step) -> None:
        """Swaps and block tables, as a runner brings them up to date."""
        for swap in step.swapped_out:
            s = swap.sequence
            assert len(s.tokens) == s.launched, "sent away before its tokens were read"
            assert swap.blocks == self.tables[s.row][: -(-s.written // SIZE)]
            assert any(old.admission < s.admission and old.launched for old in self.here()), "the oldest must stay"
            self.host[s] = [[self.content.get((block, i)) for i in range(SIZE)] for block in swap.blocks]
        for swap in step.swapped_in:
            s = swap.sequence
            assert self.owners[s.row] is s
            self.tables[s.row] = list(s.blocks)
            assert s.blocks[swap.first : swap.first + len(swap.blocks)] == swap.blocks
            for block, saved in zip(swap.blocks, self.host.pop(s)[swap.first :], strict=True):
                self.content.update({(block, i): value for i, value in enumerate(saved) if value is not None})
            assert all(s.admission < other.admission for other in self.host), "the oldest must come back first"
        assert not (self.host and step.admitted), "others were admitted while some are away"
        for s in step.admitted:
            self.owners[s.row] = s
            self.tables[s.row] = list(s.blocks)
        for s, first in step.grown:
            assert len(self.tables[s.row]) == first < len(s.blocks)
            self.tables[s.row] += s.blocks[first:]

    def here(self) -> list[Sequence]:
        return [s for s in self.owners.values() if not s.finished and s not in self.host]

    def line(self, s: Sequence, position: int) -> tuple[int, int]:
        """Where a position is stored, by the block table of the sequence's row."""
        assert self.owners[s.row] is s, "the row is somebody else's"
        assert self.tables[s.row] == s.blocks
        return s.blocks[position // SIZE], position % SIZE

    def history(self, s: Sequence, position: int) -> tuple[int, ...]:
        """What the KV at a position depends on; answers are told apart by their sequence."""
        if position < len(s.prompt):
            return tuple(s.prompt[: position + 1].tolist())
        return (-1, id(s), position)


def check_holds(sequences: list[Sequence], pool: BlockPool) -> None:
    """Every hold is counted once; a block of two sequences holds the same beginning of their prompts."""
    holders: dict[int, tuple[int, bytes]] = {}
    for s in sequences:
        assert len(set(s.blocks)) == len(s.blocks)
        for index, block in enumerate(s.blocks):
            full = (index + 1) * SIZE <= len(s.prompt)
            mine = (index, s.prompt[: (index + 1) * SIZE].tobytes() if full else str(id(s)).encode())
            assert holders.setdefault(block, mine) == mine, "a block of two owners"
    assert pool.held == len(holders) <= pool.count


def drawn(seed: int, count: int) -> list[tuple[list[int], int, int]]:
    """Prompts that often begin alike, limits, and after how many tokens each stops by itself."""
    numbers = np.random.default_rng(seed)

    def prompt() -> list[int]:
        size = int(numbers.integers(1, 31))
        return [0] * min(size, 10) + list(numbers.integers(0, 2, max(0, size - 10)).tolist())

    return [(prompt(), int(numbers.integers(1, 51)), int(numbers.integers(1, 51))) for _ in range(count)]


def hopeful() -> AnswerLengths:
    """Lengths that promise answers of two tokens, so that too much is admitted."""
    lengths = AnswerLengths()
    for _ in range(1000):
        lengths.observe(2, ended=True)
    return lengths


@settings(max_examples=250, deadline=None)
@given(
    seed=st.integers(0, 1 << 20),
    count=st.integers(1, 24),
    first=st.integers(0, 20),
    blocks=st.integers(20, 32),
    rows=st.sampled_from([1, 3, 6, 9]),
    budget=st.sampled_from([1, 7, 30, 80]),
    ahead=st.integers(0, 2),
    forecast=st.sampled_from([True, True, False]),
    gate=st.tuples(st.integers(1, 40), st.integers(0, 5)),
)
def test_every_sequence_finishes_once_within_budget_and_pool(
    seed: int,
    count: int,
    first: int,
    blocks: int,
    rows: int,
    budget: int,
    ahead: int,
    forecast: bool,
    gate: tuple[int, int],
) -> None:
    requests = drawn(seed, count)
    pool = BlockPool(blocks, SIZE)
    scheduler = Scheduler(
        pool,
        max_rows=rows,
        max_batch_tokens=budget,
        lengths=hopeful() if forecast else None,
        least_prefill=gate[0],
        most_wait=gate[1],
    )
    device = Device()
    waiting = [sequence(prompt, limit, i) for i, (prompt, limit, _) in enumerate(requests)]
    assert all(scheduler.fits(s) for s in waiting)
    scheduler.add(waiting[:first])
    scheduler.add(waiting[first:])
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
        else:
            assert launched, "nothing can run and nothing was launched"
        assert scheduler.running <= rows
        check_holds([waiting[i] for i in set(started) - set(finished)], pool)
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
    assert [i < first for i in started] == sorted((i < first for i in started), reverse=True)
    assert forecast or scheduler.swaps == 0
    assert pool.held == 0
    assert pool.available == blocks


def simulate(scheduler: Scheduler, ends: dict[Sequence, int], ahead: int = 1) -> list[Step]:
    """Run what was added, each sequence ending after so many tokens."""
    launched: deque[Step] = deque()
    steps = []
    while scheduler.has_work:
        step = scheduler.plan()
        if step is not None:
            steps.append(step)
            launched.append(step)
        while len(launched) > (ahead if step is not None else 0):
            for s in launched.popleft().sampled:
                if not s.finished:
                    s.tokens.append(0)
                    if len(s.tokens) >= ends[s]:
                        scheduler.finish(s)
    return steps


def test_a_full_pool_sends_sequences_away_and_brings_them_back() -> None:
    for ahead in (0, 1, 2):
        pool = BlockPool(20, SIZE)
        scheduler = Scheduler(pool, max_rows=8, max_batch_tokens=64, lengths=hopeful())
        sequences = [sequence([i] * 5, 40, i) for i in range(8)]
        scheduler.add(sequences)
        steps = simulate(scheduler, dict.fromkeys(sequences, 40), ahead)
        gone = [swap.sequence.ids[0] for step in steps for swap in step.swapped_out]
        back = [swap.sequence.ids[0] for step in steps for swap in step.swapped_in]
        assert scheduler.swaps == len(gone) == len(back) > 0
        assert 0 not in gone, "the oldest always stays"
        assert pool.held == 0


def test_the_oldest_sits_out_while_a_prompt_holds_the_rest() -> None:
    """Nobody else decodes, so nobody can be sent away: it waits with its KV until the prompt is done."""
    for ahead in (0, 1):
        scheduler = Scheduler(BlockPool(11, SIZE), max_rows=2, max_batch_tokens=2, lengths=hopeful())
        old, young = sequence([1] * 4, 28), sequence([2] * 23, 1)
        scheduler.add([old])
        scheduler.add([young])
        steps = simulate(scheduler, {old: 28, young: 1}, ahead)
        assert any(old not in step.decode and step.chunks for step in steps[2:])
        assert scheduler.swaps == 0


def test_prompts_wait_for_one_another_beside_a_decoding_batch() -> None:
    scheduler = Scheduler(BlockPool(999, SIZE), max_rows=8, max_batch_tokens=64, least_prefill=20, most_wait=3)
    scheduler.add([sequence([i] * 5, 99) for i in range(4)])
    assert scheduler.plan() is not None
    scheduler.add([sequence([9] * 5, 99)])
    shapes = [(len(step.decode), len(step.chunks)) for step in (scheduler.plan() for _ in range(5)) if step]
    assert shapes == [(4, 0), (4, 0), (4, 0), (4, 1), (5, 0)], "after three steps at the latest"
    scheduler.add([sequence([7] * 20, 99)])
    step = scheduler.plan()
    assert step is not None
    assert len(step.chunks) == 1, "enough tokens start at once"


def test_a_small_batch_does_not_let_prompts_wait() -> None:
    scheduler = Scheduler(BlockPool(999, SIZE), max_rows=8, max_batch_tokens=64, least_prefill=20, most_wait=3)
    for i in range(3):
        scheduler.add([sequence([i] * 5, 99)])
        step = scheduler.plan()
        assert step is not None
        assert len(step.chunks) == (i < 2)


def test_long_sequences_start_first_and_equal_ones_in_order() -> None:
    scheduler = Scheduler(BlockPool(999, SIZE), max_rows=9, max_batch_tokens=999)
    sizes = [10, 100, 101, 10, 102, 200, 11]
    scheduler.add([sequence([1] * size, 1, i) for i, size in enumerate(sizes)])
    scheduler.add([sequence([1] * 300, 1, 7)])
    step = scheduler.plan()
    assert step is not None
    assert [s.ids[0] for s in step.admitted] == [5, 1, 2, 4, 6, 0, 3, 7]


def test_planning_needs_no_torch() -> None:
    code = "import sys, engine.scheduler, engine.stopping, engine.request; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_common_beginning_is_computed_once_even_in_one_step() -> None:
    scheduler = Scheduler(BlockPool(100, SIZE), max_rows=10, max_batch_tokens=100)
    scheduler.add([sequence([7] * 40 + [tail] * 3, 2) for tail in range(5)])
    step = scheduler.plan()
    assert step is not None
    assert [(chunk.start, chunk.stop) for chunk in step.chunks] == [(0, 43)] + [(40, 43)] * 4
    assert scheduler.shared_tokens == 160


def test_an_equal_prompt_still_computes_its_last_position() -> None:
    scheduler = Scheduler(BlockPool(100, SIZE), max_rows=10, max_batch_tokens=100)
    scheduler.add([sequence([7] * 8, 2)])
    scheduler.add([sequence([7] * 8, 2)])
    step = scheduler.plan()
    assert step is not None
    assert [(chunk.start, chunk.stop) for chunk in step.chunks] == [(0, 8), (4, 8)]


def test_decoding_goes_before_prompts_and_a_long_prompt_is_cut() -> None:
    scheduler = Scheduler(BlockPool(100, SIZE), max_rows=10, max_batch_tokens=10)
    scheduler.add([sequence([1] * 6, 3)])
    scheduler.add([sequence([2] * 20, 1)])
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
        scheduler.add(sequences)
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
