"""Publication: one outcome a row in order, verified, complete or partial, and what is left of the run."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.audit import audit
from data.errors import RunError
from data.publish import (
    OverBudget,
    prepare_output,
    publish,
    published,
    published_elsewhere,
    verify_published,
)
from data.settings import OutputSettings
from data.target import Target
from tests.data.publishing import ROWS, expected, settings


def test_one_row_out_for_each_row_in_order_with_the_declared_columns(done: Any) -> None:
    manifest = done.publish()
    assert done.rows() == expected(ROWS)
    assert sorted(os.listdir(done.target)) == ["_manifest.json", "part-00000.parquet"]
    schema = pq.read_schema(done.target / "part-00000.parquet")
    assert schema.names == [
        "id", "text", "output", "status", "error", "finish_reason", "input_tokens", "output_tokens",
    ]  # fmt: skip
    assert (manifest.complete, manifest.rows, manifest.ok) == (True, 300, 292)
    assert manifest.errors == {"blank_prompt": 8}
    assert manifest.tokens["computed_input"] < manifest.tokens["input"] == sum(len(row["text"]) for row in ROWS)
    assert audit(done.target).valid
    assert oct((done.target / "_manifest.json").stat().st_mode & 0o777) == "0o644"


def test_publishing_again_verifies_and_changes_nothing(done: Any) -> None:
    manifest = done.publish()
    before = {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in done.target.iterdir()}
    assert done.publish() == manifest
    assert prepare_output(done.run, done.output) == manifest == published(done.target) == verify_published(done.target)
    assert before == {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in done.target.iterdir()}
    part = done.target / "part-00000.parquet"
    content = part.read_bytes()
    part.write_bytes(content[:100] + b"x" + content[101:])
    with pytest.raises(RunError, match=r"part-00000\.parquet is damaged.* restore it from a copy.* --fresh"):
        done.publish()
    part.unlink()
    with pytest.raises(RunError, match=r"part-00000\.parquet is missing.* restore it from a copy.* --fresh"):
        done.publish()


@pytest.mark.parametrize("name", ["out", "out.jsonl"])
def test_a_result_that_is_found_survives_a_power_cut(done: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who wrote its manifest may have died before the folder of it was synced."""
    done.output = settings(done, path=str(done.root / name))
    done.publish()
    names: set[Path] = set()
    real = os.fsync

    def watched(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        names.update(path.iterdir() if path.is_dir() else ())
        real(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    assert prepare_output(done.run, done.output) is not None
    assert Target.at(done.target).manifest in names


def test_over_budget_publishes_nothing_and_a_higher_budget_computes_nothing(lab: Callable[..., Any]) -> None:
    made = lab(ROWS)
    made.output = settings(made, error_budget=0.1)
    made.compute(lambda text, _: text.endswith("5"))
    with pytest.raises(OverBudget, match=r"of 300 rows are errors \(blank_prompt 8, nan_logits 30\)"):
        made.publish()
    assert not made.target.exists()
    computed = len(made.computed)
    made.output = settings(made, error_budget=0.2)
    made.compute()
    manifest = made.publish()
    assert len(made.computed) == computed
    assert manifest.errors == {"blank_prompt": 8, "nan_logits": 30}
    assert all((row["status"] == "error") == (row["text"] == "" or row["text"][-1] == "5") for row in made.rows())


def test_folded_rows_share_an_answer_that_was_computed_once(lab: Callable[..., Any]) -> None:
    made = lab([{"id": number, "text": f"t{number % 3}"} for number in range(200)])
    windows = made.compute()
    assert sum(shard.sequences for window in windows for shard in window.shards) == 3
    made.publish()
    assert [row["output"] for row in made.rows()] == [f"T{number % 3}#0" for number in range(200)]


def test_without_folding_equal_prompts_are_told_apart_across_windows(lab: Callable[..., Any]) -> None:
    made = lab([{"id": number, "text": f"t{number % 3}"} for number in range(200)])
    made.options = replace(made.options, fold=False)
    made.compute()
    made.publish()
    assert [row["output"] for row in made.rows()] == [f"T{number % 3}#{number // 3}" for number in range(200)]


def test_an_unfinished_run_is_not_published(lab: Callable[..., Any]) -> None:
    made = lab(ROWS)
    made.output = settings(made)
    windows = made.windows()
    made.work(windows[0].shards[1:])
    with pytest.raises(RunError, match="not finished"):
        made.publish()
    with pytest.raises(RunError, match="not all windows"):
        publish(made.run, windows[:1], made.dataset, made.output, made.results, {})
    assert not made.target.exists()


def test_a_partial_result_says_so_and_is_replaced_by_the_complete_one(lab: Callable[..., Any]) -> None:
    made = lab(ROWS)
    made.output = settings(made)
    plan = made.windows()
    made.work(plan[0].shards)
    manifest = made.publish(partial=True)
    assert not manifest.complete
    rows = made.rows()
    late = [row for row in rows if row["error"] and row["error"]["code"] == "deadline"]
    assert len(late) == manifest.errors["deadline"] > 8
    assert {row["output"] for row in late} == {None}
    assert [row["id"] for row in rows] == list(range(300))
    assert audit(made.target).valid
    assert not audit(made.target).complete
    made.work([shard for window in plan for shard in window.shards][:-1])
    assert made.publish(partial=True) == manifest, "a partial result is replaced by the complete one only"
    made.work([shard for window in plan for shard in window.shards])
    assert made.publish().complete
    assert made.rows() == expected(ROWS)
    assert made.publish(partial=True).complete


def test_another_night_publishes_the_same_run_at_a_path_of_its_own(lab: Callable[..., Any]) -> None:
    made = lab(ROWS)
    windows = made.windows()
    made.work(windows[0].shards[:1])
    nights = []
    for night, done in (("01", 0), ("02", 1), ("03", len(windows))):
        made.output = OutputSettings(path=str(made.root / f"out-{night}"), error_budget=1)
        for window in windows[:done]:
            made.work(window.shards)
        nights.append(made.publish(partial=done < len(windows)))
        assert published(made.target) == nights[-1]
    assert [manifest.complete for manifest in nights] == [False, False, True]
    assert nights[0].ok < nights[1].ok < nights[2].ok
    assert published(made.root / "out-01") == nights[0]
    assert len(made.computed) == len(set(made.computed))


@pytest.mark.parametrize("name", ["out", "out.jsonl"])
def test_a_partial_result_covers_rows_that_are_not_planned(lab: Callable[..., Any], name: str) -> None:
    lines = [json.dumps({"text": f"t{number}", "n": number if number < 150 else 0.5}) for number in range(160)]
    made = lab(lines)
    made.output = settings(made, path=str(made.root / name))
    plan = made.windows()
    for window in plan[1:]:
        (made.run.plan / f"{window.name}.json").unlink()
    made.work(plan[0].shards)
    manifest = made.publish(partial=True)
    assert manifest.errors == {"deadline": 110}
    assert len(made.rows()) == 160
    if name == "out":
        assert pq.read_schema(made.target / "part-00000.parquet").field("n").type == pa.float64()


def test_a_single_file_has_its_manifest_beside_it(lab: Callable[..., Any]) -> None:
    made = lab(ROWS)
    made.output = settings(made, path=str(made.root / "answers.parquet"))
    made.compute()
    made.publish()
    assert made.rows() == expected(ROWS)
    assert sorted(os.listdir(made.root)) == ["_answers.parquet.manifest.json", "answers.parquet", "in.parquet", "run"]
    assert audit(made.target).valid
    assert made.target.stat().st_nlink == 1


def test_the_bytes_do_not_depend_on_window_shard_or_run_folder(tmp_path: Any, new_lab: Callable[..., Any]) -> None:
    contents = set()
    for name, window_rows, tokens in (("a", 50, 200), ("b", 1000, 10**6), ("c", 7, 60)):
        made = new_lab(tmp_path / name, ROWS)
        made.output = settings(made)
        made.options = replace(made.options, window_rows=window_rows, shard_tokens=tokens)
        made.compute()
        made.publish()
        contents.add((made.target / "part-00000.parquet").read_bytes())
    assert len(contents) == 1


def test_a_damaged_shard_or_a_changed_input_stops_publication(done: Any) -> None:
    shard = next(done.run.shards.iterdir())
    content = shard.read_bytes()
    shard.write_bytes(content[:-1])
    with pytest.raises(RunError, match=f"{shard.name} is damaged"):
        done.publish()
    shard.write_bytes(content)
    pq.write_table(pq.read_table(done.source).slice(0, 299), done.source)
    with pytest.raises(RunError, match="it has changed"):
        done.publish()
    assert not done.target.exists()


def test_results_of_a_published_run_whose_output_is_gone_cannot_be_made_up(done: Any) -> None:
    done.publish()
    os.rename(done.target, done.root / "moved")
    with pytest.raises(RunError, match=r"were published and deleted from .*--fresh"):
        done.publish()
    assert audit(done.root / "moved").valid


@pytest.mark.parametrize("rows", [[], [{"id": 1, "text": ""}]], ids=["no rows", "error rows alone"])
def test_a_run_without_shards_that_died_before_the_rename_is_gone_on_with(
    lab: Callable[..., Any], rows: list[dict[str, Any]]
) -> None:
    made = lab(rows)
    made.output = settings(made, error_budget=1)
    made.compute()
    manifest = made.publish()
    target = Target.at(made.target, made.run)
    target.manifest.unlink()
    made.target.rename(target.hidden("new"))
    assert prepare_output(made.run, made.output) is None
    assert not published_elsewhere(made.run, made.output)
    assert made.publish() == manifest
    assert made.rows() == expected(rows)
    made.output = settings(made, path=str(made.root / "another"), error_budget=1)
    assert made.publish().files == manifest.files
    assert sorted(os.listdir(made.root)) == ["another", "in.parquet", "out", "run"]
