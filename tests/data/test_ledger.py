"""Commits: durable data first, the first record wins, wrong results are refused, damage is named."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from data.attempts import attempts, record_attempt
from data.durable import sync_folder
from data.errors import RunError
from data.ledger import Commit, Ledger, commit_shard, read_results, results_path
from data.results import BASE, result_schema
from data.shards import prompts_path


def results(sequences: int, **changes: Any) -> pa.Table:
    rows = [
        {"slot": slot, "output": f"o{slot}", "status": "ok", "code": None, "message": None, "finish_reason": "stop",
         "input_tokens": 3, "output_tokens": 2}
        for slot in reversed(range(sequences))
    ]  # fmt: skip
    rows[0].update(changes)
    return pa.Table.from_pylist(rows, result_schema("generate"))


@pytest.fixture
def planned(lab: Callable[..., Any]) -> Any:
    made = lab([{"id": number, "text": f"t{number}"} for number in range(40)])
    made.shard = made.windows()[0].shards[0]
    return made


def test_a_commit_names_durable_results_and_drops_the_prompts(planned: Any) -> None:
    run, shard = planned.run, planned.shard
    table = results(shard.sequences, status="error", code="nan_logits", output=None)
    commit = commit_shard(run, shard, table, worker=3, attempt=2, seconds=1.25)
    assert (commit.rows, commit.ok, commit.errors) == (shard.sequences, shard.sequences - 1, 1)
    assert commit.tokens == {"input": 3 * shard.sequences, "output": 2 * shard.sequences, "shared": 0}
    record = json.loads((run.commits / f"{shard.id}.json").read_bytes())
    assert {"shard", "sha256", "rows", "ok", "errors", "tokens", "seconds", "worker", "attempt"} <= record.keys()
    assert read_results(run, commit)["slot"].to_pylist() == list(range(shard.sequences))
    assert results_path(run, commit.sha256).stat().st_mode & 0o777 == 0o600
    assert not prompts_path(run, shard.id).exists()
    ledger = Ledger(run)
    assert ledger.commits() == {shard.id: commit}
    ledger.verify()


@pytest.mark.parametrize(
    "counted",
    [
        lambda _, run, shard: Ledger(run).commits()[shard],
        lambda ledger, _, shard: ledger.commits()[shard],
        lambda ledger, _, shard: ledger.committed(shard),
    ],
    ids=["a new start", "a list", "one shard"],
)
def test_a_record_that_a_killed_worker_has_named_is_durable_before_it_counts(
    planned: Any, monkeypatch: pytest.MonkeyPatch, counted: Callable[..., Any]
) -> None:
    """The worker died between the name and the sync: what counts it, such as a partial result, must not outlive it."""
    run, shard, ledger = planned.run, planned.shard, Ledger(planned.run)

    class Killed(BaseException):
        pass

    def killed(folder: Path) -> None:
        if folder == run.commits:
            raise Killed
        sync_folder(folder)

    with monkeypatch.context() as patch:
        patch.setattr("data.durable.sync_folder", killed)
        with pytest.raises(Killed):
            commit_shard(run, shard, results(shard.sequences), worker=0, attempt=1, seconds=1)
    durable = set[str]()

    def watched(descriptor: int) -> None:
        if os.path.samestat(os.fstat(descriptor), run.commits.stat()):
            durable.update(os.listdir(run.commits))

    monkeypatch.setattr(os, "fsync", watched)
    assert counted(ledger, run, shard.id)
    assert durable == {f"{shard.id}.json"}


def test_the_first_commit_counts_and_a_late_one_changes_nothing(planned: Any) -> None:
    run, shard = planned.run, planned.shard
    first = commit_shard(run, shard, results(shard.sequences), worker=0, attempt=1, seconds=1)
    late = commit_shard(run, shard, results(shard.sequences, output="other"), worker=1, attempt=2, seconds=9)
    assert late == first
    assert Ledger(run).commits() == {shard.id: first}


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda table: table.slice(1), "results for"),
        (lambda table: pa.concat_tables([table.slice(1), table.slice(1, 1)]), "one result for each"),
        (lambda table: table.drop_columns("finish_reason"), "columns"),
        (lambda _: results(20, status="fine"), "neither ok"),
        (lambda _: results(20, status="error"), "neither ok"),
        (lambda _: results(20, code="nan_logits"), "neither ok"),
    ],
)
def test_results_that_are_not_the_shards_are_refused(planned: Any, spoil: Any, says: str) -> None:
    run, shard = planned.run, planned.shard
    table = spoil(results(shard.sequences))
    if table.num_rows == 20:
        assert shard.sequences == 20
    with pytest.raises(RunError, match=says):
        commit_shard(run, shard, table, worker=0, attempt=1, seconds=1)
    assert not Ledger(run).committed(shard.id)
    assert not list(run.shards.iterdir())
    assert not list(run.tmp.iterdir())
    assert prompts_path(run, shard.id).exists()


def test_results_that_do_not_read_back_as_they_were_are_refused(planned: Any) -> None:
    run, shard = planned.run, planned.shard
    table = results(shard.sequences)
    seconds = pa.array([0] * shard.sequences, pa.timestamp("s"))  # a Parquet file holds no such type
    with pytest.raises(RunError, match="reads back with another schema"):
        commit_shard(run, shard, table.append_column("at", seconds), worker=0, attempt=1, seconds=1)
    assert not list(run.shards.iterdir())
    assert prompts_path(run, shard.id).exists()


def test_results_of_another_count_than_committed_are_refused(planned: Any) -> None:
    run, shard = planned.run, planned.shard
    commit = commit_shard(run, shard, results(shard.sequences), worker=0, attempt=1, seconds=1)
    with pytest.raises(RunError, match=f"{commit.sha256}.parquet has 20 results for 21 sequences"):
        read_results(run, replace(commit, rows=shard.sequences + 1))


def test_attempts_are_counted_across_processes(planned: Any) -> None:
    run = planned.run
    assert attempts(run, "a") == 0
    assert [record_attempt(run, "a", 0), record_attempt(run, "a", 1), record_attempt(run, "b", 0)] == [1, 2, 1]
    assert attempts(planned.run, "a") == 2


def test_every_flipped_bit_of_committed_data_is_found_and_named(planned: Any) -> None:
    run, shard = planned.run, planned.shard
    commit = commit_shard(run, shard, results(shard.sequences), worker=0, attempt=1, seconds=1)
    path = results_path(run, commit.sha256)
    content = path.read_bytes()
    for position in range(0, len(content), 97):
        path.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
        with pytest.raises(RunError, match=f"{commit.sha256}.parquet is damaged"):
            Ledger(run).verify()
    path.unlink()
    with pytest.raises(RunError, match=f"{commit.sha256}.parquet is missing"):
        Ledger(run).verify()


def test_a_damaged_record_is_named_and_never_counted(planned: Any) -> None:
    run, shard = planned.run, planned.shard
    commit = commit_shard(run, shard, results(shard.sequences), worker=0, attempt=1, seconds=1)
    path = run.commits / f"{shard.id}.json"
    content = path.read_text()
    for spoiled in ("", content[:20], content.replace(f'"ok": {commit.ok}', '"ok": 1'), content.replace(shard.id, "x")):
        assert spoiled != content
        path.write_text(spoiled)
        with pytest.raises(RunError, match=f"{shard.id}.json is damaged"):
            Ledger(run)
    path.write_text(content)
    (run.commits / "other.json").write_text(content)
    with pytest.raises(RunError, match=r"other\.json is damaged"):
        Commit.read(run.commits / "other.json")


def test_the_schema_of_a_kind_begins_with_the_base_columns() -> None:
    for kind, size, choices in (
        ("generate", None, ()),
        ("classify", None, ("a", "b")),
        ("embed", 4, ()),
        ("score", None, ()),
    ):
        schema = result_schema(kind, size, choices)  # type: ignore[arg-type]
        assert schema.names[: len(BASE)] == BASE.names
    assert result_schema("embed", 4).field("embedding").type == pa.list_(pa.float32(), 4)
    assert result_schema("classify", None, ("yes", "Yes")).field("probabilities").type.num_fields == 2
