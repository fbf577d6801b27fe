"""The audit of a published result: everything its manifest says, checked again from the bytes.

Nothing but the output is read, so that a result can be audited wherever it was copied to.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data.destination import destination
from data.errors import RunError
from data.manifest import Manifest, PartFile
from data.published import problems_beside_files, problems_of_file
from data.results import ERROR, OK

_BATCH_ROWS = 8192


@dataclass(frozen=True, slots=True)
class AuditReport:
    """What an audit found. `problems` are one line each; `rows`, `ok` and `errors` are those of the bytes.

    They are of the `counted` files out of `files` that are whole, and as the manifest says.
    """

    path: str
    problems: list[str]
    run: str | None = None
    complete: bool = False
    files: int = 0
    counted: int = 0
    rows: int = 0
    ok: int = 0
    errors: dict[str, int] = field(default_factory=dict)

    @property
    def valid(self) -> bool:
        return not self.problems


def audit(output: Path | str) -> AuditReport:
    """Check hashes, row counts, schema, and that every row is either answered or an error with a code.

    Problems are reported, not raised. InputError if the path is not one of a result.
    """
    target = destination(output)
    try:
        manifest = target.read_manifest()
    except RunError as error:
        return AuditReport(target.name, [str(error)])
    if manifest is None:
        return AuditReport(target.name, [f"{target.name} has no manifest, so it is no published result"])
    present = target.sizes()
    problems = problems_beside_files(target, manifest, present)
    counts: Counter[str] = Counter()
    counted = 0
    for file in manifest.files:
        found = Counter[str]()
        wrong = problems_of_file(target, file, present, read=True)
        if not wrong:
            with target.open(file.name) as opened:
                wrong = _audit_file(opened, target.path_of(file.name), file, manifest, found)
        if not wrong:
            counts += found
            counted += 1
        problems += wrong
    if counted == len(manifest.files):
        problems += _compare(manifest, counts, target.manifest_name)
    errors = {code: count for code, count in sorted(counts.items()) if code != OK}
    return AuditReport(
        target.name,
        sorted(problems),
        manifest.run,
        manifest.complete,
        len(manifest.files),
        counted,
        counts.total(),
        counts[OK],
        errors,
    )


def _compare(manifest: Manifest, counts: Counter[str], name: str) -> list[str]:
    """The counts of the bytes against the manifest's."""
    problems = []
    found = {code: count for code, count in counts.items() if code != OK}
    if counts[OK] != manifest.ok:
        problems.append(f"{name} says {manifest.ok} rows are ok, the files hold {counts[OK]}")
    if found != dict(manifest.errors):
        problems.append(f"{name} says the errors are {dict(manifest.errors)}, the files hold {found}")
    if manifest.ok + sum(manifest.errors.values()) != manifest.rows:
        problems.append(f"{name}: ok and error rows do not add up to {manifest.rows}")
    return problems


def _audit_file(opened: BinaryIO, path: str, file: PartFile, manifest: Manifest, counts: Counter[str]) -> list[str]:
    problems = []
    if manifest.format == "parquet":
        schema = pq.read_schema(opened)
        opened.seek(0)
        columns = [{"name": column.name, "type": str(column.type)} for column in schema]
        if columns != [dict(column) for column in manifest.columns]:
            return [f"{path} has other columns than the manifest says"]
    rows = 0
    for status, code in _statuses(opened, manifest):
        rows += len(status)
        ok = pc.and_(pc.fill_null(pc.equal(status, OK), False), pc.is_null(code))
        failed = pc.and_(pc.fill_null(pc.equal(status, ERROR), False), pc.is_valid(code))
        counts[OK] += pc.sum(ok).as_py() or 0
        for entry in code.filter(failed).value_counts().to_pylist():
            counts[entry["values"]] += entry["counts"]
        wrong = len(status) - (pc.sum(pc.or_(ok, failed)).as_py() or 0)
        if wrong:
            problems.append(f"{path}: {wrong} rows before row {rows} are neither ok nor an error with a code")
    if rows != file.rows:
        problems.append(f"{path} holds {rows} rows, the manifest says {file.rows}")
    return problems


def _statuses(file: BinaryIO, manifest: Manifest) -> Iterator[tuple[pa.Array, pa.Array]]:
    """Status and error code of a file's rows, a batch at a time."""
    status, error = f"{manifest.prefix}status", f"{manifest.prefix}error"
    if manifest.format == "parquet":
        with pq.ParquetFile(file, pre_buffer=False) as parquet:
            for batch in parquet.iter_batches(_BATCH_ROWS, columns=[status, error], use_threads=False):
                yield batch.column(status), pc.struct_field(batch.column(error), "code")
        return
    while batch_ := [json.loads(line) for line in islice(file, _BATCH_ROWS)]:
        yield _of_records(batch_, status, error)


def _of_records(records: list[dict[str, Any]], status: str, error: str) -> tuple[pa.Array, pa.Array]:
    codes = [(record.get(error) or {}).get("code") for record in records]
    return pa.array([record.get(status) for record in records], pa.string()), pa.array(codes, pa.string())
