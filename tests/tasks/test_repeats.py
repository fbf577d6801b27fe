"""Rows that another worker answers again: which, what is left of them, and when answers differ."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.errors import RunError
from data.run_folder import RunFolder
from engine.request import Completion, Request
from tasks.cross_check import CrossCheck, open_checks
from tasks.likeness import differs, to_answer
from tasks.repeats import SHARE, Repeats

FIRST, SHARED, OTHER = "0" * 11 + "1" + "0" * 20, "0" * 9 + f"{SHARE:03x}" + "0" * 20, "0" * 11 + "7" + "0" * 20


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


def test_the_first_shard_and_then_one_in_many_by_its_id(run: RunFolder) -> None:
    repeats = Repeats(run, wanted=True, exact=True)
    assert [len(repeats.sample(shard, requests(9))) for shard in (FIRST, OTHER, SHARED, FIRST)] == [4, 0, 4, 0]
    assert Repeats(run, wanted=False, exact=True).sample(FIRST, requests(9)) == []
    assert [r.id for r in Repeats(run, wanted=True, exact=True).sample(FIRST, requests(2))] == [7, 8]


@pytest.mark.parametrize(("shift", "differ"), [(0, 0), (1, 4)])
def test_what_one_worker_leaves_another_answers_and_compares(run: RunFolder, shift: int, differ: int) -> None:
    ours, theirs = (Repeats(run, wanted=True, exact=True) for _ in range(2))
    sample = ours.sample(FIRST, requests(9))
    assert ours.leave(FIRST, sample, answers(sample))
    (left,) = (run.path / "repeats").iterdir()
    assert left.stat().st_mode & 0o777 == 0o600
    theirs.ask(FIRST)
    again = theirs.requests()
    assert not theirs.waiting
    assert [request.id for request in again] == [-1, -2, -3, -4]
    assert [list(r.prompt) for r in again] == [list(r.prompt) for r in sample]
    assert {(r.max_tokens, r.key) for r in again} == {(8, r.key) for r in sample}
    events = [event for completion in answers(again, shift) if (event := theirs.take(completion)) is not None]
    assert events == [{"event": "repeated", "shard": FIRST, "rows": 4, "differ": differ}]
    assert list((run.path / "repeats").iterdir()) == []
    theirs.ask(FIRST)
    assert theirs.requests() == [], "it is gone"


def test_a_single_answer_that_rounding_may_have_turned_is_no_difference(run: RunFolder) -> None:
    ours, theirs = (Repeats(run, wanted=True, exact=False) for _ in range(2))
    sample = ours.sample(FIRST, requests(9))
    ours.leave(FIRST, sample, answers(sample))
    theirs.ask(FIRST)
    completions = answers(theirs.requests())
    completions[2].token_ids[0] += 1
    assert [e["differ"] for c in completions if (e := theirs.take(c)) is not None] == [0]


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


@pytest.mark.parametrize("gone", ["died", "left"])
@pytest.mark.parametrize("strict", [True, False])
def test_the_driver_asks_another_worker_and_judges(run: RunFolder, strict: bool, gone: str) -> None:
    pool, told, failed = FakePool(), [], []
    check = CrossCheck(run, pool, strict=strict, tell=told.append, fail=failed.append)
    check.listen({"event": "done", "worker": 0, "shard": FIRST, "repeat": True})
    check.listen({"event": "done", "worker": 0, "shard": OTHER})
    assert pool.sent == [], "nobody else is ready"
    pool.ready = [0, 1, 2]
    check.listen({"event": "ready", "worker": 1})
    assert pool.sent == [(1, FIRST)]
    pool.ready = [0, 2]
    check.listen({"event": gone, "worker": 1})
    assert pool.sent == [(1, FIRST), (2, FIRST)]
    check.listen({"event": "repeated", "worker": 2, "shard": FIRST, "rows": 4, "differ": 3})
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
