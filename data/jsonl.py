"""JSON lines: from bytes to lines in bounded memory, and from a line to a record or the reason why it is none.

One bad line costs one row, never the file; that rules out pyarrow.json, which fails the whole read. `json` from the
standard library is kept strict: duplicate keys, NaN and Infinity, raw control characters and lone surrogates are
refused, because readers of the published result would each resolve them in their own way.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import pyarrow as pa

from data.error_codes import Code
from data.errors import RunError
from data.json_types import is_json_text, json_text
from data.rows import BadRow, Record
from data.sources import Partition

MAX_LINE = 64 << 20
MAX_DEPTH = 64
CHUNK_ROWS = 8192
CHUNK_BYTES = 16 << 20
_BLANK = b" \t\r"
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Line:
    """One line that is a row. `text` is its bytes without the line end, None if it was over the cap and skipped."""

    text: bytes | None
    number: int  # 1-based in the file, blank lines counted
    offset: int  # of its first byte in the decompressed file
    ended: bool  # False only for a last line without a newline


def split_lines(blocks: Iterable[bytes], offset: int = 0, number: int = 1, max_line: int = MAX_LINE) -> Iterator[Line]:
    """The rows among the lines, in order; lines of nothing but spaces are not rows.

    Only `\\n` ends a line (`\\r\\n` included), so that U+2028 and U+0085 in a text stay in it. At most one line of up
    to `max_line` bytes and one block are held; `offset` and `number` are those of the first byte, to start midway.
    """
    pieces: list[bytes] = []
    held = 0
    start = offset
    for block in blocks:
        *whole, rest = block.split(b"\n")
        for part in whole:
            length = held + len(part)
            if length > max_line:
                yield Line(None, number, start, True)
            elif row := _row_text(b"".join((*pieces, part)) if pieces else part, start):
                yield Line(row, number, start, True)
            pieces, held = [], 0
            start += length + 1
            number += 1
        held += len(rest)
        if held > max_line:
            pieces = []  # skipped: the rest of this line is only counted
        elif rest:
            pieces.append(rest)
    if held > max_line:
        yield Line(None, number, start, False)
    elif row := _row_text(b"".join(pieces), start):
        yield Line(row, number, start, False)


def _row_text(text: bytes, offset: int) -> bytes:
    """The text without byte order mark and carriage return, empty if the line is blank."""
    if offset == 0:
        text = text.removeprefix(_BOM)
    if text.endswith(b"\r"):
        text = text[:-1]
    return text if text[:1] not in (b" ", b"\t", b"\r", b"") or text.strip(_BLANK) else b""


class _Refused(ValueError):
    """Raised inside the decoder's hooks. Its message is ours, without text of the row."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.row = BadRow(code, message)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) != len(pairs):
        raise _Refused(Code.DUPLICATE_KEY, "an object has the same key twice")
    return record


def _constant(name: str) -> None:
    raise _Refused(Code.INVALID_JSON, f"{name} is not JSON")


def _float(text: str) -> float:
    value = float(text)
    if math.isinf(value):  # 1e999: JSON allows it, and every reader would make another value of it
        raise _Refused(Code.INVALID_JSON, "a number is beyond what a float holds")
    return value


_decode = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant, parse_float=_float).decode


def parse_line(text: bytes, ended: bool = True) -> dict[str, Any] | BadRow:
    """The record of a line, or a BadRow whose message tells the place. `ended`: whether a newline followed."""
    try:
        decoded = text.decode()
    except UnicodeDecodeError as error:
        if not ended and error.end == len(text) and error.reason == "unexpected end of data":
            return BadRow(Code.TRUNCATED_LINE, "the last line ends inside a character")
        return BadRow(Code.INVALID_UTF8, f"invalid UTF-8 at byte {error.start}")
    try:
        record = _decode(decoded)
        if not isinstance(record, dict):
            return BadRow(Code.NOT_AN_OBJECT, f"a JSON {_json_name(record)}, not an object")
        if text.count(b"{") + text.count(b"[") > MAX_DEPTH:
            _check_depth(record)
        if b"\\ud" in text or b"\\uD" in text:
            json_text(record).encode()
        return record
    except _Refused as error:
        return error.row
    except json.JSONDecodeError as error:
        cut = error.pos >= len(decoded) or (decoded.lstrip()[:1] == "{" and decoded.rstrip()[-1:] != "}")
        if cut and not ended:
            return BadRow(Code.TRUNCATED_LINE, "the last line ends inside its JSON object")
        return BadRow(Code.INVALID_JSON, f"{error.msg} at character {error.pos}")
    except UnicodeEncodeError:
        return BadRow(Code.INVALID_JSON, "a \\u escape is half of a surrogate pair")
    except RecursionError:
        return BadRow(Code.INVALID_JSON, f"nested deeper than {MAX_DEPTH} levels")
    except ValueError:  # int() refuses more than 4300 digits
        return BadRow(Code.INVALID_JSON, "a number has too many digits")


