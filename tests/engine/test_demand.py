"""Admission by forecast: more sequences at once than reservation has room for, and hardly one too many."""

from __future__ import annotations

import numpy as np

from engine.blocks import BlockPool
from engine.lengths import AnswerLengths
from engine.scheduler import Scheduler
from tests.engine.test_scheduler import SIZE, sequence, simulate


def test_short_answers_under_a_long_limit_fill_the_pool() -> None:
    """Reserving the longest answers has room for 20 at once; the real ones leave room for three times that."""
    ends = np.random.default_rng(0).integers(20, 60, 1500)
    steps = {}
    for lengths in (None, AnswerLengths()):
        pool = BlockPool(1000, SIZE)
        scheduler = Scheduler(pool, max_rows=200, max_batch_tokens=512, lengths=lengths)
        work = {sequence([i % 7] * 8, 193, i): int(end) for i, end in enumerate(ends)}
        scheduler.add(work)
        steps[lengths is None] = len(simulate(scheduler, work))
        assert scheduler.swaps <= 15, "one row in a hundred"
    assert steps[False] < steps[True] / 3


def test_answers_that_run_to_their_limit_are_never_sent_away() -> None:
    """As with reservation, and in fewer steps: what ends soon makes room for what grows late."""
    numbers = np.random.default_rng(1)
    limits = numbers.integers(10, 150, 800)
    prompts = numbers.integers(1, 80, 800)
    steps = {}
    for lengths in (None, AnswerLengths()):
        scheduler = Scheduler(BlockPool(2000, SIZE), max_rows=256, max_batch_tokens=1024, lengths=lengths)
        work = {sequence([i] * int(prompts[i]), int(limits[i]), i): int(limits[i]) for i in range(800)}
        scheduler.add(work)
        steps[lengths is None] = len(simulate(scheduler, work))
        assert scheduler.swaps == 0
    assert steps[False] < steps[True]
