"""Reading a published result: its manifest, whether its bytes are what the manifest says, and its outcomes by row."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from data.destination import Destination, destination
from data.errors import RunError
from data.manifest import Manifest, PartFile
from data.outcomes import outcome_schema
from data.output import Layout, added_schema

_BATCH_ROWS = 8192


def published(output: Path | str) -> Manifest | None:
    """The manifest at an output path, unverified; None if nothing was published there. RunError: it is damaged."""
    return destination(output).read_manifest()


def verify_published(output: Path | str) -> Manifest:
    """The manifest, after size and SHA-256 of every file were compared with it. RunError names what is wrong."""
    target = destination(output)
    manifest = target.read_manifest()
    if manifest is None:
        raise RunError(f"{target.name} has no manifest, so it is no published result")
    wrong = problems_of_files(target, manifest)
    if wrong:
        raise RunError(wrong[0])
    return manifest


def problems_of_files(
    target: Destination, manifest: Manifest, *, beside: Collection[str] = (), read: bool = False
) -> list[str]:
    """What the manifest says about files and is not so: missing, other size, other bytes, not listed.

    Files named in `beside` may be there too. With `read`, bytes are hashed anew also where a store has done it.
    """
    present = target.sizes()
    problems = problems_beside_files(target, manifest, present, beside=beside)
    for file in manifest.files:
        problems += problems_of_file(target, file, present, read=read)
    return sorted(problems)


def problems_beside_files(
    target: Destination, manifest: Manifest, present: Collection[str], *, beside: Collection[str] = ()
) -> list[str]:
    """What is wrong though every file be whole: others are there, of names in neither, or rows do not add up."""
    known = {*(file.name for file in manifest.files), *beside}
    problems = [f"{target.path_of(name)} is not in the manifest" for name in present if name not in known]
    if sum(file.rows for file in manifest.files) != manifest.rows:
        problems.append(f"{target.manifest_name}: the files' rows do not add up to {manifest.rows}")
    return problems


def problems_of_file(
    target: Destination, file: PartFile, present: Mapping[str, int | None], *, read: bool = False
) -> list[str]:
    """What the manifest says about one file and is not so, as one line; empty if it is whole."""
    path = target.path_of(file.name)
    if file.name not in present:
        return [f"{file.name} is missing from {target.name}"]
    if (size := present[file.name]) is None:
        return [f"{path} is not a regular file"]
    if size != file.bytes:
        return [f"{path} has {size} bytes, the manifest says {file.bytes}"]
    if target.sha256(file.name, read=read) != file.sha256:
        return [f"{path} is damaged: its SHA-256 is not the manifest's"]
    return []


def published_outcomes(target: Destination, manifest: Manifest, results: pa.Schema) -> Iterator[pa.RecordBatch]:
    """The outcomes of a published result by row, to be published again with some of them replaced."""
    added = added_schema(results, manifest.prefix)
    layout = Layout("parquet", pa.schema([]), added, outcome_schema(results), manifest.prefix)
    row = 0
    for table in added_tables(target, manifest, added):
        yield from layout.outcome_table(table, row).to_batches()
        row += table.num_rows


def added_tables(target: Destination, manifest: Manifest, added: pa.Schema) -> Iterator[pa.Table]:
    """The added columns of a published result, in order."""
    for part in manifest.files:
        with target.open(part.name) as file:
            if manifest.format == "parquet":
                with pq.ParquetFile(file, pre_buffer=False) as parquet:
                    for batch in parquet.iter_batches(_BATCH_ROWS, columns=added.names, use_threads=False):
                        yield pa.Table.from_batches([batch]).select(added.names).cast(added)
            else:
                yield from _from_lines(file, added)


def _from_lines(file: BinaryIO, added: pa.Schema) -> Iterator[pa.Table]:
    names: Sequence[str] = added.names
    while lines := list(islice(file, _BATCH_ROWS)):
        records = [json.loads(line) for line in lines]
        yield pa.Table.from_pylist([{name: record[name] for name in names} for record in records], added)
