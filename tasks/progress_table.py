"""The live view of a run as a table: one line for the run, one for each worker, many workers in one line a state."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from tasks.figures import duration, plural, short
from tasks.progress import Progress
from tasks.worker_progress import WorkerState, WorkerView

WORKERS_SHOWN = 16

_STYLES: dict[WorkerState, str] = {
    "starting": "cyan",
    "ready": "green",
    "running": "green",
    "restarting": "yellow",
    "dead": "red",
    "away": "yellow",
}
_PHASES = {"planning": "planning", "starting": "loading model", "publishing": "publishing", "published": "published"}
_WORDS: dict[WorkerState, str] = {"starting": "loading", "dead": "gone", "away": "waits for its turn"}


def progress_table(progress: Progress) -> Table:
    """What the run looks like now."""
    table = Table(
        box=box.SIMPLE_HEAD, expand=True, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0), header_style="dim"
    )
    table.add_column(no_wrap=True)
    table.add_column("progress", ratio=1, min_width=13, no_wrap=True)
    table.add_column("rows", justify="right", no_wrap=True)
    table.add_column("tok/s in", justify="right", no_wrap=True, min_width=8)
    table.add_column("out", justify="right", no_wrap=True, min_width=5)
    table.add_column("errors", justify="right", no_wrap=True)
    table.add_column("left", justify="right", no_wrap=True, min_width=9)
    _add_run(table, progress)
    outlook = progress.outlook
    if outlook is not None:
        table.add_row("", Text(outlook, style="dim"), "", "", "", Text(""), "")
    if progress.waits_for is not None:
        table.add_row("", Text(f"waits for {progress.waits_for}", style="yellow"), "", "", "", Text(""), "")
    workers = progress.workers
    if len(workers) <= WORKERS_SHOWN:
        for worker in workers:
            _add_worker(table, worker)
    else:
        _add_states(table, workers)
    return table


def _add_run(table: Table, progress: Progress) -> None:
    total, done, eta = progress.rows_total, progress.rows_done, progress.eta_seconds
    phase = _PHASES.get(progress.state)
    rows = f"{_rows(done, total)}/{_rows(total, total)}{'' if progress.rows_final else '+'}" if total else ""
    running = progress.state == "running"
    table.add_row(
        Text(f"run {progress.run_id[:8]}", style="bold"),
        Text(phase, style="cyan") if phase else _bar(done, total),
        rows,
        _rate(progress.input_rate) if running else "",
        _rate(progress.output_rate) if running else "",
        _errors(progress.errors),
        duration(eta) if eta is not None else "",
    )


def _bar(done: int, total: int) -> Table:
    percent = int(100 * done / total) if total else 0
    grid = Table.grid(padding=(0, 1), expand=True)
    grid.add_column(ratio=1)
    grid.add_column(justify="right", width=5)
    grid.add_row(
        ProgressBar(total=max(1, total), completed=done, complete_style="green", finished_style="green"), f"{percent} %"
    )
    return grid


def _add_worker(table: Table, worker: WorkerView) -> None:
    state = _WORDS.get(worker.state, worker.state)
    if worker.state == "starting":
        state += f" {worker.since:.0f} s"
    table.add_row(
        f"worker {worker.index}",
        Text(state, style=_STYLES[worker.state]),
        _number(worker.sequences),
        _rate(worker.input_rate),
        _rate(worker.output_rate),
        _errors(worker.errors),
        "",
    )


def _add_states(table: Table, workers: Sequence[WorkerView]) -> None:
    for state, style in _STYLES.items():
        those = [worker for worker in workers if worker.state == state]
        if those:
            table.add_row(
                plural(len(those), "worker"),
                Text(_WORDS.get(state, state), style=style),
                _number(sum(worker.sequences for worker in those)),
                _rate(sum(worker.input_rate for worker in those)),
                _rate(sum(worker.output_rate for worker in those)),
                _errors(sum(worker.errors for worker in those)),
                "",
            )


def _rows(count: int, total: int) -> str:
    """Both numbers of a pair are written in full, or both short where the larger one is wide."""
    return f"{count:,}" if total < 1_000_000 else short(count)


def _number(count: int) -> str:
    return _rows(count, count) if count else ""


def _rate(rate: float) -> str:
    return short(rate) if rate else ""


def _errors(count: int) -> Text:
    return Text(_number(count), style="yellow")
