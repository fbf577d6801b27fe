"""Lines and records: one bad line costs one row, and what is valid is preserved."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import RunError
from data.jsonl import MAX_DEPTH, JsonlChunk, Line, group_lines, parse_line, split_lines
from data.rows import BadRow


def code(text: bytes, ended: bool = True) -> str:
    found = parse_line(text, ended)
    assert isinstance(found, BadRow), found
    return found.code


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"{", "invalid_json"),
        (b'{"a": 1} x', "invalid_json"),
        (b"[1, 2]", "not_an_object"),
        (b'"text"', "not_an_object"),
        (b"null", "not_an_object"),
        (b'{"a": 1, "a": 2}', "duplicate_key"),
        (b'{"b": {"a": 1, "a": 2}}', "duplicate_key"),
        (b'{"a": NaN}', "invalid_json"),
        (b'{"a": -Infinity}', "invalid_json"),
        (b'{"a": [1e400]}', "invalid_json"),
        (b'{"a": -1e999}', "invalid_json"),
        (b'{"a": "\xff"}', "invalid_utf8"),
        (b'{"a": "\xed\xa0\x80"}', "invalid_utf8"),
        (b'{"a": "\\ud800"}', "invalid_json"),
        (b'{"\\uDC00": 1}', "invalid_json"),
        (b'{"a": ' + b"9" * 5000 + b"}", "invalid_json"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "invalid_json"),
        (b'{"a": ' + b"[" * MAX_DEPTH + b"]" * MAX_DEPTH + b"}", "invalid_json"),
        (b'{"a": "raw \x00 control"}', "invalid_json"),
    ],
)
def test_bad_lines_have_codes(text: bytes, expected: str) -> None:
    assert code(text) == expected


def test_messages_name_the_place_and_never_the_text() -> None:
    for text in (b'{"a": "SECRET', b'{"SECRET": SECRET}', b'{"a": "SECRET\xff"}', b'{"SECRET": 1, "SECRET": 2}'):
        found = parse_line(text)
        assert isinstance(found, BadRow)
        assert "SECRET" not in found.message
    found = parse_line(b'{"a": "xy\xff"}')
    assert isinstance(found, BadRow)
    assert "byte 9" in found.message


@pytest.mark.parametrize("text", [b'{"a": "x', b'{"a": tru', b'{"a": "\xe2\x82', b'{"a"'])
def test_a_last_line_that_ends_early_is_truncated(text: bytes) -> None:
    assert code(text, ended=False) == "truncated_line"
    assert code(text, ended=True) != "truncated_line"


def test_a_last_line_that_is_whole_or_plainly_wrong_is_not_truncated() -> None:
    assert parse_line(b'{"a": 1}', ended=False) == {"a": 1}
    assert code(b"nonsense", ended=False) == "invalid_json"


@pytest.mark.parametrize(
    "value",
    ["\u2028\u2029\u0085", "\0", "😀", 10**400, -(2**63) - 1, 1.5e300, [[], {}], {"": None}, True, "é" * 1000],
)
def test_what_is_valid_is_preserved(value: Any) -> None:
    for ascii_only in (True, False):
        assert parse_line(json.dumps({"a": value}, ensure_ascii=ascii_only).encode()) == {"a": value}


def test_nesting_up_to_the_limit_and_brackets_in_text_are_fine() -> None:
    deep = MAX_DEPTH - 1
    assert not isinstance(parse_line(b'{"a": ' + b"[" * deep + b"]" * deep + b"}"), BadRow)
    assert not isinstance(parse_line(json.dumps({"a": "[{" * 1000}).encode()), BadRow)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda child: st.lists(child, max_size=4) | st.dictionaries(st.text(), child, max_size=4),
    max_leaves=20,
)


@settings(deadline=None)
@given(st.dictionaries(st.text(), JSON, max_size=5))
def test_every_object_survives(record: dict[str, Any]) -> None:
    found = parse_line(json.dumps(record).encode())
    assert json.dumps(found) == json.dumps(record)


@settings(deadline=None)
@given(st.binary(max_size=200), st.booleans())
def test_no_bytes_raise(text: bytes, ended: bool) -> None:
    found = parse_line(text, ended)
    assert isinstance(found, dict | BadRow)


def texts(blocks: list[bytes], **options: int) -> list[bytes | None]:
    return [line.text for line in split_lines(blocks, **options)]


def test_line_ends_blank_lines_and_byte_order_mark() -> None:
    content = b'\xef\xbb\xbf{"a": 1}\r\n\n  \t\r\n{"a": "\xe2\x80\xa8"}\n{"b": 2}'
    lines = list(split_lines([content]))
    assert [line.text for line in lines] == [b'{"a": 1}', b'{"a": "\xe2\x80\xa8"}', b'{"b": 2}']
    assert [line.number for line in lines] == [1, 4, 5]
    assert [line.ended for line in lines] == [True, True, False]
    assert all(content[line.offset :].removeprefix(b"\xef\xbb\xbf").startswith(line.text or b"!") for line in lines)


@settings(deadline=None)
@given(st.binary(max_size=300).map(lambda data: data.replace(b"q", b"\n")), st.integers(1, 20), st.integers(1, 30))
def test_lines_do_not_depend_on_the_blocks(content: bytes, size: int, cap: int) -> None:
    blocks = [content[start : start + size] for start in range(0, len(content), size)]
    assert list(split_lines(blocks, max_line=cap)) == list(split_lines([content], max_line=cap))


@settings(deadline=None)
@given(st.lists(st.binary(max_size=40).map(lambda data: data.replace(b"\n", b" ")), max_size=20))
def test_starting_at_a_lines_offset_gives_the_rest(parts: list[bytes]) -> None:
    content = b"\n".join(parts)
    lines = list(split_lines([content]))
    for index, line in enumerate(lines):
        if line.offset:
            assert list(split_lines([content[line.offset :]], line.offset, line.number)) == lines[index:]


def test_a_line_over_the_cap_is_skipped_in_bounded_memory() -> None:
    def endless() -> Any:
        yield b'{"a": "'
        for _ in range(3000):
            yield b"x" * (1 << 16)
        yield b'"}\n{"b": 1}\n'

    import tracemalloc

    tracemalloc.start()
    lines = list(split_lines(endless(), max_line=1 << 20))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [line.text for line in lines] == [None, b'{"b": 1}']
    assert [line.number for line in lines] == [1, 2]
    assert peak < 8 << 20


def chunk(*lines: bytes, **options: Any) -> JsonlChunk:
    return JsonlChunk(
        [Line(text, n + 1, 0, True) for n, text in enumerate(lines)], "x.jsonl", **{"partition": (), **options}
    )


def test_a_chunk_gives_records_lines_and_columns() -> None:
    rows = chunk(b'{"a": 1,  "b": [1, "x"]}', b"bad", b'{"b": 2.50}', partition=(("day", "1"),))
    assert rows.lines() == ['{"a": 1,  "b": [1, "x"]}', None, '{"b": 2.50}']
    assert rows.records[0] == {"a": 1, "b": [1, "x"], "day": "1"}
    assert isinstance(rows.records[1], BadRow)
    assert "line 2 of x.jsonl" in rows.records[1].message
    schema = pa.schema(
        [
            pa.field("a", pa.int64()),
            pa.field("b", pa.string(), metadata={b"encoding": b"json"}),
            pa.field("day", pa.string()),
        ]
    )
    assert rows.arrow(schema).to_pylist() == [
        {"a": 1, "b": '[1,"x"]', "day": "1"},
        {"a": None, "b": None, "day": None},
        {"a": None, "b": "2.5", "day": "1"},
    ]
    assert rows.head(1).lines() == ['{"a": 1,  "b": [1, "x"]}']


def test_only_the_columns_asked_for_and_a_partition_that_is_also_a_key() -> None:
    assert chunk(b'{"a": 1, "b": 2}', columns=frozenset({"b"})).records == [{"b": 2}]
    (found,) = chunk(b'{"day": 1}', partition=(("day", "1"),)).records
    assert isinstance(found, BadRow)


def test_groups_are_bounded_in_rows_and_bytes() -> None:
    small = [Line(b"x", n, 0, True) for n in range(20_000)]
    assert [len(group) for group in group_lines(small)] == [8192, 8192, 3616]
    large = [Line(b"x" * (9 << 20), n, 0, True) for n in range(4)]
    assert [len(group) for group in group_lines(large)] == [2, 2]


@pytest.mark.parametrize("value", [b'"SECRET"', b"99999999999999999999", b"[1]"])
def test_a_value_that_is_not_of_the_planned_type_is_named_by_its_column(value: bytes) -> None:
    chunk = JsonlChunk([Line(b'{"a": ' + value + b"}", 1, 0, True)], "x.jsonl", ())
    with pytest.raises(RunError, match=r"x\.jsonl: column 'a' does not fit its planned type") as caught:
        chunk.arrow(pa.schema([("a", pa.int64())]))
    assert "SECRET" not in str(caught.value)


def test_a_last_line_over_the_cap_is_a_row_too() -> None:
    first, last = split_lines([b'{"a": 1}\n', b"x" * 20, b"x" * 20], max_line=30)
    assert (first.text, last.text, last.number, last.ended) == (b'{"a": 1}', None, 2, False)


def test_line_ends_and_the_mark_at_the_beginning_are_no_part_of_a_line() -> None:
    first, second = split_lines([b'\xef\xbb\xbf{"a": 1}\r\n\xef\xbb\xbf{"a": 2}\r\n'])
    assert first.text == b'{"a": 1}'
    assert second.text == b'\xef\xbb\xbf{"a": 2}'
    assert code(second.text) == "invalid_json"
