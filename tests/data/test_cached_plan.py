"""A run whose prompts an earlier run has answered: shards committed from the cache, and the rest computed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data import cached_shards
from data.answer_cache import AnswerCache
from data.audit import audit
from data.job_answers import JobAnswers
from data.ledger import Ledger, read_results, results_path
from data.plan import load_windows
from data.publish import published_base
from data.results import result_schema
from data.retry import plan_retry
from data.settings import OutputSettings
from data.sharding import PlanOptions
from data.shards import Shard, read_prompts
from data.window import Window

TEXTS = [{"id": number, "text": f"text {number % 110}"} for number in range(130)]


SAMPLED = PlanOptions("generate", 8, False, 200, window_rows=50)


def answers_in(folder: Path) -> JobAnswers:
    return JobAnswers(AnswerCache.create(folder, 1 << 30), "a" * 32, {}, result_schema("generate"))


def made(new_lab: Callable[..., Any], root: Path, rows: list[Any], cache: Path | None, **options: Any) -> Any:
    """A lab that may publish errors, with a cache to read from, empty or not."""
    output = OutputSettings(path=str(root / "out"), error_budget=1)
    lab = new_lab(root, rows, output=output, identity={"root": root.name}, **options)
    lab.options = replace(lab.options, answers=answers_in(cache) if cache else None)
    return lab


def first_run(new_lab: Callable[..., Any], root: Path, rows: list[Any] = TEXTS, **options: Any) -> Any:
    """A run without anything in the cache, whose answers are there afterwards."""
    lab = made(new_lab, root / "first", rows, root / "cache", **options)
    windows = lab.windows()
    for window in windows:
        for shard in window.shards:
            prompts = read_prompts(lab.run, shard.id)
            work(lab, [shard])
            done = read_results(lab.run, Ledger(lab.run).commits()[shard.id])
            answers_in(root / "cache").add(prompts.keys, prompts.occurrences, done)
    lab.publish()
    return lab


def work(lab: Any, shards: list[Shard]) -> None:
    lab.work(shards, lambda text, _: text == "text 13")


def uncommitted(lab: Any, windows: list[Window]) -> list[Shard]:
    return Ledger(lab.run).missing([shard for window in windows for shard in window.shards])


def outputs(lab: Any) -> list[Any]:
    return [row["output"] for row in lab.rows()]


def test_only_changed_rows_are_computed(new_lab: Callable[..., Any], tmp_path: Path) -> None:
    first_run(new_lab, tmp_path)
    changed = [{**row, "text": "a new text"} if row["id"] in (7, 77) else row for row in TEXTS]
    lab = made(new_lab, tmp_path / "second", changed, tmp_path / "cache")
    windows = lab.windows()
    left = uncommitted(lab, windows)
    # The new text, and the one that ended in an error.
    assert sum(shard.sequences for shard in left) == 2
    assert sum(commit.rows for window in windows for commit in window.cached) == 108
    work(lab, left)
    lab.publish()
    fresh = made(new_lab, tmp_path / "third", changed, None)
    fresh.compute(lambda text, _: text == "text 13")
    fresh.publish()
    assert lab.rows() == fresh.rows()
    assert [path.read_bytes() for path in sorted(lab.target.glob("part-*"))] == [
        path.read_bytes() for path in sorted(fresh.target.glob("part-*"))
    ]
    assert audit(lab.target).valid
    manifest = json.loads((lab.target / "_manifest.json").read_bytes())
    assert manifest["tokens"]["computed_input"] == len("a new text") + len("text 13")


def test_samples_are_taken_by_their_occurrence(new_lab: Callable[..., Any], tmp_path: Path) -> None:
    rows = [{"id": number, "text": f"text {number % 20}"} for number in range(60)]
    first_run(new_lab, tmp_path, rows, options=SAMPLED)
    more = [*rows, {"id": 60, "text": "text 4"}]
    lab = made(new_lab, tmp_path / "second", more, tmp_path / "cache", options=SAMPLED)
    windows = lab.windows()
    left = uncommitted(lab, windows)
    assert sum(shard.sequences for shard in left) == 4  # a fourth occurrence, and three of the failing text
    work(lab, left)
    lab.publish()
    assert sorted(text for text in outputs(lab) if text and text.startswith("TEXT 4#")) == [
        f"TEXT 4#{number}" for number in range(4)
    ]


def test_a_plan_that_died_anywhere_is_finished(
    new_lab: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the results are stored, before the window exists; and after, before they are committed."""
    first_run(new_lab, tmp_path)
    for number, name in enumerate(("store_results", "record_commit")):
        shutil.copytree(tmp_path / "cache", tmp_path / f"cache-{number}")
        lab = made(new_lab, tmp_path / name, TEXTS, tmp_path / f"cache-{number}")
        with monkeypatch.context() as patch:

            def die(*_arguments: object, **_options: object) -> None:
                raise KeyboardInterrupt

            patch.setattr(cached_shards, name, die)
            with pytest.raises(KeyboardInterrupt):
                lab.windows()
        if name == "record_commit":  # the plan has what it needs
            answers_in(tmp_path / f"cache-{number}").cache.clear()
            (window,) = load_windows(lab.run)
            assert not Ledger(lab.run).committed(window.cached[0].shard)
            assert sum(shard.sequences for shard in uncommitted(lab, lab.windows()[:1])) == 1
        else:
            assert sum(shard.sequences for shard in uncommitted(lab, lab.windows())) == 1
        work(lab, uncommitted(lab, lab.windows()))
        lab.publish()
        assert [row["status"] for row in lab.rows()].count("ok") == 128


