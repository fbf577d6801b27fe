"""What is in a published result: formats, columns, types, whatever the input."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.audit import audit
from data.errors import InputError
from data.ledger import commit_shard
from data.results import result_schema
from data.shards import read_prompts
from tests.data.publishing import ROWS, expected, settings


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
