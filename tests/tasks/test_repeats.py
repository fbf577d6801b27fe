"""Rows that another worker answers again: which, what is left of them, and when answers differ."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from data.errors import RunError
from data.run_folder import RunFolder
from engine.request import Completion, Request
from tasks.configuration import load_settings
from tasks.cross_check import CrossCheck, open_checks
from tasks.likeness import differs, to_answer
from tasks.repeats import SHARE, Repeats
from tasks.worker import Worker

FIRST, SHARED, OTHER = "0" * 11 + "1" + "0" * 20, "0" * 9 + f"{SHARE:03x}" + "0" * 20, "0" * 11 + "7" + "0" * 20

SAMPLE = f"{FIRST}-1"


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    folder = RunFolder.create(tmp_path / "run", {"a": 1})
    open_checks(folder)
    return folder


def requests(count: int) -> list[Request]:
    return [
        Request(id=7 + i, prompt=np.arange(3, dtype=np.uint32) + i, max_tokens=50, key=bytes([i])) for i in range(count)
    ]


def answers(asked: list[Request], shift: int = 0) -> list[Completion]:
    return [Completion(r.id, [int(t) + shift for t in range(20)], "length", prompt_tokens=3) for r in asked]


def sampled(repeats: Repeats, shard: str, asked: list[Request], **failed: str) -> list[Request]:
    """The sample of a shard; failed: error codes by the number of the row."""
    given = {answer.id: answer for answer in answers(asked)}
    for row, code in failed.items():
        given[asked[int(row[1:])].id].error = (code, "x")  # type: ignore[assignment]
    return repeats.sample(shard, asked, given)


def test_the_first_shard_and_then_one_in_many_by_its_id(run: RunFolder) -> None:
    repeats = Repeats(run, wanted=True, exact=True)
    assert [len(sampled(repeats, shard, requests(9))) for shard in (FIRST, OTHER, SHARED, FIRST)] == [4, 0, 4, 0]
    assert sampled(Repeats(run, wanted=False, exact=True), FIRST, requests(9)) == []
    assert [r.id for r in sampled(Repeats(run, wanted=True, exact=True), FIRST, requests(2))] == [7, 8]


@pytest.mark.parametrize(("shift", "differ"), [(0, 0), (1, 4)])
def test_what_one_worker_leaves_another_answers_and_compares(run: RunFolder, shift: int, differ: int) -> None:
    ours, theirs = (Repeats(run, wanted=True, exact=True) for _ in range(2))
    sample = sampled(ours, FIRST, requests(9))
    assert ours.leave(FIRST, 1, sample, answers(sample))
    (left,) = (run.path / "repeats").iterdir()
    assert left.stat().st_mode & 0o777 == 0o600
    theirs.ask(SAMPLE)
    again = theirs.requests()
    assert not theirs.waiting
    assert [request.id for request in again] == [-1, -2, -3, -4]
    assert [list(r.prompt) for r in again] == [list(r.prompt) for r in sample]
    assert {(r.max_tokens, r.key) for r in again} == {(8, r.key) for r in sample}
    events = [event for completion in answers(again, shift) if (event := theirs.take(completion)) is not None]
    assert events == [{"event": "repeated", "shard": FIRST, "sample": SAMPLE, "rows": 4, "differ": differ}]
    assert list((run.path / "repeats").iterdir()) == []
    theirs.ask(SAMPLE)
    assert theirs.requests() == [], "it is gone"


def test_rows_with_an_error_are_not_repeated(run: RunFolder) -> None:
    sample = sampled(Repeats(run, wanted=True, exact=True), FIRST, requests(4), r0="nan_logits", r2="out_of_memory")
    assert [request.id for request in sample] == [8, 10]
    failed = {f"r{row}": "nan_logits" for row in range(4)}
    assert sampled(Repeats(run, wanted=True, exact=True), FIRST, requests(4), **failed) == []


def test_a_repeat_without_memory_tells_nothing_and_one_that_is_not_a_number_does(run: RunFolder) -> None:
    for code, differ in (("out_of_memory", 0), ("nan_logits", 4)):
        assert repeated(run, True, range(4), error=(code, "x")) == differ


@pytest.mark.parametrize(("turned", "differ"), [(1, 0), (2, 0), (3, 3), (4, 4)])
def test_where_rounding_turns_answers_most_of_a_sample_must_differ(run: RunFolder, turned: int, differ: int) -> None:
    assert repeated(run, False, range(turned)) == differ


def test_where_rounding_turns_answers_a_small_sample_is_none(run: RunFolder) -> None:
    ours = Repeats(run, wanted=True, exact=False)
    assert sampled(ours, FIRST, requests(3)) == []
    assert len(sampled(ours, OTHER, requests(9))) == 4, "the first one that is large enough"


def repeated(run: RunFolder, exact: bool, turned: range, **fields: Any) -> int:
    """How many of four answers are told to differ where the repeat's first tokens are others, or `fields` are."""
    ours, theirs = (Repeats(run, wanted=True, exact=exact) for _ in range(2))
    sample = sampled(ours, FIRST, requests(9))
    assert ours.leave(FIRST, 1, sample, answers(sample))
    theirs.ask(SAMPLE)
    completions = answers(theirs.requests())
    for row in turned:
        completions[row].token_ids[0] += 1
        completions[row] = dataclasses.replace(completions[row], **fields)
    (event,) = [event for completion in completions if (event := theirs.take(completion)) is not None]
    return int(event["differ"])


