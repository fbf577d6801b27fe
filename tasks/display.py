"""The progress of a run on stderr: a live table on a terminal, plain lines everywhere else.

A thread of its own looks at Progress and writes, so that a slow terminal never holds a worker up. Lines about single
events go above the table and stay; the table disappears at the end, when the summary takes its place.
"""

from __future__ import annotations

import queue
import threading
import time
from datetime import datetime
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from tasks.figures import counted, duration, plural, share, short
from tasks.milestones import milestone
from tasks.progress import Event, Progress
from tasks.progress_table import progress_table

REFRESH_SECONDS = 0.25
PLAIN_LINE_SECONDS = 10.0
END_SECONDS = 10.0


class Terminal(Console):
    """A console whose reader may go away: rich would end this process's stdout with it."""

    def on_broken_pipe(self) -> None:
        """Called by rich while it handles the BrokenPipeError."""
        raise BrokenPipeError


class Display:
    """Shows a run while the block is entered.

    Args:
        progress: what to show; the display listens to its events.
        console: where; stderr unless given.
    """

    def __init__(self, progress: Progress, console: Console | None = None) -> None:
        self._progress = progress
        self._console = console or Terminal(stderr=True)
        self._events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._show, name="display", daemon=True)

    def __enter__(self) -> Display:
        self._progress.listen(self._events.put)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._events.put(None)
        self._thread.join(END_SECONDS)  # a terminal that takes nothing is not waited for

    def _show(self) -> None:
        try:
            if self._console.is_terminal:
                self._show_live()
            else:
                self._show_lines()
        except OSError:
            return  # nobody can see it any more: no reason to end the run

    def _show_live(self) -> None:
        live = Live(console=self._console, auto_refresh=False, transient=True, redirect_stdout=False)
        with live:
            while self._print_milestones(REFRESH_SECONDS):
                live.update(progress_table(self._progress), refresh=True)

    def _show_lines(self) -> None:
        told, shown = time.monotonic(), ""
        while self._print_milestones(REFRESH_SECONDS):
            if time.monotonic() - told >= PLAIN_LINE_SECONDS and self._progress.state == "running":
                told = time.monotonic()
                line = progress_line(self._progress)
                if line != shown:
                    self._print(line)
                shown = line

    def _print_milestones(self, seconds: float) -> bool:
        """Print what happens within `seconds`; False once the display is to end."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                event: Any = self._events.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                return True
            if event is None:
                return False
            line = milestone(event)
            if line is not None:
                self._print(*line)

    def _print(self, line: str, style: str = "") -> None:
        print_line(self._console, line, style)


def print_line(console: Console, line: str, style: str = "") -> None:
    """Print a line with the time before it."""
    text = Text.assemble((datetime.now().strftime("%H:%M:%S "), "dim"), (line, style))
    # A log keeps one line an event; a terminal wraps between words.
    console.print(text, soft_wrap=not console.is_terminal)


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