@pytest.mark.parametrize("how", ["deleted", "flipped"])
def test_a_stored_result_that_is_damaged_is_computed(new_lab: Callable[..., Any], tmp_path: Path, how: str) -> None:
    first_run(new_lab, tmp_path)
    lab = made(new_lab, tmp_path / "second", TEXTS, tmp_path / "cache")
    window = lab.windows()[0]
    commit = window.cached[0]
    path = results_path(lab.run, commit.sha256)
    content = bytearray(path.read_bytes())
    path.unlink()
    if how == "flipped":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    (lab.run.commits / f"{commit.shard}.json").unlink()
    windows = lab.windows()
    assert commit.shard in [shard.id for shard in uncommitted(lab, windows)]
    work(lab, uncommitted(lab, windows))
    lab.publish()
    assert [row["status"] for row in lab.rows()].count("ok") == 128


def test_errors_are_retried_without_the_cache(new_lab: Callable[..., Any], tmp_path: Path) -> None:
    first_run(new_lab, tmp_path)
    lab = made(new_lab, tmp_path / "second", TEXTS, tmp_path / "cache")
    work(lab, uncommitted(lab, lab.windows()))
    lab.publish()
    base = published_base(lab.run, lab.output)
    window = plan_retry(lab.run, lab.dataset, lab.prompter, lab.run.id, lab.options, load_windows(lab.run), base)
    assert window is not None
    assert sum(shard.sequences for shard in window.shards) == 1
    lab.work(window.shards)
    assert window.cached == ()


def test_hit_shards_are_bounded_and_in_the_order_of_the_cache(
    new_lab: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first_run(new_lab, tmp_path)
    monkeypatch.setattr(cached_shards, "MAX_SEQUENCES", 30)
    lab = made(new_lab, tmp_path / "second", TEXTS, tmp_path / "cache")
    windows = lab.windows()
    sizes = [[commit.rows for commit in window.cached] for window in windows]
    assert sizes[0] == [30, 19]
    indexes = [shard.index for window in windows for shard in window.shards]
    assert indexes == list(np.arange(len(indexes)))
    assert sum(shard.rows for window in windows for shard in window.shards) + sum(w.folded for w in windows) >= 130
