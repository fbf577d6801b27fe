"""How far a run is, from its folder alone, for whoever looks from outside: `overnight status`.

The plan and the commit records say what is done; the events, a convenience, say who works and how fast. Whether a
driver lives is asked of its lock. Nothing is written, and files that are missing, torn or half a window ahead of each
other are read as far as they go.
"""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data.destination import is_url
from data.errors import InputError, RunError
from data.ledger import Commit, results_path
from data.run_folder import RunFolder
from data.shards import Shard
from data.target import Target
from data.window import Window, load_window
from tasks.hits import Hits, count_hits
from tasks.outlook import against_deadline
from tasks.progress import Progress
from tasks.recorded_events import event_time, read_events, replay
from tasks.status_screen import print_status
from tasks.worker_progress import WorkerView

__all__ = ["Status", "print_status", "run_status", "runs_below"]

FILES_READ_FOR_CODES = 500


@dataclass(frozen=True)
class Status:
    """A run as its folder shows it. Rates are a second over the last ten minutes, 0 unless a driver is there."""

    folder: str
    run_id: str
    state: str
    """running, waiting (for its turn on the devices), completed, partial, failed, interrupted, or stopped: the driver
    is gone without a word."""
    holder: str | None
    rows: int
    rows_final: bool
    rows_done: int
    shards: int
    shards_done: int
    errors: Mapping[str, int]
    errors_without_code: int
    input_tokens: int
    output_tokens: int
    row_rate: float
    output_rate: float
    eta_seconds: float | None
    outlook: str | None
    """How the run stands to its deadline, while it is at work and has one."""
    waits_for: str | None
    """The run, in words, that has this one's devices."""
    workers: tuple[WorkerView, ...]
    last_event: str | None
    last_event_age: float | None
    output: str | None
    command: str | None
    """What resumes the run, as its driver was started."""
    hits: Hits
    others: tuple[str, ...] = field(default=())
    finish_spread: float | None = None
    """Seconds between the last shards of the first and the last worker, once nothing is left."""


def run_status(folder: Path | None) -> Status:
    """The status of a run folder, or of the newest one below the working directory.

    Raises:
        InputError: it is not a run folder, or there is none.
    """
    others: tuple[str, ...] = ()
    if folder is None:
        found = runs_below(Path())
        if not found:
            raise InputError("no run found in ./.overnight or ./*/.overnight: name the run's folder")
        folder, others = found[0], tuple(str(path) for path in found[1:])
    run = RunFolder.open(folder)
    windows = list(_windows(run))
    commits = list(_commits(run))
    events = list(read_events(run.events))
    holder = _holder(run.path / "lock")
    progress = replay(events)
    output = next((str(event["path"]) for event in reversed(events) if event["event"] == "published"), None)
    shards = {shard.id: shard for window in windows for shard in window.shards}
    done = [shards[commit.shard] for commit in commits if commit.shard in shards]
    errors, unknown = _errors(run, windows, commits)
    last = events[-1] if events else None
    row_rate, output_rate, eta = _pace(progress, windows, commits) if holder else (0.0, 0.0, None)
    return Status(
        folder=str(run.path),
        run_id=run.id,
        state=("waiting" if progress.waits_for else "running") if holder else _ending(events, output),
        holder=holder,
        rows=sum(window.rows for window in windows),
        rows_final=bool(windows) and windows[-1].last,
        rows_done=_rows_done(windows, done),
        shards=len(shards),
        shards_done=len(done),
        errors=errors,
        errors_without_code=unknown,
        input_tokens=sum(commit.tokens["input"] for commit in commits),
        output_tokens=sum(commit.tokens["output"] for commit in commits),
        row_rate=row_rate,
        output_rate=output_rate,
        eta_seconds=eta,
        outlook=_outlook(progress, windows, done, eta) if holder else None,
        waits_for=progress.waits_for if holder else None,
        workers=progress.workers if holder else (),
        last_event=str(last["event"]) if last else None,
        last_event_age=max(0.0, time.time() - event_time(last)) if last else None,
        output=output,
        command=next((str(event["command"]) for event in events if event.get("command")), None),
        hits=count_hits(windows, {commit.shard: commit for commit in commits}),
        others=others,
        finish_spread=progress.record.finish_spread if len(done) == len(shards) else None,
    )


