"""Learned lengths: the chances of answers to go on are those of the law they come from, however early asked."""

from __future__ import annotations

from math import exp

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.lengths import AnswerLengths

NOBODY = np.zeros(0, np.int64)


def chance(lengths: AnswerLengths, have: int, reach: int, running: np.ndarray = NOBODY) -> float:
    """That an answer of `have` tokens comes to `reach`."""
    ends = lengths.ends(running, 2048)
    return exp(ends[have] - ends[reach])


def test_a_known_law_is_found_again() -> None:
    lengths = AnswerLengths()
    for tokens in np.random.default_rng(0).integers(100, 1025, 4000):
        lengths.observe(int(tokens), ended=True)
    assert chance(lengths, 0, 90) > 0.99
    for have, reach in [(0, 300), (0, 562), (300, 700), (562, 900), (850, 950), (10, 1000)]:
        true = (1025 - reach) / (1025 - max(have, 100))
        assert abs(chance(lengths, have, reach) - true) < 0.06, (have, reach)
    assert chance(lengths, 0, 1200) < 0.03


def test_the_short_answers_of_a_batch_do_not_speak_for_all() -> None:
    """Of 2000 answers that began together, those under 250 tokens have ended: all that ended so far are short."""
    lengths = AnswerLengths()
    drawn = np.random.default_rng(0).integers(100, 1025, 2000)
    for tokens in drawn[drawn < 250]:
        lengths.observe(int(tokens), ended=True)
    running = np.full((drawn >= 250).sum(), 250)
    assert abs(chance(lengths, 0, 240, running) - 785 / 925) < 0.03
    assert chance(lengths, 0, 900, running) > 0.13, "what nobody reached yet is not taken for unlikely"


def test_nothing_is_concluded_from_few_answers_or_from_those_that_were_cut() -> None:
    lengths = AnswerLengths()
    for _ in range(63):
        lengths.observe(5, ended=True)
    assert chance(lengths, 0, 2000) == 1
    lengths = AnswerLengths()
    for tokens in range(500):
        lengths.observe(tokens, ended=False)
    assert chance(lengths, 0, 2000) == 1


def test_cut_answers_count_for_what_they_reached() -> None:
    """Half of the answers end at 50; the others were cut at 100, and say nothing about what comes after."""
    lengths = AnswerLengths()
    for _ in range(500):
        lengths.observe(50, ended=True)
        lengths.observe(100, ended=False)
    assert abs(chance(lengths, 0, 90) - 0.5) < 0.01
    assert chance(lengths, 60, 100) > 0.95


def test_old_answers_are_outweighed_by_new_ones() -> None:
    lengths = AnswerLengths()
    for tokens in [20] * 8000 + [400] * 24000:
        lengths.observe(tokens, ended=True)
    assert chance(lengths, 0, 300) > 0.8


@settings(max_examples=50, deadline=None)
@given(
    seen=st.lists(st.tuples(st.integers(0, 3000), st.booleans()), max_size=200),
    running=st.lists(st.integers(0, 3000), max_size=50),
    longest=st.integers(1, 5000),
)
def test_the_chance_to_go_on_only_falls(seen: list[tuple[int, bool]], running: list[int], longest: int) -> None:
    lengths = AnswerLengths()
    for tokens, ended in seen:
        lengths.observe(tokens, ended=ended)
    ends = lengths.ends(np.array(running, np.int64), longest)
    assert ends.shape == (longest + 1,)
    assert np.isfinite(ends).all()
    assert ends[0] == 0
    assert (np.diff(ends) >= 0).all()
