"""Reading a published result: its manifest, whether its bytes are what the manifest says, and its outcomes by row."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from data.durable import digest_file
from data.errors import RunError
from data.manifest import Manifest
from data.outcomes import outcome_schema
from data.output import Layout, added_schema
from data.target import Target

_BATCH_ROWS = 8192


def published(output: Path | str) -> Manifest | None:
    """The manifest at an output path, unverified; None if nothing was published there. RunError: it is damaged."""
    return Target.at(output).read_manifest()


def verify_published(output: Path | str) -> Manifest:
    """The manifest, after size and SHA-256 of every file were compared with it. RunError names what is wrong."""
    target = Target.at(output)
    manifest = target.read_manifest()
    if manifest is None:
        raise RunError(f"{target.path} has no manifest, so it is no published result")
    wrong = problems_of_files(target, manifest)
    if wrong:
        raise RunError(wrong[0])
    return manifest


def problems_of_files(target: Target, manifest: Manifest) -> list[str]:
    """What the manifest says about files and is not so: missing, other size, other bytes, not listed."""
    present = target.parts()
    listed = {file.name for file in manifest.files}
    problems = [f"{path} is not in the manifest" for name, path in present.items() if name not in listed]
    for file in manifest.files:
        path = present.get(file.name)
        if path is None:
            problems.append(f"{file.name} is missing from {target.path}")
        elif not path.is_file() or path.is_symlink():
            problems.append(f"{path} is not a regular file")
        elif os.path.getsize(path) != file.bytes:
            problems.append(f"{path} has {os.path.getsize(path)} bytes, the manifest says {file.bytes}")
        elif digest_file(path) != file.sha256:
            problems.append(f"{path} is damaged: its SHA-256 is not the manifest's")
    if sum(file.rows for file in manifest.files) != manifest.rows:
        problems.append(f"{target.manifest}: the files' rows do not add up to {manifest.rows}")
    return sorted(problems)


def published_outcomes(target: Target, manifest: Manifest, results: pa.Schema) -> Iterator[pa.RecordBatch]:
    """The outcomes of a published result by row, to be published again with some of them replaced."""
    added = added_schema(results, manifest.prefix)
    layout = Layout("parquet", pa.schema([]), added, outcome_schema(results), manifest.prefix)
    row = 0
    for table in added_tables(target, manifest, added):
        yield from layout.outcome_table(table, row).to_batches()
        row += table.num_rows


def added_tables(target: Target, manifest: Manifest, added: pa.Schema) -> Iterator[pa.Table]:
    """The added columns of a published result, in order."""
    present = target.parts()
    for file in manifest.files:
        if manifest.format == "parquet":
            with pq.ParquetFile(present[file.name], pre_buffer=False) as parquet:
                for batch in parquet.iter_batches(_BATCH_ROWS, columns=added.names, use_threads=False):
                    yield pa.Table.from_batches([batch]).select(added.names).cast(added)
        else:
            yield from _from_lines(present[file.name], added)


def _from_lines(path: Path, added: pa.Schema) -> Iterator[pa.Table]:
    names: Sequence[str] = added.names
    with open(path, encoding="utf-8", newline="\n") as file:
        while lines := list(islice(file, _BATCH_ROWS)):
            records = [json.loads(line) for line in lines]
            yield pa.Table.from_pylist([{name: record[name] for name in names} for record in records], added)