def _json_name(value: Any) -> str:
    names = {type(None): "null", bool: "boolean", str: "string", list: "array"}
    return names.get(type(value), "number")


def _check_depth(record: dict[str, Any]) -> None:
    level: list[Any] = [record]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for value in level
            for child in (value.values() if isinstance(value, dict) else value)
            if isinstance(child, dict | list)
        ]
        if not level:
            return
    raise _Refused(Code.INVALID_JSON, f"nested deeper than {MAX_DEPTH} levels")


@dataclass
class JsonlChunk:
    """Rows of one JSONL file; a `data.chunk.Chunk`. Lines are parsed when first asked for."""

    source: Sequence[Line]
    file: str  # relative path, for messages
    partition: Partition
    first_row: int = 0
    bytes_read: int = 0
    columns: frozenset[str] | None = None  # keys to keep, None for all

    def __len__(self) -> int:
        return len(self.source)

    @cached_property
    def records(self) -> list[Record | BadRow]:
        return [self._record(line) for line in self.source]

    def _record(self, line: Line) -> Record | BadRow:
        if line.text is None:
            found: dict[str, Any] | BadRow = BadRow(Code.LINE_TOO_LONG, f"longer than {MAX_LINE >> 20} MiB")
        else:
            found = parse_line(line.text, line.ended)
        if isinstance(found, BadRow):
            return BadRow(found.code, f"line {line.number} of {self.file}: {found.message}")
        if self.columns is not None:
            found = {name: value for name, value in found.items() if name in self.columns}
        for name, value in self.partition:
            if name in found:
                return BadRow(Code.DUPLICATE_KEY, f"line {line.number} of {self.file}: key is also a folder's name")
            found[name] = value
        return found

    def head(self, rows: int) -> JsonlChunk:
        """The first `rows` rows."""
        return replace(self, source=self.source[:rows])

    def lines(self) -> list[str | None]:
        """Each row's verbatim text without its line end, None where it could not be parsed."""
        return [
            None if line.text is None or isinstance(record, BadRow) else line.text.decode()
            for line, record in zip(self.source, self.records, strict=True)
        ]

    def arrow(self, schema: pa.Schema) -> pa.RecordBatch:
        """The columns of `schema` (of `JsonTypes`); RunError if a value does not fit, which means the input changed."""
        rows: list[Mapping[str, Any]] = [{} if isinstance(record, BadRow) else record for record in self.records]
        arrays = []
        for column in schema:
            values = [row.get(column.name) for row in rows]
            if is_json_text(column):
                values = [None if value is None else json_text(value) for value in values]
            try:
                arrays.append(pa.array(values, column.type))
            except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
                raise RunError(f"{self.file}: column {column.name!r} does not fit its planned type") from error
        if not arrays:  # from_arrays would make a batch of no rows
            return pa.RecordBatch.from_struct_array(pa.array([{}] * len(rows), pa.struct([])))
        return pa.RecordBatch.from_arrays(arrays, schema=schema)


def group_lines(lines: Iterable[Line]) -> Iterator[list[Line]]:
    """Lines in groups of at most 8192 and, unless one line is longer, about 16 MiB."""
    group: list[Line] = []
    size = 0
    for line in lines:
        group.append(line)
        size += len(line.text or b"")
        if len(group) == CHUNK_ROWS or size >= CHUNK_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group
