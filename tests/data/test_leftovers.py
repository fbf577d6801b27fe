"""What is left of a run once its result is published: plans and commits, and what unfinished work still needs."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from data.audit import audit
from data.plan import load_windows
from data.priority import Priority
from data.publish import finish, prepare_output, published_base, verify_published
from data.retry import plan_retry
from tests.data.publishing import ROWS, settings


def test_shard_data_goes_after_publication_plans_and_commits_stay(done: Any) -> None:
    commits = set(os.listdir(done.run.commits))
    done.publish()
    assert not os.listdir(done.run.shards)
    assert not os.listdir(done.run.tmp)
    assert set(os.listdir(done.run.commits)) == commits
    assert len(load_windows(done.run)) == 6
    assert sorted(os.listdir(done.root)) == ["in.parquet", "out", "run"]


def test_what_a_crash_kept_from_being_deleted_goes_the_next_time(done: Any) -> None:
    manifest = done.publish()
    shard = next(iter(done.run.commits.glob("*.json"))).stem
    leftovers = [
        done.run.shards / f"{'0' * 64}.parquet",
        done.run.prompts / f"{shard}.arrow",
        done.run.tmp / "1-dead",
        done.root / f".out.{done.run.id}.new-dead",
    ]
    for path in leftovers:
        path.write_bytes(b"left")
    finish(done.run, done.output, manifest)
    assert [path.name for path in leftovers if path.exists()] == []


def test_prompts_of_a_plan_that_died_go_those_of_an_unfinished_retry_stay(lab: Callable[..., Any]) -> None:
    """The plan that counts has another order and so other shards, which no commit of the first one's names."""
    made = lab(ROWS)
    made.output = settings(made, error_budget=1)
    for window in made.windows():
        (made.run.plan / f"{window.name}.json").unlink()
    first = {path.name for path in made.run.prompts.iterdir()}
    made.options = replace(made.options, priority=Priority("id"))
    made.compute(lambda text, _: text == "text 5")
    assert {path.name for path in made.run.prompts.iterdir()} & first
    manifest = made.publish()
    assert not os.listdir(made.run.prompts)
    base, windows = published_base(made.run, made.output), load_windows(made.run)
    retry = plan_retry(made.run, made.dataset, made.prompter, made.run.id, made.options, windows, base)
    assert retry is not None
    finish(made.run, made.output, manifest)
    assert os.listdir(made.run.prompts) == [f"{retry.shards[0].id}.arrow"]
    made.work(retry.shards)
    made.publish()
    assert not os.listdir(made.run.prompts)


def test_the_result_of_another_ledger_deletes_nothing_of_this_one(done: Any, new_lab: Any, tmp_path: Any) -> None:
    """Both are of the same run; this one has committed a part of its work, for an output of its own."""
    done.publish()
    other = new_lab(tmp_path / "other", ROWS, output=done.output)
    windows = other.windows()
    other.work(windows[0].shards)
    manifest = prepare_output(other.run, done.output)
    assert manifest is not None
    assert manifest.complete
    finish(other.run, done.output, manifest)
    assert other.publish() == manifest
    assert len(list(other.run.shards.iterdir())) == len(windows[0].shards)
    other.output = settings(other)
    other.compute()
    assert other.publish().complete
    assert other.rows() == done.rows()


def test_what_cannot_be_deleted_leaves_the_publication_as_it_is_and_goes_once_it_can(
    done: Any, caplog: pytest.LogCaptureFixture
) -> None:
    stuck = done.run.shards / "a folder, which no unlink removes"
    stuck.mkdir()
    noted = done.run.publications / "replacing.json"
    noted.mkdir()
    manifest = done.publish()
    assert audit(done.target).valid
    assert verify_published(done.target) == manifest
    assert [stuck.name in text or noted.name in text for text in caplog.messages] == [True, True]
    stuck.rmdir()
    noted.rmdir()
    finish(done.run, done.output, manifest)
    assert not os.listdir(done.run.shards)
    assert len(caplog.messages) == 2
