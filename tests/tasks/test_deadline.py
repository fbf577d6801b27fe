"""What a deadline may be, which work it still allows, and how a run stands to it."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta

import pytest

from data.errors import InputError
from data.rehearsal import Pace
from tasks.configuration import load_settings
from tasks.deadline import FIXED_SECONDS, MARGIN, Deadline, OutOfTime
from tasks.moment import moment_of, parse
from tasks.outlook import against_deadline

NOW = datetime(2026, 1, 30, 22, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "hours"),
    [("8h", 8), ("1h30m", 1.5), ("90m", 1.5), ("1d 2h", 26), ("0.5h", 0.5), ("45s", 45 / 3600),
     ("2026-01-31T06:00+00:00", 8), ("2026-01-31T06:00Z", 8), ("2026-01-31T08:00+02:00", 8)],
)  # fmt: skip
def test_a_deadline_is_a_duration_or_a_time_with_a_zone(text: str, hours: float) -> None:
    assert moment_of(text, NOW) == NOW + timedelta(hours=hours)


@pytest.mark.parametrize(
    "text", ["", "8", "8x", "h", "0h", "-1h", "8h later", "06:00", "2026-01-31", "2026-01-31T06:00"]
)
def test_anything_else_is_an_error_that_names_the_setting(text: str) -> None:
    with pytest.raises(ValueError, match="must be a duration"):
        parse(text)
    with pytest.raises(InputError, match=r"schedule\.deadline: must be a duration such as"):
        load_settings(None, {"schedule": {"deadline": text}})


@pytest.mark.parametrize("text", ["2026-01-30T22:00+00:00", "1999-01-01T00:00Z", "2026-01-30T23:00+02:00"])
def test_a_time_that_is_over_is_an_error(text: str) -> None:
    with pytest.raises(InputError, match=r"schedule\.deadline = .* has passed"):
        moment_of(text, NOW)


def test_a_deadline_beyond_the_calendar_is_an_error() -> None:
    with pytest.raises(InputError, match=r"schedule\.deadline"):
        moment_of("99999999d", NOW)


def test_room_follows_from_what_finished_shards_took() -> None:
    now = NOW.timestamp()
    deadline = Deadline(NOW + timedelta(seconds=100 + FIXED_SECONDS), lambda: now)
    deadline.publishing = Pace(0, 0)
    assert deadline.room == math.inf, "nothing is known yet"
    deadline.learn(1000, 10)
    assert deadline.room == pytest.approx(10_000)
    for _ in range(9):
        deadline.learn(1000, 5)
    deadline.learn(1000, 20)
    assert deadline.room == pytest.approx(10_000), "a single slow shard is not what is expected of the next one"
    for _ in range(100):
        deadline.learn(1000, 5)
    assert deadline.room == pytest.approx(20_000), "old shards are forgotten"
    now += 90
    assert deadline.room == pytest.approx(2_000)
    deadline.check()
    now += 10
    assert deadline.passed
    assert deadline.room < 0, "not even a shard that costs nothing"
    with pytest.raises(OutOfTime):
        deadline.check()


def test_work_ends_before_the_deadline_by_what_publishing_takes() -> None:
    deadline = Deadline(NOW + timedelta(hours=1), NOW.timestamp)
    before = deadline.seconds_left
    deadline.rows, deadline.publishing = 1_000_000, Pace(row=1e-4, shard=0.1)
    assert deadline.publishing_seconds == pytest.approx(FIXED_SECONDS + MARGIN * 100)
    deadline.learn(1000, 5)
    assert before - deadline.seconds_left == pytest.approx(MARGIN * (100 + 0.1))


def test_how_a_run_stands_to_its_deadline() -> None:
    assert against_deadline(3600, None, 5) == "deadline in 1 h 00 m"
    assert against_deadline(3600, 1800, 5) == "deadline in 1 h 00 m, to be finished 30 m 00 s before it"
    assert against_deadline(3600, 7200, 1000).endswith("about 500 rows will have no answer then")
    assert against_deadline(-1, 5, 1) == "the deadline has come"