def runs_below(place: Path) -> list[Path]:
    """Run folders in `.overnight` here and one folder down, the one last worked on first."""
    found = [record.parent for pattern in (".overnight/*/run.json", "*/.overnight/*/run.json")
             for record in place.glob(pattern)]  # fmt: skip
    return sorted(found, key=_worked_on, reverse=True)


def _worked_on(folder: Path) -> float:
    times = [(folder / name).stat().st_mtime for name in ("events.jsonl", "run.json") if (folder / name).exists()]
    return max(times, default=0.0)


def _windows(run: RunFolder) -> Iterator[Window]:
    number = 0
    while (window := load_window(run, f"w{number:05d}")) is not None:
        yield window
        number += 1


def _commits(run: RunFolder) -> Iterator[Commit]:
    for path in sorted(run.commits.glob("*.json")):
        try:
            yield Commit.read(path)
        except (RunError, FileNotFoundError):
            continue  # damaged, or set aside meanwhile; the driver and `audit` report damage


def _pace(progress: Progress, windows: list[Window], commits: list[Commit]) -> tuple[float, float, float | None]:
    """Rows and tokens out a second, and the seconds left, by what the finished shards' answers were like."""
    done = {commit.shard: commit for commit in commits}
    shards = [shard for window in windows for shard in window.shards]
    waiting = [shard for shard in shards if shard.id not in done]
    sequences = sum(shard.sequences for shard in shards)
    left = sum(shard.sequences for shard in waiting)
    answered = sum(commit.rows for commit in commits)
    mean = sum(commit.tokens["output"] for commit in commits) / answered if answered else 0.0
    rows = sum(window.rows - sum(window.errors.values()) for window in windows)
    rate = progress.sequence_rate
    row_rate = rate * rows / sequences if sequences else 0.0
    forecast = progress.seconds_for((left, sum(shard.input_tokens for shard in waiting), left * mean))
    eta = forecast if rate > 0 and windows and windows[-1].last else None
    return row_rate, progress.output_rate, eta


def _outlook(progress: Progress, windows: list[Window], done: list[Shard], eta: float | None) -> str | None:
    if progress.deadline is None or progress.state in ("publishing", "published"):
        return None
    rows = sum(window.rows for window in windows) - _rows_done(windows, done)
    return against_deadline(progress.deadline.timestamp() - time.time(), eta, rows)


def _rows_done(windows: list[Window], done: list[Shard]) -> int:
    """Rows with an outcome; those that share a sequence of an earlier window are counted by the share that is done."""
    planned = sum(sum(window.errors.values()) for window in windows)
    direct = sum(shard.rows for window in windows for shard in window.shards)
    sequences = sum(shard.sequences for window in windows for shard in window.shards)
    across = sum(window.rows for window in windows) - planned - direct
    finished = sum(shard.sequences for shard in done)
    return planned + sum(shard.rows for shard in done) + (across * finished // sequences if sequences else 0)


def _errors(run: RunFolder, windows: list[Window], commits: list[Commit]) -> tuple[dict[str, int], int]:
    """Error rows of the plan and error sequences of the commits by code, and those whose code was not read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    counts: dict[str, int] = {}
    unknown = 0
    for window in windows:
        for code, count in window.errors.items():
            counts[code] = counts.get(code, 0) + count
    for number, commit in enumerate(commit for commit in commits if commit.errors):
        try:
            if number >= FILES_READ_FOR_CODES:
                raise FileNotFoundError
            codes = pq.read_table(results_path(run, commit.sha256), columns=["code"])["code"].drop_null()
        except (OSError, pa.ArrowException, KeyError):  # dropped after publication, or damaged
            unknown += commit.errors
            continue
        for entry in codes.value_counts().to_pylist():
            counts[entry["values"]] = counts.get(entry["values"], 0) + entry["counts"]
    return counts, unknown


def _holder(lock: Path) -> str | None:
    """Who holds the run, or None. The shared lock of the probe lasts microseconds and lets other probes through."""
    try:
        with lock.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return file.read(200).decode(errors="replace") or "another process"
    except (FileNotFoundError, PermissionError):
        return None
    return None


def _ending(events: list[dict[str, Any]], output: str | None) -> str:
    finished = [str(event["state"]) for event in events if event["event"] == "finished"]
    if finished:
        return finished[-1]
    try:
        # A store is not asked: a glance at a folder must not wait for a network.
        manifest = Target.at(output).read_manifest() if output is not None and not is_url(output) else None
    except (RunError, InputError):
        manifest = None
    if manifest is not None:
        return "completed" if manifest.complete else "partial"
    return "stopped" if events else "not started"
