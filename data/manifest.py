"""The manifest of a published result: the evidence that it is there, written last.

It names every file with its digest and every count that the files must add up to. Whoever reads a result trusts the
manifest and nothing else: without one there is no result. The digest in it guards its own bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from data.errors import RunError
from data.record_check import record_check

VERSION = 1


@dataclass(frozen=True, slots=True)
class PartFile:
    """A file of a result: its name in the result's folder, its rows, size in bytes and SHA-256."""

    name: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a published result holds."""

    run: str
    complete: bool
    rows: int
    ok: int
    errors: Mapping[str, int]
    """Error rows by code."""
    tokens: Mapping[str, int]
    """`input` and `output`: over all rows. `computed_input`, `computed_output`: over what the model computed."""
    files: tuple[PartFile, ...]
    format: str
    columns: tuple[Mapping[str, str], ...]
    """Name and Arrow type of every column, in order. JSONL: what the values are read as."""
    prefix: str
    """What stands before the names of the added columns."""
    retries: int = 0
    """Generations of retried error rows that it includes."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """What the caller adds: settings, digests, timings."""

    @property
    def digest(self) -> str:
        """Identifies the result by the bytes of its files."""
        return content_digest({part.name: part.sha256 for part in self.files})

    def to_bytes(self) -> bytes:
        fields = {"version": VERSION, **asdict(self)}
        extra = fields.pop("extra")
        record = {**extra, **fields, "error_rows": sum(self.errors.values())}
        return json.dumps({**record, "check": record_check(record)}, indent=1).encode()

    @classmethod
    def from_bytes(cls, content: bytes, name: str) -> Manifest:
        """RunError if the bytes are not a manifest or were changed since; `name` is for the message."""
        try:
            record = json.loads(content)
            check = record.pop("check")
            if check != record_check(record) or record.pop("version") != VERSION:
                raise RunError(f"{name} is damaged or of another version; run with --fresh to replace the result")
            del record["error_rows"]
            known = {key: record.pop(key) for key in cls.__slots__ if key in record}
            known["files"] = tuple(PartFile(**part) for part in known["files"])
            known["columns"] = tuple(known["columns"])
            return cls(**known, extra=record)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise RunError(f"{name} is not a manifest; run with --fresh to replace the result") from error


def content_digest(files: Mapping[str, str]) -> str:
    """Digest of a set of files given as name to SHA-256."""
    listing = "\n".join(f"{sha256} {name}" for name, sha256 in sorted(files.items()))
    return hashlib.sha256(listing.encode()).hexdigest()
