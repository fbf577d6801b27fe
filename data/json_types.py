"""The Arrow types of JSON columns, settled by looking at every value once, before anything is written.

JSON declares no types, and a published table must have the same schema in every file. So the plan observes all records
and the widest type that loses nothing wins: null < bool | int64 < float64 | string | list<T> | struct. Columns that no
such type holds (a conflict, an integer beyond int64, an object without keys, very many keys) become JSON text, marked
in the field's metadata; they are named in `mixed`, so that the user is warned. The outcome does not depend on the
order in which observations are merged, except for the order of the columns, which is that of first appearance.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from data.errors import InputError
from data.rows import BadRow, Record

JSON_TEXT = {b"encoding": b"json"}
"""Metadata of a string field whose values are JSON texts."""

MAX_COLUMNS = 10_000
MAX_FIELDS = 256  # of one struct; more are taken for a map, which JSON text holds better
MAX_NESTING = 32  # Arrow refuses to read schemas nested deeper than 64
_INT64 = range(-(1 << 63), 1 << 63)
_EXACT = range(-(1 << 53), (1 << 53) + 1)  # integers that float64 holds exactly
_SCALARS: dict[type, str] = {bool: "bool", float: "float", str: "string"}


def is_json_text(field: pa.Field) -> bool:
    """Whether the column's strings are JSON texts rather than the values themselves."""
    return bool(field.metadata and field.metadata.get(b"encoding") == b"json")


def json_text(value: Any) -> str:
    """Compact JSON of a value, non-ASCII characters as they are."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


class _Shape:
    """What has been seen at one place in the records."""

    __slots__ = ("element", "fields", "kinds")

    def __init__(self) -> None:
        self.kinds: set[str] = set()  # bool, int, wide (not exact in float64), big (beyond int64), float, string, ...
        self.element: _Shape | None = None
        self.fields: dict[str, _Shape] = {}

    def observe(self, value: Any) -> None:
        kind = _SCALARS.get(type(value))
        if kind is not None:
            self.kinds.add(kind)
        elif isinstance(value, int):
            self.kinds.add("int" if value in _EXACT else "wide" if value in _INT64 else "big")
        elif isinstance(value, list):
            self.kinds.add("list")
            self.element = self.element or _Shape()
            for child in value:
                self.element.observe(child)
        elif isinstance(value, Mapping):
            self.kinds.add("struct")
            if len(self.fields) <= MAX_FIELDS:
                for name, child in value.items():
                    self.field(name).observe(child)
        else:
            assert value is None, type(value)

    def field(self, name: str) -> _Shape:
        shape = self.fields.get(name)
        if shape is None:
            shape = self.fields[name] = _Shape()
        return shape

    def merge(self, other: _Shape) -> None:
        self.kinds |= other.kinds
        if other.element:
            self.element = self.element or _Shape()
            self.element.merge(other.element)
        for name, shape in other.fields.items():
            self.field(name).merge(shape)

    def type(self, depth: int = 0) -> pa.DataType | None:
        """The Arrow type, None if only JSON text holds all that was seen."""
        if depth > MAX_NESTING:
            return None
        match sorted(self.kinds):
            case []:
                return pa.string()  # never a value: a type that every reader of the result understands
            case ["bool"]:
                return pa.bool_()
            case ["string"]:
                return pa.string()
            case ["float"] | ["float", "int"]:
                return pa.float64()
            case ["int"] | ["wide"] | ["int", "wide"]:
                return pa.int64()
            case ["list"]:
                assert self.element is not None
                element = self.element.type(depth + 1)
                return None if element is None else pa.list_(element)
            case ["struct"] if 0 < len(self.fields) <= MAX_FIELDS:
                types = {name: shape.type(depth + 1) for name, shape in self.fields.items()}
                return None if None in types.values() else pa.struct(list(types.items()))
        return None

    def to_json(self) -> dict[str, Any]:
        return {
            "kinds": sorted(self.kinds),
            "element": self.element.to_json() if self.element else None,
            # A list, because a JSON object's key order is lost by writers that sort keys.
            "fields": [[name, shape.to_json()] for name, shape in self.fields.items()],
        }

    @classmethod
    def from_json(cls, state: Mapping[str, Any]) -> _Shape:
        shape = cls()
        shape.kinds = set(state["kinds"])
        shape.element = cls.from_json(state["element"]) if state["element"] else None
        shape.fields = {name: cls.from_json(child) for name, child in state["fields"]}
        return shape


class JsonTypes:
    """Observed types of the columns of JSON records; mergeable, and storable as JSON."""

    def __init__(self) -> None:
        self._columns: dict[str, _Shape] = {}

    def observe(self, records: Iterable[Record | BadRow]) -> None:
        """Look at every value of `records`; bad rows count for nothing. InputError above 10,000 columns."""
        columns = self._columns
        for record in records:
            if isinstance(record, BadRow):
                continue
            for name, value in record.items():
                shape = columns.get(name)
                if shape is None:
                    shape = columns[name] = _Shape()
                    check_keys(len(columns))
                if type(value) is not str or "string" not in shape.kinds:
                    shape.observe(value)

    def merge(self, other: JsonTypes) -> None:
        """Add what `other` has seen; its new columns come after ours. InputError above 10,000 columns."""
        for name, shape in other._columns.items():
            self._columns.setdefault(name, _Shape()).merge(shape)
        check_keys(len(self._columns))

    def schema(self) -> pa.Schema:
        """One nullable field a column, in the order of first appearance."""
        return pa.schema([self._field(name, shape) for name, shape in self._columns.items()])

    @property
    def mixed(self) -> tuple[str, ...]:
        """The columns that become JSON text."""
        return tuple(name for name, shape in self._columns.items() if shape.type() is None)

    def to_json(self) -> dict[str, Any]:
        """The observations as plain JSON values; `from_json` restores them."""
        return {"columns": [[name, shape.to_json()] for name, shape in self._columns.items()]}

    @classmethod
    def from_json(cls, state: Mapping[str, Any]) -> JsonTypes:
        types = cls()
        types._columns = {name: _Shape.from_json(shape) for name, shape in state["columns"]}
        return types

    @staticmethod
    def _field(name: str, shape: _Shape) -> pa.Field:
        found = shape.type()
        return pa.field(name, pa.string(), metadata=JSON_TEXT) if found is None else pa.field(name, found)


def check_keys(count: int) -> None:
    """InputError if the records have more different keys than a table can have columns."""
    if count > MAX_COLUMNS:
        raise InputError(
            f"the records have more than {MAX_COLUMNS:,} different keys: put those that vary from row to row into "
            "one object, or name the ones to read in input.columns"
        )
