"""The scheduler under any requests, stops and read order: within budget and blocks, each sequence finishes once."""

from __future__ import annotations

from collections import deque

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.blocks import BlockPool
from engine.scheduler import Scheduler
from engine.sequence import Sequence
from engine.step import Step
from tests.engine.test_scheduler import SIZE, hopeful, sequence


class Device:
    """Stands in for runner and KV cache: checks that a step reads only what was written, and by whom."""

    def __init__(self) -> None:
        self.content: dict[tuple[int, int], tuple[int, ...]] = {}
        self.host: dict[Sequence, list[list[tuple[int, ...] | None]]] = {}
        self.tables: dict[int, list[int]] = {}
        self.owners: dict[int, Sequence] = {}
        self.decoded: list[Sequence] = []

    def run(self, step: Step, budget: int) -> None:
        assert 0 < step.tokens <= max(budget, len(step.decode))
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
    lower=st.tuples(st.integers(0, 40), st.sampled_from([1, 5, 20, 80]), st.sampled_from([1, 2, 9])),
    most_prompt=st.sampled_from([None, None, 1, 12]),
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
    lower: tuple[int, int, int],
    most_prompt: int | None,
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
    most = min(rows, budget)
    for turn in range(3000):
        if not scheduler.has_work:
            break
        if turn == lower[0]:
            scheduler.lower(*lower[1:])
            budget, most = min(budget, lower[1]), min(most, lower[2])
        step = scheduler.plan(most_prompt)
        if step is not None:
            assert step.tokens - len(step.decode) <= (most_prompt or budget)
            assert not step.admitted or scheduler.running <= most
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
