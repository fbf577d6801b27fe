"""Any order of planning, committing, dying, retrying and publishing, by two drivers at once, gives the one result.

So does any way of planning: with or without folding, in windows and shards of any size, ordered by any priority, which
may change from one attempt to the next.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from data.audit import audit
from data.ledger import Ledger, commit_shard
from data.plan import load_windows, plan_windows
from data.priority import Priority
from data.publish import published, published_base
from data.retry import load_retries, plan_retry
from data.settings import OutputSettings
from data.sharding import PlanOptions
from data.shards import Shard, prompts_path, read_prompts

ROWS = [{"id": number, "text": f"text {number * 7 % 60}" if number % 40 else ""} for number in range(170)]
PRIORITIES = st.sampled_from([None, "id", "-id", "id % 3", "id if text else 'none'", "text | length"])
ERRORS = st.sets(st.sampled_from([f"text {number}" for number in range(60)]), max_size=3)


def ordered(options: PlanOptions, priority: str | None) -> PlanOptions:
    return replace(options, priority=Priority(priority) if priority is not None else None)


class RunMachine(RuleBasedStateMachine):
    """Two drivers of one run; `committed` is what the model knows of the ledger."""

    make: Callable[..., Any]
    jsonl: bool

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        self.lab = type(self).make(self.root, [json.dumps(row) for row in ROWS] if self.jsonl else ROWS)
        self.lab.output = OutputSettings(path=str(self.root / "out"), error_budget=1)
        self.committed: dict[str, bytes] = {}
        self.complete: str | None = None
        self.drivers: list[Iterator[Any]] = []

    @initialize(fold=st.booleans(), rows=st.integers(20, 200), tokens=st.integers(50, 2000), priority=PRIORITIES)
    def choose_a_way_of_planning(self, fold: bool, rows: int, tokens: int, priority: str | None) -> None:
        self.lab.options = replace(self.lab.options, fold=fold, window_rows=rows, shard_tokens=tokens)
        self.lab.options = ordered(self.lab.options, priority)

    @rule(priority=PRIORITIES)
    def ask_for_another_order(self, priority: str | None) -> None:
        self.drivers = []
        self.lab.options = ordered(self.lab.options, priority)

    def teardown(self) -> None:
        self.crash()
        lab = self.lab
        lab.compute()
        lab.publish()
        while (window := self.retries(lab)) is not None:
            lab.work(window.shards)
            lab.publish()
        seen = Counter[str]()
        for row, published_row in zip(ROWS, lab.rows(), strict=True):
            occurrence = 0 if lab.options.fold else seen[row["text"]]
            answer = f"{row['text'].upper()}#{occurrence}" if row["text"] else None
            assert (published_row["id"], published_row["output"]) == (row["id"], answer)
            seen[row["text"]] += 1
        assert audit(lab.target).valid
        assert not [path for path in self.root.iterdir() if path.name.startswith(".")]
        shutil.rmtree(self.root)

    def shards(self) -> list[Shard]:
        run = self.lab.run
        return [shard for window in [*load_windows(run), *load_retries(run)] for shard in window.shards]

    @staticmethod
    def retries(lab: Any) -> Any:
        base = published_base(lab.run, lab.output)
        return plan_retry(lab.run, lab.dataset, lab.prompter, lab.run.id, lab.options, load_windows(lab.run), base)

    @rule(number=st.integers(0, 1))
    def plan_a_window(self, number: int) -> None:
        lab = self.lab
        while len(self.drivers) <= number:
            self.drivers.append(plan_windows(lab.run, lab.dataset, lab.prompter, lab.run.id, lab.options))
        next(self.drivers[number], None)

    @rule(choice=st.randoms(use_true_random=False), bad=ERRORS)
    def finish_a_shard(self, choice: Any, bad: set[str]) -> None:
        lab = self.lab
        open_shards = [s for s in Ledger(lab.run).missing(self.shards()) if prompts_path(lab.run, s.id).exists()]
        if open_shards:
            shard = choice.choice(open_shards)
            lab.work([shard], lambda text, _: text in bad)
            self.committed[shard.id] = (lab.run.commits / f"{shard.id}.json").read_bytes()

    @rule(choice=st.randoms(use_true_random=False))
    def finish_a_shard_twice(self, choice: Any) -> None:
        lab = self.lab
        open_shards = [s for s in Ledger(lab.run).missing(self.shards()) if prompts_path(lab.run, s.id).exists()]
        if open_shards and self.complete is None:
            shard = choice.choice(open_shards)
            module = __import__("sys").modules[type(lab).__module__]
            prompts = read_prompts(lab.run, shard.id)
            first, late = (module.answer(prompts, fails) for fails in (module.never, lambda *_: True))
            commits = [
                commit_shard(lab.run, shard, table, worker=worker, attempt=1, seconds=worker)
                for worker, table in enumerate((first, late))
            ]
            assert commits[0] == commits[1]
            self.committed[shard.id] = (lab.run.commits / f"{shard.id}.json").read_bytes()

    @rule()
    def crash(self) -> None:
        self.drivers = []
        self.lab.run.sweep()

    @rule(bad=ERRORS)
    def finish_everything(self, bad: set[str]) -> None:
        self.drivers = []
        self.lab.compute(lambda text, _: text in bad)
        run = self.lab.run
        self.committed |= {shard: (run.commits / f"{shard}.json").read_bytes() for shard in Ledger(run).commits()}

    @rule(choice=st.randoms(use_true_random=False))
    def lose_a_prompt_file(self, choice: Any) -> None:
        files = sorted(self.lab.run.prompts.iterdir())
        if files:
            choice.choice(files).unlink()

    @rule()
    def publish_at_the_deadline(self) -> None:
        lab = self.lab
        manifest = lab.publish(partial=True)
        assert audit(lab.target).valid
        assert manifest.rows == len(ROWS)
        assert manifest.complete == (self.complete is not None)

    @precondition(lambda self: bool(load_windows(self.lab.run)))
    @rule()
    def publish_when_done(self) -> None:
        lab = self.lab
        windows = load_windows(lab.run)
        if windows[-1].last and not Ledger(lab.run).missing([s for w in windows for s in w.shards]):
            before = len(lab.computed)
            self.complete = lab.publish().digest
            assert len(lab.computed) == before
            assert audit(lab.target).valid

    @rule()
    def retry_errors(self) -> None:
        lab = self.lab
        windows = load_windows(lab.run)
        if windows and windows[-1].last and not Ledger(lab.run).missing([s for w in windows for s in w.shards]):
            self.retries(lab)

    @invariant()
    def commits_never_change(self) -> None:
        run = self.lab.run
        for shard, record in self.committed.items():
            assert (run.commits / f"{shard}.json").read_bytes() == record
        if self.complete is None:
            Ledger(run).verify()

    @invariant()
    def a_complete_result_stays_until_a_retry_replaces_it(self) -> None:
        if self.complete is not None:
            manifest = published(self.root / "out")
            assert manifest is not None
            assert manifest.complete
            assert manifest.digest == self.complete


@pytest.mark.parametrize("jsonl", [False, True])
def test_any_order_of_events_gives_the_one_result(new_lab: Callable[..., Any], jsonl: bool) -> None:
    machine = type("Machine", (RunMachine,), {"make": staticmethod(new_lab), "jsonl": jsonl})
    limits = settings(max_examples=12, stateful_step_count=16, deadline=None, derandomize=True)
    run_state_machine_as_test(machine, settings=limits)
