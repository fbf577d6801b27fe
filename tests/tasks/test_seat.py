"""How long a seat outlives the search for rows that kill its processes, without any process."""

from __future__ import annotations

import pytest

from data.attempts import Attempt
from data.suspect import judge
from tasks.growth import Growth
from tasks.seat import ALONE_DEATHS, SURVIVED, Given, Seat

ROWS = 4096
RETRIES = 3


def search(seat: Seat, poison: set[int], rows: int = ROWS) -> set[int] | None:
    """What the seat's processes find in one shard; None if it is given up before."""
    attempts: list[Attempt] = []
    while not seat.gone:
        verdict = judge("s", rows, attempts)
        part = verdict.trial or range(rows)
        dies = bool((set(part) - verdict.poisoned) & poison)
        if not dies and verdict.trial is None:
            seat.suspected = seat.failures = 0  # as `finish` does
            return set(verdict.poisoned)
        end = "died" if dies else "survived"
        attempts.append(Attempt(len(attempts) + 1, 1, part.start, part.stop, verdict.trial is not None, end))
        if dies:
            seat.held["s"] = Given(None, 1.0, alone=len(attempts) > 1)  # type: ignore[arg-type]
            seat.lose()
        elif verdict.trial is not None:
            seat.note({"event": SURVIVED, "shard": "s"})
    return None


FOUND = [{0}, {ROWS - 1}, {1000, 3000}, set(range(8)), {5, 700, 2048, 2049, 3333}, set(range(0, ROWS, 256))]


@pytest.mark.parametrize("poison", FOUND)
def test_a_seat_outlives_the_search_in_a_large_shard(poison: set[int]) -> None:
    seat = Seat(0, RETRIES, Growth(0.0))
    for _ in range(2):  # and in further ones
        assert search(seat, poison) == poison


def test_a_seat_where_everything_dies_is_given_up() -> None:
    seat = Seat(0, RETRIES, Growth(0.0))
    assert search(seat, set(range(ROWS))) is None
    assert seat.suspected + seat.failures == RETRIES + ALONE_DEATHS + 1
