"""A worker's seat: how long it outlives the search for rows that kill its processes, and when one is overdue."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest

from data.attempts import Attempt
from data.suspect import judge
from engine.child import BEAT
from engine.supervisor import Child
from tasks.growth import Growth
from tasks.seat import ALONE_DEATHS, SILENCE_SECONDS, START_SECONDS, START_SILENCE_SECONDS, SURVIVED, Given, Seat
from tasks.shard_queue import Waiting
from tests.tasks.conftest import ROOT

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


@pytest.fixture
def seat(tmp_path: Path) -> Iterator[Seat]:
    """A seat with a process that has just been started."""
    found = Seat(0, RETRIES, Growth(0.0))
    name = "tests.tasks.obedient_worker:main"
    child = Child(name, environment={"PYTHONPATH": str(ROOT)}, log=tmp_path / "log", beats=True)
    found.take(child)
    yield found
    child.end()


def given(cost: float = 1.0) -> Waiting:
    """A shard that is handed to a worker."""
    return Waiting({"id": "s", "cost": cost}, Future())


def test_a_process_has_an_hour_to_start_and_ten_minutes_between_two_words(seat: Seat) -> None:
    """Whatever the stall limit says of a worker that is ready."""
    assert seat.overdue(seat.heard + START_SILENCE_SECONDS - 1, 4.0) is None
    assert seat.overdue(seat.heard + START_SILENCE_SECONDS + 1, 4.0) == "no sign of life for 600 s"
    seat.heard += START_SECONDS  # it has said that it lives, all the time
    assert seat.overdue(seat.moved + START_SECONDS - 1, 4.0) is None
    assert seat.overdue(seat.moved + START_SECONDS + 1, 4.0) == "no progress for 3600 s"
    assert seat.overdue(seat.moved + START_SECONDS + 1, 7200.0) is None, "the stall limit, if that is longer"


def test_a_ready_worker_is_expected_to_live_and_with_work_to_get_on(seat: Seat) -> None:
    seat.ready = True
    assert seat.overdue(seat.heard + 5, 4.0) == "no sign of life for 4 s"
    assert seat.overdue(seat.heard + SILENCE_SECONDS + 1, 1000.0) == "no sign of life for 60 s"
    seat.moved -= 100  # when it last had work
    seat.note({"event": BEAT})
    assert seat.overdue(seat.heard, 10.0) is None, "without work there is nothing to get on with"
    seat.give(given())
    assert seat.overdue(seat.heard, 10.0) is None, "the time without work does not count"
    seat.moved -= 11
    assert seat.overdue(seat.heard, 10.0) == "no progress for 10 s"


def test_only_work_done_is_progress(seat: Seat) -> None:
    seat.ready = True
    seat.give(given())
    for message, progress in (
        ({"event": "progress", "work": 5.0}, True),
        ({"event": "progress", "work": 5.0}, False),
        ({"event": BEAT}, False),
        ({"event": "progress", "work": 6.0}, True),
    ):
        seat.moved -= 11
        seat.note(message)
        assert (seat.overdue(seat.heard, 10.0) is None) == progress, message
        seat.moved = seat.heard


def test_time_in_which_nobody_could_listen_does_not_count(seat: Seat) -> None:
    seat.ready = True
    seat.give(given())
    seat.excuse(1000.0)
    assert seat.overdue(seat.heard + 3, 4.0) is None
    assert seat.overdue(time.monotonic() + 1003, 4.0) is None


def test_starts_are_delayed_more_after_each_death_up_to_half_a_minute() -> None:
    seat = Seat(0, 100, Growth(0.0))
    delays = []
    for _ in range(12):
        before = time.monotonic()
        seat.lose()
        delays.append(seat.restart_at - before)
    assert delays[:4] == pytest.approx([0.5, 1, 2, 4], abs=0.1)
    assert delays[-1] == pytest.approx(30, abs=0.1)


def test_a_finished_shard_makes_up_for_the_deaths_before_it(seat: Seat) -> None:
    seat.failures = seat.retries
    seat.give(given())
    assert seat.finish("s") is not None
    seat.lose()
    assert not seat.gone
    for _ in range(RETRIES):
        seat.lose()
    assert seat.gone
