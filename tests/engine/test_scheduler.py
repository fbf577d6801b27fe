"""What the scheduler puts into a step, and whom it lets in."""

from __future__ import annotations

import subprocess
import sys
from collections import deque

import numpy as np

from engine.blocks import BlockPool
from engine.lengths import AnswerLengths
from engine.scheduler import Scheduler
from engine.sequence import Sequence
from engine.step import Step

SIZE = 4


def sequence(prompt: list[int], max_tokens: int, identity: int = 0) -> Sequence:
    return Sequence([identity], np.array(prompt, np.int64), max_tokens, bytes(16))


def hopeful() -> AnswerLengths:
    """Lengths that promise answers of two tokens, so that too much is admitted."""
    lengths = AnswerLengths()
    for _ in range(1000):
        lengths.observe(2, ended=True)
    return lengths


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


def test_the_longest_answers_start_first_whatever_their_prompts() -> None:
    scheduler = Scheduler(BlockPool(9999, SIZE), max_rows=9, max_batch_tokens=9999)
    answers = [100, 400, 50, 401, 101]
    scheduler.add([sequence([1] * (1000 - answer), answer, i) for i, answer in enumerate(answers)])
    step = scheduler.plan()
    assert step is not None
    assert [s.ids[0] for s in step.admitted] == [1, 3, 0, 4, 2]


def test_planning_needs_no_torch() -> None:
    code = (
        "import sys, engine.scheduler, engine.pace, engine.stopping, engine.request; sys.exit('torch' in sys.modules)"
    )
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


def test_lower_limits_hold_for_prompts_at_once_and_for_rows_as_they_end() -> None:
    scheduler = Scheduler(BlockPool(999, SIZE), max_rows=8, max_batch_tokens=64)
    first = [sequence([i] * 6, 3, i) for i in range(8)]
    scheduler.add(first)
    assert scheduler.plan() is not None
    for s in first:
        s.tokens.append(0)
    second = [sequence([9, i] * 6, 9, i) for i in range(8)]
    scheduler.add(second)
    scheduler.lower(20, 4)
    steps = simulate(scheduler, dict.fromkeys(first, 3) | dict.fromkeys(second, 9), ahead=0)
    assert [len(step.decode) for step in steps[:2]] == [8, 8], "those that decode go on"
    assert not steps[0].admitted + steps[1].admitted
    assert len(steps[2].admitted) == 2, "20 tokens are one prompt of 12 and a part of another"
    assert max(len(step.decode) for step in steps[2:]) == 4
    assert max(step.tokens for step in steps[2:]) == 20


def test_a_step_has_no_more_prompt_tokens_than_asked_for() -> None:
    scheduler = Scheduler(BlockPool(999, SIZE), max_rows=9, max_batch_tokens=64)
    scheduler.add([sequence([i] * 10, 9, i) for i in range(9)])
    steps = [scheduler.plan(most) for most in (15, None, 7)]
    assert [step and (len(step.decode), step.tokens - len(step.decode)) for step in steps] == [(0, 15), (1, 63), (7, 7)]


def test_a_sequence_that_is_lost_amid_its_prompt_leaves_nothing_behind() -> None:
    pool = BlockPool(20, SIZE)
    scheduler = Scheduler(pool, max_rows=3, max_batch_tokens=10)
    lost, other = sequence([7] * 30, 2), sequence([7] * 30, 2)
    scheduler.add([lost])
    assert scheduler.plan() is not None
    scheduler.finish(lost, spoiled=True)
    scheduler.add([other])
    steps = simulate(scheduler, {other: 2})
    assert [(c.sequence, c.start, c.stop) for step in steps for c in step.chunks] == [
        (other, start, start + 10) for start in (0, 10, 20)
    ]
    assert pool.held == 0
