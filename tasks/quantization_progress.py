"""How far a quantization is, and what is shown of it while it goes on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from rich import box
from rich.console import Console
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from engine.quantizer_report import LayerReport
from tasks.figures import duration, plural, share
from tasks.live_display import LiveDisplay
from tasks.milestones import milestone
from tasks.progress import Event

LAYERS_SHOWN = 6


class QuantizationProgress:
    """The layers that are done; properties may be read from any thread."""

    def __init__(self, layers: int, clock: Callable[[], float] = time.monotonic) -> None:
        """layers: how many there are, as far as is known; 0 if not at all."""
        self.total = layers
        self.layers: list[LayerReport] = []
        self._clock, self._lock = clock, threading.Lock()
        self._last = clock()
        self._listeners: list[Callable[[Event], None]] = []

    def listen(self, listener: Callable[[Event], None]) -> None:
        """Pass every event on to `listener`, which must return at once."""
        self._listeners.append(listener)

    def tell(self, event: Event) -> None:
        """Pass an event on, to be told in a line."""
        for listener in self._listeners:
            listener(event)

    def done_with(self, layer: LayerReport, total: int) -> None:
        """One more layer of `total` is done."""
        with self._lock:
            self.layers.append(layer)
            self.total, self._last = total, self._clock()

    @property
    def done(self) -> float:
        """The share of the layers that is done, 0 to 1."""
        return len(self.layers) / self.total if self.total else 0.0

    @property
    def seconds_left(self) -> float | None:
        """What the layers that are left take if they are like the others; None before the first, or if it is over."""
        with self._lock:
            if not self.layers:
                return None
            mean = sum(layer.seconds for layer in self.layers) / len(self.layers)
            into = min(mean, self._clock() - self._last)
            left = mean * (self.total - len(self.layers)) - into
            return left if left > 0 else None


class QuantizationDisplay(LiveDisplay):
    """Shows a quantization while the block is entered."""

    def __init__(self, progress: QuantizationProgress, console: Console | None = None) -> None:
        super().__init__(progress.listen, console)
        self._progress = progress
        self._lined = 0
        """Layers that the last line told of."""

    def table(self) -> Table:
        """See LiveDisplay: a bar, and the layers that were done last."""
        progress, left = self._progress, self._progress.seconds_left
        table = Table(
            box=box.SIMPLE_HEAD, expand=True, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0), header_style="dim"
        )
        table.add_column(no_wrap=True)
        table.add_column("progress", ratio=1, min_width=13, no_wrap=True)
        for name in ("error before", "after", "time"):
            table.add_column(name, justify="right", no_wrap=True, min_width=7)
        bar = _bar(progress) if progress.layers else Text("the first layer", style="cyan")
        count = f"{len(progress.layers)} of {plural(progress.total, 'layer')}" if progress.total else "layers"
        table.add_row(Text(count, style="bold"), bar, "", "", f"{duration(left)} left" if left is not None else "")
        for layer in progress.layers[-LAYERS_SHOWN:][::-1]:
            before, after = error_text(layer.error_before), error_text(layer.error_after)
            table.add_row(Text(f"layer {layer.layer}", style="dim"), "", before, after, duration(layer.seconds))
        return table

    def line(self) -> str | None:
        """See LiveDisplay; None until another layer is done."""
        progress, left, done = self._progress, self._progress.seconds_left, len(self._progress.layers)
        if done in (0, self._lined, progress.total):
            return None
        self._lined = done
        last = progress.layers[-1]
        error = f", error {error_text(last.error_after)}"
        if last.error_before != last.error_after:
            error += f" after the search, {error_text(last.error_before)} before"
        return (
            f"{share(done, progress.total)}: {done} of "
            f"{plural(progress.total, 'layer')}{error if last.error_after is not None else ''}"
            f"{f', {duration(left)} left' if left is not None else ''}"
        )

    def milestone(self, event: Event) -> tuple[str, str] | None:
        """See LiveDisplay."""
        return milestone(event)


def error_text(error: float | None) -> str:
    """A layer's error as a percentage of its change to the hidden states."""
    return "" if error is None else f"{100 * error:.1f} %"


def _bar(progress: QuantizationProgress) -> Table:
    grid = Table.grid(padding=(0, 1), expand=True)
    grid.add_column(ratio=1)
    grid.add_column(justify="right", width=5)
    bar = ProgressBar(
        total=progress.total, completed=len(progress.layers), complete_style="green", finished_style="green"
    )
    grid.add_row(bar, f"{100 * progress.done:.0f} %")
    return grid
