"""Which seats may be asked to repeat rows, and which are given up."""

from __future__ import annotations

import math
from concurrent.futures import Future
from typing import Any

from tasks.growth import Growth
from tasks.seat import Given, Seat
from tasks.trust import Faults, free_for_questions


def seat(index: int, *, tokens: float = 0.0, alone: bool = False, **fields: Any) -> Seat:
    held = {"a": Given(Future(), tokens, alone)}
    return Seat(index, 3, Growth(math.inf), ready=True, held=held, **fields)


def test_questions_go_to_no_worker_that_is_alone_with_a_suspect_or_leaving() -> None:
    seats = [seat(0), seat(1, alone=True), seat(2, leaving=True), seat(3, tokens=9), seat(4, tokens=5)]
    assert [free.index for free in free_for_questions(seats, besides=0)] == [4, 3]


def test_a_seat_whose_weights_change_twice_stays_empty() -> None:
    faults, bad, other = Faults(), seat(0), seat(1)
    for gone in (False, True):
        faults.note(bad)
        bad.lose()
        assert bad.gone == gone
        bad.failures = bad.failures if gone else 0  # as after a finished shard
    faults.note(other)
    other.lose()
    assert not other.gone
