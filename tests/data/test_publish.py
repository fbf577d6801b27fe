"""Publication: one outcome a row in order, the declared columns, nothing replaced that should stay."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.audit import audit
from data.errors import InputError, RunError
from data.ledger import commit_shard
from data.plan import load_windows
from data.publish import OverBudget, finish, prepare_output, publish, published, verify_published
from data.results import result_schema
from data.settings import OutputSettings
from data.shards import read_prompts

ROWS = [{"id": number, "text": f"text {number * 7 % 60}" if number % 40 else ""} for number in range(300)]


def settings(lab: Any, **changes: Any) -> OutputSettings:
    return OutputSettings(**{"path": str(lab.root / "out"), "error_budget": 0.1, **changes})


def expected(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            **row,
            "output": f"{row['text'].upper()}#0" if row["text"] else None,
            "status": "ok" if row["text"] else "error",
            "error": None if row["text"] else {"code": "blank_prompt", "message": "the prompt is blank"},
            "finish_reason": "stop" if row["text"] else None,
            "input_tokens": len(row["text"]) or None,
            "output_tokens": len(row["text"]) or None,
        }
        for row in rows
    ]


@pytest.fixture
def done(lab: Callable[..., Any]) -> Any:
    made = lab(ROWS)
    made.output = settings(made)
    made.compute()
    return made


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
    with pytest.raises(RunError, match=r"part-00000\.parquet is damaged"):
        done.publish()


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


@pytest.mark.parametrize(("form", "source"), [("parquet", "jsonl"), ("jsonl", "parquet"), ("jsonl", "jsonl")])
def test_formats_convert(lab: Callable[..., Any], form: str, source: str) -> None:
    made = lab(ROWS if source == "parquet" else [json.dumps(row) for row in ROWS])
    made.output = settings(made, format=form)
    made.compute()
    made.publish()
    assert made.rows() == expected(ROWS)
    assert audit(made.target).valid


def test_json_lines_keep_their_text_and_bad_lines_their_place(lab: Callable[..., Any]) -> None:
    lines = ['{"text": "a", "n": 1.50,  "u": "\u2028\\u00e9"}', '{"n": ', '{"text":"b","n":100000000000000000000000}']
    made = lab(lines)
    made.output = settings(made, path=str(made.root / "o.jsonl"), error_budget=1)
    made.compute()
    made.publish()
    text = made.target.read_text("utf-8").split("\n")
    assert text[0].startswith('{"text": "a", "n": 1.50,  "u": "\\u2028\\u00e9", "output": "A#0", "status": "ok"')
    assert text[2].startswith('{"text":"b","n":100000000000000000000000, "output": "B#0"')
    bad = json.loads(text[1])
    assert [bad[name] for name in ("text", "n", "u", "output", "status")] == [None, None, None, None, "error"]
    assert bad["error"]["code"] in ("invalid_json", "truncated_line")


def test_json_lines_to_parquet_have_one_schema_and_mixed_columns_as_json(lab: Callable[..., Any]) -> None:
    lines = [
        json.dumps({"text": f"t{number}", "mixed": number if number % 2 else "x", "none": None}) for number in range(90)
    ]
    made = lab(lines)
    made.compute()
    made.publish()
    schema = pq.read_schema(made.target / "part-00000.parquet")
    assert schema.field("mixed").type == schema.field("none").type == pa.string()
    assert schema.field("error").type == pa.struct([("code", pa.string()), ("message", pa.string())])
    assert [row["mixed"] for row in made.rows()[:2]] == ['"x"', "1"]


def test_include_selects_and_prefix_renames(lab: Callable[..., Any]) -> None:
    for form in ("parquet", "jsonl"):
        for rows in (ROWS, [json.dumps(row) for row in ROWS]):
            made = lab(rows)
            made.output = settings(made, include=("id",), prefix="llm_", format=form, path=str(made.root / form))
            made.compute()
            made.publish()
            keys = list(made.rows()[0])
            assert keys[0] == "id"
            assert all(key.startswith("llm_") for key in keys[1:])
            assert audit(made.target).valid
            for path in (made.run.path, made.target, made.source):
                os.rename(path, made.root / f"{path.name}.{form}.{len(os.listdir(made.root))}")


def test_an_input_column_named_like_an_added_one_is_refused(lab: Callable[..., Any]) -> None:
    made = lab([json.dumps({"text": "a", "status": "x"})])
    made.compute()
    with pytest.raises(InputError, match=r"column 'status'.*output\.prefix"):
        made.publish()
    made.output = settings(made, include=("nope",))
    with pytest.raises(InputError, match="'nope'; the input has the columns text, status"):
        made.publish()
    made.output = settings(made, include=("text",))
    made.publish()
    assert made.rows()[0]["status"] == "ok"


def test_an_empty_input_gives_an_empty_valid_result(lab: Callable[..., Any]) -> None:
    made = lab([])
    made.compute()
    assert made.publish().rows == 0
    table = pq.read_table(made.target / "part-00000.parquet")
    assert (table.num_rows, table.schema.names[:3]) == (0, ["id", "text", "output"])
    assert audit(made.target).valid


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        (result_schema("classify", None, ("yes", "Yes", "no way")), {"yes": 0.5, "Yes": 0.25, "no way": 0.25}),
        (result_schema("embed", 3), [0.5, -1.25, 3.0]),
        (result_schema("score"), -2.5),
    ],
)
def test_columns_of_the_other_kinds(lab: Callable[..., Any], schema: pa.Schema, value: Any) -> None:
    made = lab(ROWS, results=schema)
    made.output = settings(made)
    for window in made.windows():
        for shard in window.shards:
            count = len(read_prompts(made.run, shard.id))
            rows = [{"slot": slot, "status": "ok", schema.names[8]: value} for slot in range(count)]
            commit_shard(made.run, shard, pa.Table.from_pylist(rows, schema), worker=0, attempt=1, seconds=1)
    made.publish()
    assert [row[schema.names[8]] for row in made.rows()] == [value if row["text"] else None for row in ROWS]
    column = pq.read_schema(made.target / "part-00000.parquet").field(schema.names[8])
    assert column.type == schema.field(8).type


def test_another_result_or_foreign_files_are_replaced_only_with_fresh(
    tmp_path: Any, new_lab: Callable[..., Any]
) -> None:
    first = new_lab(tmp_path / "a", ROWS[:50], output=OutputSettings(path=str(tmp_path / "out"), error_budget=1))
    first.compute()
    old = first.publish()
    second = new_lab(tmp_path / "b", ROWS, output=first.output, identity={"other": 1})
    second.compute()
    with pytest.raises(InputError, match=r"result of another run; .*--fresh"):
        second.publish()
    with pytest.raises(InputError, match="--fresh"):
        prepare_output(second.run, second.output)
    assert verify_published(tmp_path / "out") == old
    assert prepare_output(second.run, second.output, fresh=True) is None
    assert verify_published(tmp_path / "out") == old, "the old result stays until the new one is complete"
    assert second.publish().run == second.run.id, "the permission outlives the process that gave it"
    assert second.rows() == expected(ROWS)
    assert sorted(os.listdir(tmp_path)) == ["a", "b", "out"]
    (tmp_path / "out" / "_manifest.json").unlink()
    (tmp_path / "out" / "part-00000.parquet").write_text("mine")
    with pytest.raises(InputError, match="is not empty and not a result"):
        second.publish()


@pytest.mark.parametrize("name", ["thesis.docx", ".git", "_notes", "part-00000.parquet.bak"])
def test_files_that_are_no_result_are_not_replaced_with_fresh_either(done: Any, name: str) -> None:
    done.publish()
    (done.target / name).mkdir()
    (done.target / name / "precious").write_text("mine")
    (done.target / "_manifest.json").unlink()
    (done.target / "part-00000.parquet").write_text("another result's")
    with pytest.raises(InputError, match=f"no part of a result.*--fresh.*{re.escape(name)}"):
        prepare_output(done.run, done.output, fresh=True)
    assert (done.target / name / "precious").read_text() == "mine"


def test_a_file_that_is_no_result_is_not_replaced_with_fresh_either(done: Any) -> None:
    done.output = settings(done, path=str(done.root / "mine.jsonl"))
    (done.root / "mine.jsonl").write_text("precious")
    with pytest.raises(InputError, match=r"no part of a result.*mine\.jsonl"):
        done.publish(fresh=True)
    assert (done.root / "mine.jsonl").read_text() == "precious"


def test_an_empty_output_folder_is_used(done: Any) -> None:
    done.target.mkdir()
    done.publish()
    assert done.rows() == expected(ROWS)


def test_the_wrong_sort_of_output_is_refused(done: Any) -> None:
    done.target.write_text("a file")
    with pytest.raises(InputError, match="is a file; set it to another name"):
        done.publish()
    done.output = settings(done, path="https://bucket/out")
    with pytest.raises(InputError, match="has the scheme https://"):
        done.publish()


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
