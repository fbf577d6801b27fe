"""Types of JSON columns: what is kept, what becomes JSON text, and that order and merging do not matter."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import InputError
from data.json_types import MAX_FIELDS, JsonTypes, is_json_text
from data.jsonl import JsonlChunk, Line
from data.rows import BadRow


def types_of(*values: Any) -> JsonTypes:
    types = JsonTypes()
    types.observe([{"a": value} for value in values])
    return types


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([None], pa.string()),
        ([True, None], pa.bool_()),
        ([1, 2**63 - 1, -(2**63)], pa.int64()),
        ([1, 2.5], pa.float64()),
        ([1.5], pa.float64()),
        (["x", None], pa.string()),
        ([[]], pa.list_(pa.string())),
        ([[1], [None], []], pa.list_(pa.int64())),
        ([[{"b": 1}], [{"c": "x"}]], pa.list_(pa.struct([("b", pa.int64()), ("c", pa.string())]))),
        ([{"b": [1, 2.5]}, {"b": None}], pa.struct([("b", pa.list_(pa.float64()))])),
    ],
)
def test_types(values: list[Any], expected: pa.DataType) -> None:
    types = types_of(*values)
    assert types.schema().field("a").type == expected
    assert types.mixed == ()


deep: Any = 1
for _ in range(40):
    deep = [deep]


@pytest.mark.parametrize(
    "values",
    [
        [1, "x"],
        [True, 1],
        [2**63],
        [2**53 + 1, 0.5],
        [[1, "x"]],
        [{"b": 1}, {"b": "x"}],
        [{}],
        [{"b": {}}],
        [[1], {"b": 1}],
        [deep],
    ],
)
def test_what_no_type_holds_becomes_json_text(values: list[Any]) -> None:
    types = types_of(*values)
    field = types.schema().field("a")
    assert types.mixed == ("a",)
    assert field.type == pa.string()
    assert is_json_text(field)


def test_an_object_with_very_many_keys_is_a_map() -> None:
    assert types_of({str(n): 1 for n in range(MAX_FIELDS)}).mixed == ()
    assert types_of(*({str(n): 1} for n in range(MAX_FIELDS + 1))).mixed == ("a",)


def test_too_many_columns_are_refused() -> None:
    with pytest.raises(InputError, match="10,000"):
        JsonTypes().observe([{str(n): 1} for n in range(10_001)])


def test_bad_rows_count_for_nothing_and_columns_keep_their_order() -> None:
    types = JsonTypes()
    types.observe([{"z": 1}, BadRow("invalid_json", ""), {"a": None, "z": 2}])
    assert types.schema().names == ["z", "a"]


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda child: st.lists(child, max_size=3) | st.dictionaries(st.sampled_from("xyz"), child, max_size=3),
    max_leaves=8,
)
RECORDS = st.lists(st.dictionaries(st.sampled_from("abc"), VALUES, max_size=3), max_size=8)


@settings(deadline=None)
@given(RECORDS, RECORDS)
def test_merging_equals_observing_and_state_round_trips(
    first: list[dict[str, Any]], second: list[dict[str, Any]]
) -> None:
    whole, left, right = JsonTypes(), JsonTypes(), JsonTypes()
    whole.observe(first + second)
    left.observe(first)
    right.observe(second)
    right = JsonTypes.from_json(json.loads(json.dumps(right.to_json(), sort_keys=True)))
    left.merge(right)
    assert left.schema().equals(whole.schema(), check_metadata=True)


@settings(deadline=None)
@given(RECORDS)
def test_every_observed_record_fits_the_schema_and_loses_nothing(records: list[dict[str, Any]]) -> None:
    lines = [Line(json.dumps(record).encode(), 1, 0, True) for record in records]
    chunk = JsonlChunk(lines, "x.jsonl", ())
    types = JsonTypes()
    types.observe(chunk.records)
    schema = types.schema()
    rows = chunk.arrow(schema).to_pylist()
    for record, row in zip(records, rows, strict=True):
        for field in schema:
            value = record.get(field.name)
            if is_json_text(field):
                assert value is None or json.loads(row[field.name]) == value
            elif not isinstance(value, dict | list):
                assert row[field.name] == value
