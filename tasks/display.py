"""The progress of a run on stderr: a live table on a terminal, plain lines everywhere else."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from tasks.figures import counted, duration, plural, share, short
from tasks.live_display import LiveDisplay
from tasks.milestones import milestone
from tasks.progress import Event, Progress
from tasks.progress_table import progress_table


class Display(LiveDisplay):
    """Shows a run while the block is entered.

    Args:
        progress: what to show; the display listens to its events.
        console: where; stderr unless given.
    """

    def __init__(self, progress: Progress, console: Console | None = None) -> None:
        super().__init__(progress.listen, console)
        self._progress = progress

    def table(self) -> Table:
        """See LiveDisplay."""
        return progress_table(self._progress)

    def line(self) -> str | None:
        """See LiveDisplay."""
        return progress_line(self._progress) if self._progress.state == "running" else None

    def milestone(self, event: Event) -> tuple[str, str] | None:
        """See LiveDisplay."""
        return milestone(event)


def progress_line(progress: Progress) -> str:
    """The run in one line of text."""
    total, done = progress.rows_total, progress.rows_done
    of = f"{counted(total)}" if progress.rows_final else f"{counted(total)} or more"
    parts = [
        f"{share(done, total)}: {counted(done)} of {of} rows",
        f"{short(progress.input_rate)} tok/s in, {short(progress.output_rate)} out",
        plural(progress.errors, "error"),
    ]
    eta = progress.eta_seconds
    if eta is not None:
        parts.append(f"{duration(eta)} left")
    if progress.outlook is not None:
        parts.append(progress.outlook)
    if progress.waits_for is not None:
        return ", ".join([*parts, f"waits for {progress.waits_for}"])
    missing = [worker for worker in progress.workers if worker.state not in ("ready", "running")]
    if missing:
        parts.append(f"{len(missing)} of {plural(progress.workers_expected, 'worker')} not ready")
    return ", ".join(parts)
