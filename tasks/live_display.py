"""What is shown on stderr while something goes on: a live table on a terminal, plain lines everywhere else.

A thread of its own looks and writes, so that a slow terminal never holds the work up. Lines about single events go
above the table and stay; the table disappears at the end, when the report takes its place.
"""

from __future__ import annotations

import queue
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from datetime import datetime
from types import TracebackType
from typing import Any, Self

from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

from tasks.progress import Event

REFRESH_SECONDS = 0.25
PLAIN_LINE_SECONDS = 10.0
END_SECONDS = 10.0


class Terminal(Console):
    """A console whose reader may go away: rich would end this process's stdout with it."""

    def on_broken_pipe(self) -> None:
        """Called by rich while it handles the BrokenPipeError."""
        raise BrokenPipeError


class LiveDisplay(ABC):
    """Shows something while the block is entered.

    Args:
        listen: is given a function that takes each event.
        console: where; stderr unless given.
    """

    def __init__(self, listen: Callable[[Callable[[Event], None]], object], console: Console | None = None) -> None:
        self._listen = listen
        self._console = console or Terminal(stderr=True)
        self._events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._show, name="display", daemon=True)

    @abstractmethod
    def table(self) -> RenderableType:
        """What the work looks like now."""

    @abstractmethod
    def line(self) -> str | None:
        """The same in one line of text; None if there is nothing to tell."""

    @abstractmethod
    def milestone(self, event: Event) -> tuple[str, str] | None:
        """The line for an event and its rich style; None for events that only move counters."""

    def __enter__(self) -> Self:
        self._listen(self._events.put)
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
                live.update(self.table(), refresh=True)

    def _show_lines(self) -> None:
        told, shown = time.monotonic(), ""
        while self._print_milestones(REFRESH_SECONDS):
            if time.monotonic() - told >= PLAIN_LINE_SECONDS and (line := self.line()) is not None:
                told = time.monotonic()
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
            line = self.milestone(event)
            if line is not None:
                self._print(*line)

    def _print(self, line: str, style: str = "") -> None:
        print_line(self._console, line, style)


def print_line(console: Console, line: str, style: str = "") -> None:
    """Print a line with the time before it."""
    text = Text.assemble((datetime.now().strftime("%H:%M:%S "), "dim"), (line, style))
    # A log keeps one line an event; a terminal wraps between words.
    console.print(text, soft_wrap=not console.is_terminal)
