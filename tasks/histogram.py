"""How long prompts or answers are, as bars."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Group
from rich.table import Table
from rich.text import Text

from data.histogram import edge
from tasks.figures import short

BAR = 20
_EIGHTHS = " ▏▎▍▌▋▊▉"


def histogram(title: str, what: str, counts: Sequence[int]) -> Group:
    """Bars from the first to the last bin that holds something; counts by bin, of `what`."""
    grid = Table.grid(padding=(0, 1))
    grid.add_column(justify="right", style="dim", no_wrap=True)
    grid.add_column(no_wrap=True, width=BAR)
    grid.add_column(justify="right", no_wrap=True)
    for label, bar, count in histogram_lines(counts):
        grid.add_row(label, Text(bar, "cyan"), count)
    return Group(Text.assemble((title, "bold"), (f"  {what}", "dim")), grid)


def histogram_lines(counts: Sequence[int]) -> Iterator[tuple[str, str, str]]:
    """For each of these bins its tokens, its bar and its count."""
    filled = [number for number, count in enumerate(counts) if count]
    for number in range(filled[0], filled[-1] + 1) if filled else ():
        low, high = edge(number), edge(number + 1) - 1
        label = f"{low:,}" if low == high else f"{low:,}-{high:,}"
        yield label, _bar(counts[number] / max(counts)), short(counts[number])


def _bar(part: float) -> str:
    eighths = max(1, round(part * BAR * 8)) if part else 0
    return "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()
