"""A small laboratory for runs: real files and datasets, a prompter over bytes, answers made from prompts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.attempts import record_attempt
from data.dataset import Dataset
from data.ledger import Ledger, commit_shard
from data.manifest import Manifest
from data.plan import load_windows, plan_windows
from data.publish import publish
from data.results import result_schema
from data.rows import BadRow
from data.run_folder import RunFolder
from data.settings import InputSettings, OutputSettings
from data.sharding import PlanOptions
from data.shards import Shard, ShardPrompts, read_prompts
from data.window import Window
from tests.data.publishing import ROWS, settings


@dataclass
class Encoded:
    ids: list[Any]
    scored_from: list[int] | None
    errors: dict[int, BadRow]


@dataclass
class BytePrompter:
    """Token ids are the UTF-8 bytes of a column; an empty text has no prompt."""

    column: str = "text"
    scored: bool = False
    encoded_rows: int = 0

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.column,)

    def encode(self, records: Sequence[Mapping[str, Any] | BadRow]) -> Encoded:
        self.encoded_rows += len(records)
        ids, errors = [], {}
        for position, record in enumerate(records):
            text = "" if isinstance(record, BadRow) else str(record.get(self.column) or "")
            if isinstance(record, BadRow):
                errors[position] = record
            elif not text:
                errors[position] = BadRow("blank_prompt", "the prompt is blank")
            ids.append(np.frombuffer(text.encode(), np.uint8).astype(np.uint32))
        return Encoded(ids, [min(len(row), 1) for row in ids] if self.scored else None, errors)


def answer(prompts: ShardPrompts, fails: Callable[[str, int], bool], code: str = "nan_logits") -> pa.Table:
    """The text in capitals, a digest of occurrence beside it; an error of this code where `fails(text, occurrence)`."""
    rows = []
    for slot, (ids, occurrence) in enumerate(zip(prompts.ids, prompts.occurrences, strict=True)):
        text = bytes(ids.astype(np.uint8)).decode()
        bad = fails(text, occurrence)
        rows.append(
            {
                "slot": slot,
                "output": None if bad else f"{text.upper()}#{occurrence}",
                "status": "error" if bad else "ok",
                "code": code if bad else None,
                "message": "the logits are not numbers" if bad else None,
                "finish_reason": None if bad else "stop",
                "input_tokens": len(ids),
                "output_tokens": None if bad else len(text),
            }
        )
    # Workers finish sequences in any order.
    rows.sort(key=lambda row: hashlib.md5(str(row["slot"]).encode()).digest())
    return pa.Table.from_pylist(rows, result_schema("generate"))


def never(_text: str, _occurrence: int) -> bool:
    return False


@dataclass
class Lab:
    """One input, one run folder, one output."""

    root: Path
    source: Path
    options: PlanOptions = field(default_factory=lambda: PlanOptions("generate", 8, True, 200, window_rows=50))
    output: OutputSettings = field(default_factory=OutputSettings)
    prompter: BytePrompter = field(default_factory=BytePrompter)
    identity: dict[str, Any] = field(default_factory=lambda: {"sampling": {"seed": 0}})
    computed: list[str] = field(default_factory=list)
    results: pa.Schema = field(default_factory=lambda: result_schema("generate"))

    def __post_init__(self) -> None:
        if not self.output.path:
            self.output = OutputSettings(path=str(self.root / "out"))

    @property
    def dataset(self) -> Dataset:
        return Dataset.open(InputSettings(path=str(self.source)))

    @property
    def run(self) -> RunFolder:
        return RunFolder.create(self.root / "run", self.identity)

    @property
    def target(self) -> Path:
        return Path(self.output.path)

    def windows(self) -> list[Window]:
        return list(plan_windows(self.run, self.dataset, self.prompter, self.run.id, self.options))

    def work(
        self, shards: Sequence[Shard], fails: Callable[[str, int], bool] = never, code: str = "nan_logits"
    ) -> None:
        """Compute and commit the shards that are not committed yet."""
        for shard in Ledger(self.run).missing(shards):
            number = record_attempt(self.run, shard.id, 0)
            table = answer(read_prompts(self.run, shard.id), fails, code)
            commit_shard(self.run, shard, table, worker=0, attempt=number, seconds=0.5)
            self.computed.append(shard.id)

    def compute(self, fails: Callable[[str, int], bool] = never) -> list[Window]:
        windows = self.windows()
        for window in windows:
            self.work(window.shards, fails)
        return windows

    def publish(self, **options: Any) -> Manifest:
        windows = load_windows(self.run)
        return publish(self.run, windows, self.dataset, self.output, self.results, {"settings": {}}, **options)

    def rows(self) -> list[dict[str, Any]]:
        """The published rows."""
        if self.target.is_dir():
            parts = sorted(path for path in self.target.iterdir() if path.name[0] not in "._")
        else:
            parts = [self.target]
        return [row for part in parts for row in read(part)]


def read(part: Path) -> list[dict[str, Any]]:
    if part.suffix == ".jsonl":
        return [json.loads(line) for line in part.read_text("utf-8").split("\n")[:-1]]
    table: list[dict[str, Any]] = pq.read_table(part).to_pylist()
    return table


@pytest.fixture
def lab(tmp_path: Path) -> Callable[..., Lab]:
    """Make a `Lab` from rows (Parquet), or from the lines of a JSONL file."""

    def make(rows: Sequence[Any], **options: Any) -> Lab:
        return make_lab(tmp_path, rows, **options)

    return make


def make_lab(root: Path, rows: Sequence[Any], **options: Any) -> Lab:
    root.mkdir(exist_ok=True)
    if rows and isinstance(rows[0], str):
        source = root / "in.jsonl"
        source.write_bytes("".join(line + "\n" for line in rows).encode())
    else:
        source = root / "in.parquet"
        schema = pa.schema([("id", pa.int64()), ("text", pa.string())])
        pq.write_table(pa.Table.from_pylist(list(rows), schema), source, row_group_size=37)
    return Lab(root, source, **options)


@pytest.fixture
def new_lab() -> Callable[..., Lab]:
    """`make_lab`, for tests that need several folders."""
    return make_lab


@pytest.fixture
def done(lab: Callable[..., Any]) -> Any:
    made = lab(ROWS)
    made.output = settings(made)
    made.compute()
    return made