def test_an_attempt_that_was_not_committed_leaves_a_sample_in_nobodys_way(run: RunFolder) -> None:
    ours = Repeats(run, wanted=True, exact=True)
    sample = sampled(ours, FIRST, requests(9))
    names = [ours.leave(FIRST, attempt, sample, answers(sample, shift=attempt)) for attempt in (1, 2)]
    assert names == [SAMPLE, f"{FIRST}-2"]
    ours.ask(names[1] or "")
    events = [event for answer in answers(ours.requests(), 2) if (event := ours.take(answer)) is not None]
    assert [event["differ"] for event in events] == [0]


def completed(**fields: Any) -> dict[str, Any]:
    return to_answer(dataclasses.replace(Completion(0), **fields))


@pytest.mark.parametrize(
    ("ours", "near", "far"),
    [
        ({"token_ids": [1, 2]}, {"token_ids": [1, 2, 3]}, {"token_ids": [1, 3]}),
        ({"probabilities": [0.6, 0.4]}, {"probabilities": [0.60001, 0.39999]}, {"probabilities": [0.5, 0.5]}),
        ({"logprob": -9.0, "scored": 3}, {"logprob": -9.0001, "scored": 3}, {"logprob": -12.0, "scored": 3}),
        ({"embedding": np.array([1.0, 0])}, {"embedding": np.array([1.0, 1e-4])}, {"embedding": np.array([0, 1.0])}),
        ({"embedding": np.array([1.0, 0])}, {"embedding": np.array([1.0, 0])}, {"embedding": np.array([np.nan, 1.0])}),
        ({"error": ("nan_logits", "x")}, {"error": ("nan_logits", "y")}, {"token_ids": [1]}),
    ],
)
def test_what_differs_by_more_than_rounding(ours: Any, near: Any, far: Any) -> None:
    assert not differs(completed(**ours), completed(**near), tokens=2, exact=True)
    assert differs(completed(**ours), completed(**far), tokens=2, exact=True)
    assert differs(completed(**far), completed(**ours), tokens=2, exact=True)


class FakePool:
    def __init__(self) -> None:
        self.ready: list[int] = []
        self.sent: list[tuple[int, str]] = []

    def ask(self, message: Any, *, besides: int) -> int | None:
        for index in self.ready:
            if index != besides:
                self.sent.append((index, message["repeat"]))
                return index
        return None


@pytest.mark.parametrize("gone", ["replaced", "left"])
@pytest.mark.parametrize("strict", [True, False])
def test_the_driver_asks_another_worker_and_judges(run: RunFolder, strict: bool, gone: str) -> None:
    pool, told, failed = FakePool(), [], []
    check = CrossCheck(run, pool, strict=strict, tell=told.append, fail=failed.append)
    check.listen({"event": "done", "worker": 0, "shard": FIRST, "repeat": SAMPLE})
    check.listen({"event": "done", "worker": 0, "shard": OTHER})
    assert pool.sent == [], "nobody else is ready"
    pool.ready = [0, 1, 2]
    check.listen({"event": "ready", "worker": 1})
    assert pool.sent == [(1, SAMPLE)]
    pool.ready = [0, 2]
    check.listen({"event": gone, "worker": 1})
    assert pool.sent == [(1, SAMPLE), (2, SAMPLE)]
    check.listen({"event": "repeated", "worker": 2, "shard": FIRST, "sample": SAMPLE, "rows": 4, "differ": 3})
    check.settle(0.0)
    (alert,) = check.alerts
    assert "worker 2 answers 3 of 4 rows" in alert
    assert told == [{"event": "warning", "message": alert}]
    check.close()
    if strict:
        assert isinstance(failed[0], RunError)
        with pytest.raises(RunError, match="computes wrongly"):
            open_checks(run)
    else:
        assert failed == []
        open_checks(run)


def test_a_repeat_whose_worker_dies_is_asked_of_nobody_else(run: RunFolder) -> None:
    pool = FakePool()
    pool.ready = [0, 1, 2]
    events: list[Any] = []
    check = CrossCheck(run, pool, strict=True, tell=events.append, fail=events.append)
    check.listen({"event": "done", "worker": 0, "shard": FIRST, "repeat": SAMPLE})
    assert pool.sent == [(1, SAMPLE)]
    check.listen({"event": "died", "worker": 1})
    check.listen({"event": "ready", "worker": 1})
    assert pool.sent == [(1, SAMPLE)]
    check.settle(0.0)


def test_a_disagreement_ends_the_run_where_it_cannot_be_recorded(run: RunFolder) -> None:
    told: list[dict[str, Any]] = []
    failed: list[RunError] = []
    check = CrossCheck(run, FakePool(), strict=True, tell=told.append, fail=failed.append)
    (run.path / "doubts").touch()  # no folder can be made of it, as on a full disk
    check.listen({"event": "repeated", "worker": 2, "shard": FIRST, "sample": SAMPLE, "rows": 4, "differ": 3})
    assert len(failed) == 1
    assert "--fresh only" in told[-1]["message"]
    assert len(check.alerts) == 2


class Busy:
    """An engine that has work, and repeats that wait for it."""

    has_work = waiting = True

    def requests(self) -> list[Request]:
        self.waiting = False
        return []

    def add(self, asked: list[Request]) -> None:
        assert asked == []

    def statistics(self) -> dict[str, float]:
        return {}


@pytest.mark.parametrize(("deterministic", "waits"), [(True, True), (False, False), ("batch-invariant", False)])
def test_repeats_wait_for_the_shard_only_where_batches_depend_on_it(deterministic: Any, waits: bool) -> None:
    worker: Any = Worker.__new__(Worker)
    settings = load_settings(None, {"engine": {"deterministic": deterministic}}, ())
    worker._order, worker._shared = SimpleNamespace(settings=settings), 0.0
    worker._engine = worker._repeats = busy = Busy()
    worker._repeat()
    assert busy.waiting == waits
