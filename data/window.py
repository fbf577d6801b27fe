"""A planned window of the input on disk: which row is answered by which sequence of which shard.

`w00000.parquet` has one line a row; `w00000.keys.parquet` has one a distinct sequence and lets later windows find equal
prompts; `w00000.json` comes last, names the digests of both and makes the window exist. `r00001.json` and its parquet
are the same for a generation of retried error rows. Nothing of it changes once written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data.durable import digest_file, write_file
from data.errors import RunError
from data.ledger import Commit
from data.record_check import record_check
from data.run_folder import RunFolder
from data.shards import Shard

ROWS = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False),
        pa.field("shard", pa.int32(), nullable=False),
        pa.field("slot", pa.int32(), nullable=False),
        pa.field("occurrence", pa.int32(), nullable=False),
        pa.field("code", pa.string()),
        pa.field("message", pa.string()),
    ]
)
"""One line a row of the input. `shard` counts through all windows and is -1 for an error row, which has a code."""

KEYS = pa.schema([("hi", pa.uint64()), ("lo", pa.uint64()), ("shard", pa.int32()), ("slot", pa.int32()),
                  ("count", pa.int32())])  # fmt: skip
"""One line a distinct prompt of the window that no earlier window answers; `count` is how often it is there."""

RETRIES = pa.schema([("row", pa.int64()), ("shard", pa.int32()), ("slot", pa.int32()), ("occurrence", pa.int32()),
                     ("old_shard", pa.int32()), ("old_slot", pa.int32())])  # fmt: skip
"""One line a sequence that is computed again: a row that holds its prompt, its new place, and where its error is."""


@dataclass(frozen=True, slots=True)
class Window:
    """A window as planned. A retry has `generation` 1 or more, no rows of its own, and `index` -1."""

    index: int
    generation: int
    first_row: int
    rows: int
    shards: tuple[Shard, ...]
    errors: Mapping[str, int]
    """Rows without a prompt, by code."""
    folded: int
    """Rows that share the sequence of another row."""
    input_tokens: int
    """Tokens of all of its rows' prompts, folded or not."""
    last: bool
    bytes_read: int
    """Input bytes consumed up to the end of the window."""
    json_types: Any
    """JSONL: what `JsonTypes.from_json` takes, for the rows of this window. Parquet: None."""
    digests: Mapping[str, str]
    """SHA-256 of the parquet files, by suffix."""
    cached: tuple[Commit, ...] = ()
    """The commits of shards that the cache answered; their results were stored before the window existed."""
    priority: str | None = None
    """The expression by which its shards are ordered."""
    lengths: tuple[int, ...] = ()
    """How many rows have a prompt of what length: the bins of `data.histogram`."""
    longest: int = 0
    """Tokens of the longest prompt."""

    @property
    def name(self) -> str:
        return f"r{self.generation:05d}" if self.generation else f"w{self.index:05d}"

    @property
    def next_shard(self) -> int:
        """The first shard index that this window and those before it leave free; defined where it has shards."""
        return self.shards[-1].index + 1


def save_window(run: RunFolder, window: Window, tables: Mapping[str, pa.Table]) -> Window:
    """Write a window's tables (by suffix) and then its json. Returns the window with its digests."""
    digests = {suffix: _write_table(run, table_path(run, window, suffix), table) for suffix, table in tables.items()}
    window = Window(**{**_fields(window), "digests": digests})
    fields = json.loads(json.dumps({**asdict(window), "shards": [shard.to_json() for shard in window.shards]}))
    content = json.dumps({**fields, "check": record_check(fields)}, indent=1).encode()
    write_file(run.tmp, run.plan / f"{window.name}.json", lambda file: file.write(content), same=True)
    return window


def load_window(run: RunFolder, name: str) -> Window | None:
    """A window by its name, or None if it is not planned yet. RunError names a damaged file."""
    path = run.plan / f"{name}.json"
    try:
        fields = json.loads(path.read_bytes())
        if fields.pop("check") != record_check(fields):
            raise ValueError("changed since it was written")
        shards = tuple(Shard.from_json(shard) for shard in fields["shards"])
        cached = tuple(Commit(**commit) for commit in fields.get("cached", ()))
        lengths = tuple(fields.get("lengths", ()))
        return Window(**{**fields, "shards": shards, "cached": cached, "lengths": lengths})
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise RunError(f"{path} is damaged; start again with --fresh") from error


def read_table(run: RunFolder, window: Window, suffix: str, columns: list[str] | None = None) -> pa.Table:
    """A table of a window, checked against the digest in its json. RunError names a damaged or missing file."""
    return pq.read_table(checked_path(run, window, suffix), columns=columns)


def checked_path(run: RunFolder, window: Window, suffix: str) -> Path:
    """The path of a window's table whose bytes are those that its json names."""
    path = table_path(run, window, suffix)
    if not path.exists() or digest_file(path) != window.digests[suffix]:
        raise RunError(f"{path} is missing or damaged; start again with --fresh")
    return path


def table_path(run: RunFolder, window: Window, suffix: str) -> Path:
    return run.plan / f"{window.name}{suffix}"


def _write_table(run: RunFolder, path: Path, table: pa.Table) -> str:
    def write(file: Any) -> None:
        pq.write_table(table, file, compression="zstd", row_group_size=1 << 17)

    staged: list[str] = []
    if not write_file(run.tmp, path, write, check=lambda temporary: staged.append(digest_file(temporary))):
        if digest_file(path) == staged[0]:
            return staged[0]
        # Without its json this is the leftover of a plan that died, made by other settings or an older program.
        path.unlink()
        return _write_table(run, path, table)
    return staged[0]


def _fields(window: Window) -> dict[str, Any]:
    return {name: getattr(window, name) for name in Window.__slots__}
