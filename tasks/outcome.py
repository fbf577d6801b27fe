"""How a run ended, as a report: published now or earlier, or failed; with its accuracy where the answers are known."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data.destination import Destination, destination
from data.error_codes import Code
from data.manifest import Manifest
from data.output import ERROR_TYPE
from data.plan import rows_without_prompt
from tasks.devices import worker_devices
from tasks.hits import Hits
from tasks.job import Job
from tasks.run import OpenRun
from tasks.summary import RunReport

ROWS_SHOWN = 10
BATCH_ROWS = 8192


def verified_report(run: OpenRun) -> RunReport:
    """The report of a run whose complete result was there before, and has been verified."""
    assert run.finished is not None
    return published_report(
        run.job, run.finished, seconds=time.monotonic() - run.started, message="published before; verified"
    )


def partial_message(run: OpenRun, manifest: Manifest) -> str | None:
    """What a report says of what the deadline left undone; None if that is nothing.

    The result at the output is the one of the first deadline that came: it is replaced once, by the complete one.
    """
    if manifest.complete:
        again = run.late and run.job.options.retry_errors
        return (
            "the deadline came before all errors were computed again; --retry-errors goes on with them"
            if again
            else None
        )
    answered = f"{manifest.errors.get(Code.DEADLINE, 0):,} of {manifest.rows:,} rows had no answer at the deadline"
    done = run.answered_rows
    kept = done - (manifest.rows - manifest.errors.get(Code.DEADLINE, 0))
    return answered + (f"; {kept:,} of them are answered since and kept for the complete result" if kept > 0 else "")


def published_report(
    job: Job,
    manifest: Manifest,
    *,
    seconds: float,
    message: str | None = None,
    resumed_rows: int = 0,
    hits: Hits | None = None,
) -> RunReport:
    """The report of a published result."""
    target = destination(job.output.path)
    return RunReport(
        state="completed" if manifest.complete else "partial",
        run_id=manifest.run,
        folder=str(job.run_path),
        output=target.name,
        manifest=target.manifest_name,
        rows=manifest.rows,
        ok=manifest.ok,
        errors=dict(manifest.errors),
        error_rows=error_rows(target, manifest),
        input_tokens=manifest.tokens.get("input", 0),
        output_tokens=manifest.tokens.get("output", 0),
        seconds=seconds,
        resumed_rows=resumed_rows,
        workers=job.placement.workers,
        device=job.placement.device,
        accuracy=accuracy(job, target, manifest),
        accuracy_label=job.settings.job.expected or "",
        resume_command=job.command,
        message=message,
        warnings=job.warnings,
        hits=hits,
    )


def failed_report(run: OpenRun, message: str, state: str = "failed") -> RunReport:
    """The report of a run that ended without a result; what is committed stays."""
    job = run.job
    commits = run.ledger.commits()
    shards = [shard for window in run.windows for shard in window.shards if shard.id in commits]
    ok = sum(shard.rows * commits[shard.id].ok // max(1, commits[shard.id].rows) for shard in shards)
    planned: dict[str, int] = {}
    for window in run.windows:
        for code, count in window.errors.items():
            planned[code] = planned.get(code, 0) + count
    return RunReport(
        state=state,
        run_id=run.folder.id,
        folder=str(run.folder.path),
        output=job.output_path,
        manifest=None,
        rows=sum(window.rows for window in run.windows),
        ok=ok,
        errors=planned,
        error_rows=rows_without_prompt(run.folder, run.windows, ROWS_SHOWN),
        input_tokens=sum(commit.tokens["input"] for commit in commits.values()),
        output_tokens=sum(commit.tokens["output"] for commit in commits.values()),
        seconds=time.monotonic() - run.started,
        resumed_rows=run.resumed_rows,
        workers=run.workers_begun,
        device=job.placement.device,
        accuracy=None,
        accuracy_label="",
        resume_command=job.command,
        message=message,
        warnings=warnings(run),
        hits=run.hits,
        deaths=dict(run.progress.record.deaths),
    )


def final_report(run: OpenRun, report: RunReport) -> RunReport:
    """The report once the run is closed: with what was warned of since it was made."""
    return replace(report, warnings=tuple(dict.fromkeys((*report.warnings, *warnings(run)))))


def warnings(run: OpenRun) -> tuple[str, ...]:
    """What was warned of before the run and during it."""
    return tuple(dict.fromkeys((*run.job.warnings, *run.progress.record.warnings)))


def error_rows(target: Destination, manifest: Manifest) -> dict[str, list[int]]:
    """Positions of the first ten error rows of each code, read from the published files."""
    found: dict[str, list[int]] = {}
    if not manifest.errors:
        return found
    first = 0
    for batch in _published(target, manifest, [f"{manifest.prefix}error"]):
        column = batch.column(0)
        valid = pc.is_valid(column)
        if pc.any(valid).as_py():
            for position in pc.indices_nonzero(valid).to_pylist():
                rows = found.setdefault(column[position].as_py()["code"], [])
                if len(rows) < ROWS_SHOWN:
                    rows.append(first + position)
        first += len(batch)
    return found


def accuracy(job: Job, target: Destination, manifest: Manifest) -> float | None:
    """Share of rows whose answer is the text in the column `job.expected`; None if that is not set or not published."""
    expected = job.settings.job.expected
    names = [str(column["name"]) for column in manifest.columns]
    if expected is None or expected not in names or not manifest.rows:
        return None
    right = 0
    for batch in _published(target, manifest, [f"{manifest.prefix}output", expected]):
        right += sum(
            answer is not None and answer == wanted for answer, wanted in zip(*map(_texts, batch.columns), strict=True)
        )
    return right / manifest.rows


def _texts(column: Any) -> list[str | None]:
    return [value if value is None else str(value) for value in column.to_pylist()]


def _published(target: Destination, manifest: Manifest, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """Record batches of some columns of the result, in row order."""
    for part in manifest.files:
        with target.open(part.name) as opened:
            if manifest.format == "parquet":
                with pq.ParquetFile(opened) as file:
                    yield from file.iter_batches(BATCH_ROWS, columns=columns)
            else:  # a line keeps its values as they came, so that a column need not have one type
                while batch := [json.loads(line) for line in islice(opened, BATCH_ROWS)]:
                    yield pa.RecordBatch.from_arrays(
                        [_as_read([row.get(c) for row in batch]) for c in columns], columns
                    )


def _as_read(values: list[Any]) -> pa.Array:
    """Errors stay structs; any other value becomes its text."""
    plain = all(value is None or isinstance(value, dict) for value in values)
    return pa.array(values, ERROR_TYPE) if plain else pa.array([None if v is None else str(v) for v in values])


def manifest_fields(run: OpenRun) -> Mapping[str, Any]:
    """What the manifest says of the run beside its counts."""
    job = run.job
    return {
        "settings": job.settings.model_dump(mode="json", by_alias=True),
        "digests": job.checkpoint.digests(),
        "pointer": job.pointer,
        "seconds": round(time.monotonic() - run.started, 3),
        "workers": job.placement.workers,
        "device": job.placement.device,
        "devices": dict(Counter(worker_devices(job.placement))),
        "hits": run.hits.to_json(),
    }
