"""The search for the rows that kill their worker: who is found, what it costs, and that it goes on after any death."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data.attempts import attempts, read_attempts, record_attempt, record_death, record_end
from data.errors import RunError
from data.run_folder import RunFolder
from data.suspect import Verdict, alone, judge


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "run", {"a": 1})


class Trier:
    """Does what a worker and its driver do with one shard, until it is answered."""

    def __init__(self, run: RunFolder, sequences: int, kills: Callable[[set[int]], bool], *, seen: bool = True) -> None:
        self.run, self.sequences, self.kills, self.seen = run, sequences, kills, seen
        self.deaths = self.tried = 0

    def verdict(self) -> Verdict:
        return judge("s", self.sequences, read_attempts(self.run, "s"))

    def attempt(self, part: range, without: frozenset[int], *, trial: bool) -> bool:
        slots = set(part) - without
        number = record_attempt(self.run, "s", 0, part, trial=trial)
        self.tried += len(slots)
        if self.kills(slots):
            self.deaths += 1
            if self.seen:
                record_end(self.run, "s", number, "died")
            return False
        if trial:
            record_end(self.run, "s", number, "survived")
        return True

    def work(self, most: int = 200) -> Verdict:
        """Until every part has survived."""
        for _ in range(most):
            verdict = self.verdict()
            if verdict.trial is not None:
                self.attempt(verdict.trial, verdict.poisoned, trial=True)
            elif all(self.attempt(part, verdict.poisoned, trial=False) for part in verdict.parts):
                return verdict
        raise AssertionError("it does not end")


@pytest.mark.parametrize("poison", [{0}, {63}, {37}, {10, 11}, {0, 63}, {5, 20, 40}])
def test_the_rows_that_kill_are_found_and_the_rest_is_one_pass(run: RunFolder, poison: set[int]) -> None:
    trier = Trier(run, 64, lambda slots: bool(slots & poison))
    verdict = trier.work()
    assert verdict.poisoned == poison
    assert verdict.parts == (range(64),)
    assert trier.deaths <= 2 + len(poison) * 8
    assert trier.tried < 64 * 8


def test_a_shard_of_one_row(run: RunFolder) -> None:
    trier = Trier(run, 1, bool)
    assert trier.work().poisoned == {0}
    assert trier.deaths == 4


def test_every_row_kills(run: RunFolder) -> None:
    assert Trier(run, 8, bool).work().poisoned == set(range(8))


def test_a_shard_that_died_by_chance_is_answered_whole(run: RunFolder) -> None:
    count = 0

    def twice(_slots: set[int]) -> bool:
        nonlocal count
        count += 1
        return count <= 2

    verdict = Trier(run, 16, twice).work()
    assert (verdict.poisoned, verdict.parts) == (frozenset(), (range(16),))


def test_the_second_attempt_is_alone_and_the_third_a_trial(run: RunFolder) -> None:
    assert not alone(read_attempts(run, "s"))
    for deaths in (1, 2):
        record_end(run, "s", record_attempt(run, "s", 0), "died")
        assert alone(read_attempts(run, "s"))
        verdict = judge("s", 4, read_attempts(run, "s"))
        assert (verdict.trial, verdict.parts) == ((None, (range(4),)) if deaths == 1 else (range(2), ()))


def test_a_row_that_died_is_tried_again_before_any_other(run: RunFolder) -> None:
    """In the process that came up after its death, in which nothing else has run."""
    trier = Trier(run, 4, lambda slots: 0 in slots)
    tried = []
    for _ in range(7):
        part = trier.verdict().trial
        tried.append(part)
        trier.attempt(part or range(4), frozenset(), trial=part is not None)
    assert tried == [None, None, range(2), range(1), range(1), range(1, 2), range(2, 4)]


def test_a_death_that_no_driver_saw_counts_half(run: RunFolder) -> None:
    """Drivers that are killed again and again while a row is tried do not make it an error row."""
    trier = Trier(run, 4, lambda slots: bool(slots & {2}), seen=False)
    for _ in range(3):
        trier.attempt(range(4), frozenset(), trial=False)
        assert trier.verdict().trial is None
    assert trier.work().poisoned == {2}
    assert trier.deaths == 4 + 1 + 4


def test_rows_that_kill_only_together_are_answered_apart(run: RunFolder) -> None:
    trier = Trier(run, 8, lambda slots: len(slots) > 4)
    verdict = trier.work()
    assert (verdict.poisoned, verdict.parts) == (frozenset(), (range(4), range(4, 8)))


def test_a_shard_that_kills_in_every_way_is_given_up(run: RunFolder) -> None:
    trier = Trier(run, 4, lambda slots: len(slots) > 2 or attempts(run, "s") > 4)
    with pytest.raises(RunError, match="none of its rows does so alone"):
        trier.work()


def test_any_driver_goes_on_where_the_last_one_was(run: RunFolder) -> None:
    """Nothing is kept in memory: each step is decided by the records alone, so it is the same after any restart."""
    poison = {3}
    history: list[Any] = []
    for step in range(60):
        trier = Trier(RunFolder.open(run.path), 32, lambda slots: bool(slots & poison))
        verdict = trier.verdict()
        history.append(verdict.trial)
        if verdict.trial is None and step > 1:
            assert trier.attempt(verdict.parts[0], verdict.poisoned, trial=False)
            break
        trier.attempt(verdict.trial or range(32), verdict.poisoned, trial=verdict.trial is not None)
    assert verdict.poisoned == poison
    tried = [trial for trial in history if trial is not None]
    assert len(tried) == len(set(tried)) + 1, "only the row itself is tried twice"


def test_only_the_process_that_died_is_blamed(run: RunFolder) -> None:
    record_attempt(run, "s", 0)
    (attempt,) = read_attempts(run, "s")
    record_death(run, "s", attempt.process + 1)
    assert read_attempts(run, "s")[0].deaths == 0.5
    record_death(run, "s", attempt.process)
    assert read_attempts(run, "s")[0].deaths == 1
    record_death(run, "other", attempt.process)
    (run.attempts / "s.2.json").write_text("{")
    with pytest.raises(RunError, match=r"s\.2\.json is damaged"):
        read_attempts(run, "s")


def test_a_trial_that_was_stopped_shows_nothing(run: RunFolder) -> None:
    for _ in range(2):
        record_end(run, "s", record_attempt(run, "s", 0), "died")
    for _ in range(3):
        record_end(run, "s", record_attempt(run, "s", 0, range(2), trial=True), "stopped")
        assert judge("s", 4, read_attempts(run, "s")).trial == range(2)
