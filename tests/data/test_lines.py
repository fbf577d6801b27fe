"""Lines of JSON keep what they were given and add what they must."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.lines import dump, extended, members

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
RECORDS = st.dictionaries(st.text(), VALUES, max_size=5)


@given(RECORDS, st.booleans(), st.sampled_from([None, 1, 3]))
def test_an_extended_line_is_both_objects_on_one_line(
    record: dict[str, object], ascii_: bool, indent: int | None
) -> None:
    line = json.dumps(record, ensure_ascii=ascii_, indent=indent)
    if not ascii_ and not line.isprintable():
        line = json.dumps(record, indent=indent)
    added = {"output\u2028": "x\u0085", "status": None}
    text = extended(line, dump(added))
    assert json.loads(text) == {**record, **added}
    assert not set(text) & set("\u0085\u2028\u2029")
    if indent is None:
        assert len(text.splitlines()) == 1


@given(RECORDS)
def test_members_are_the_verbatim_pieces(record: dict[str, object]) -> None:
    line = json.dumps(record, indent=2)
    found = list(members(line))
    assert [name for name, _ in found] == list(record)
    assert json.loads("{" + ",".join(text for _, text in found) + "}") == record
    assert all(text in line for _, text in found)


@pytest.mark.parametrize(
    "line",
    [
        '{"a": 1.50, "b": 1E5, "c": 10000000000000000000000001, "d": "\\u00e9\\/"}',
        '{ "a" : [ 1 , 2 ]\t}  ',
        '{"a":' + "9" * 5000 + "}",
        "{}",
        " { } ",
    ],
)
def test_the_input_is_not_rewritten(line: str) -> None:
    text = extended(line, '{"status": "ok"}')
    assert text.startswith(line.strip().rstrip("} \t"))
    assert text.endswith('"status": "ok"}')


def test_only_the_kept_members_stay() -> None:
    line = '{"a": 1.50, "b": {"a": "}"}, "c": [1, "\\"]"]}'
    assert extended(line, '{"s": 1}', {"a", "c"}) == '{"a": 1.50, "c": [1, "\\"]"], "s": 1}'
    assert extended(line, '{"s": 1}', set()) == '{"s": 1}'
    assert extended(line, "{}", {"b"}) == '{"b": {"a": "}"}}'
    assert extended(line, '{"s": 1}', {"a", "b", "c", "x"}) == line[:-1] + ', "s": 1}'


def test_values_that_json_does_not_have_are_written_plainly() -> None:
    moment = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    record = {"t": moment, "d": Decimal("1.10"), "b": b"\x00\xff", "n": [float("nan"), 1.5], "o": {"x": float("inf")}}
    assert json.loads(dump(record)) == {
        "t": "2026-01-02T03:04:05+00:00",
        "d": "1.10",
        "b": "AP8=",
        "n": [None, 1.5],
        "o": {"x": None},
    }
