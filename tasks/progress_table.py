"""The live view of a run as a table: one line for the run, one for each worker, many workers in one line a state."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from tasks.figures import counted, duration, short
from tasks.progress import Progress
from tasks.worker_progress import WorkerState, WorkerView

WORKERS_SHOWN = 16

_STYLES: dict[WorkerState, str] = {
    "starting": "cyan",
    "ready": "green",
    "running": "green",
    "restarting": "yellow",
    "dead": "red",
}
_PHASES = {
    "planning": "planning: reading and tokenizing the input",
    "starting": "planned; the workers load the model",
    "publishing": "assembling and checking the result",
    "published": "published",
}


def progress_table(progress: Progress) -> Table:
    """What the run looks like now."""
    table = Table(box=box.SIMPLE_HEAD, expand=True, pad_edge=False, show_edge=False, padding=(0, 1), header_style="dim")
    table.add_column(no_wrap=True)
    table.add_column("progress", ratio=1, min_width=8, no_wrap=True)
    table.add_column("rows", justify="right", no_wrap=True)
    table.add_column("tok/s in", justify="right", no_wrap=True, min_width=8)
    table.add_column("out", justify="right", no_wrap=True, min_width=5)
    table.add_column("errors", justify="right", no_wrap=True)
    table.add_column("left", justify="right", no_wrap=True, min_width=9)
    _add_run(table, progress)
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
    rows = f"{counted(done)}/{counted(total)}{'' if progress.rows_final else '+'}" if total else ""
    running = progress.state == "running"
    table.add_row(
        Text(f"run {progress.run_id[:8]}", style="bold"),
        Text(phase, style="cyan") if phase else _bar(done, total),
        rows,
        short(progress.input_rate) if running else "",
        short(progress.output_rate) if running else "",
        _errors(progress.errors),
        duration(eta) if eta is not None else "",
    )


def _bar(done: int, total: int) -> Table:
    percent = int(100 * done / total) if total else 0
    grid = Table.grid(padding=(0, 1), expand=True)
    grid.add_column(ratio=1)
    grid.add_column(justify="right", width=5)
    grid.add_row(ProgressBar(total=max(1, total), completed=done), f"{percent} %")
    return grid


def _add_worker(table: Table, worker: WorkerView) -> None:
    state = {"starting": "loading the model", "restarting": "restarting", "dead": "gone"}.get(
        worker.state, worker.state
    )
    if worker.state in ("starting", "restarting"):
        state += f", {duration(worker.since)}"
    if worker.deaths:
        state += f" ({worker.deaths + 1}{_ordinal(worker.deaths + 1)} start)"
    working = worker.state == "running"
    table.add_row(
        f"worker {worker.index}",
        Text(state, style=_STYLES[worker.state]),
        counted(worker.sequences) if worker.sequences else "",
        short(worker.input_rate) if working else "",
        short(worker.output_rate) if working else "",
        _errors(worker.errors) if worker.sequences else "",
        "",
    )


def _add_states(table: Table, workers: Sequence[WorkerView]) -> None:
    for state, style in _STYLES.items():
        those = [worker for worker in workers if worker.state == state]
        if those:
            table.add_row(
                f"{len(those)} workers",
                Text(state, style=style),
                counted(sum(worker.sequences for worker in those)),
                short(sum(worker.input_rate for worker in those)),
                short(sum(worker.output_rate for worker in those)),
                _errors(sum(worker.errors for worker in those)),
                "",
            )


def _errors(count: int) -> Text:
    return Text(counted(count), style="yellow" if count else "")


def _ordinal(number: int) -> str:
    return "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
