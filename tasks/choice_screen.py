"""The figures of each precision side by side, on a screen and for the Prefect UI, and what is recommended."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tasks.choice import Choice, Trial
from tasks.evaluation import Estimate
from tasks.figures import duration, plural, printable, short, size

COLUMNS = ("precision", "rows/s", "tok/s out", "weights", "same answers, %", "accuracy, %")


def print_choice(choice: Choice, output: Path, console: Console) -> None:
    """Print the figures, the recommendation with its settings, and what is to be said of it."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name in COLUMNS:
        table.add_column(name, justify="left" if name == "precision" else "right", no_wrap=True)
    for one in choice.measured:
        style = "bold" if one.precision == choice.chosen else ""
        table.add_row(*map(Text, _cells(one)), style=style)
    console.print(table)
    console.print()
    for one in choice.measured:
        if one.computed:
            console.print(Text(f"{one.precision:<5} {_how(one)}", style="dim"), soft_wrap=True)
    console.print()
    console.print(Text.assemble((choice.chosen, "bold green"), f": {choice.reason}"), soft_wrap=True)
    for name, value in choice.best.set.items():
        console.print(Text(f"  {name} = {printable(value)!r}"), soft_wrap=True)
    for note in choice.notes:
        console.print(Text(f"Note: {printable(note)}", style="yellow"), soft_wrap=True)
    console.print(Text.assemble("Figures ", (printable(str(output)), "cyan")), soft_wrap=True)


def table_rows(choice: Choice) -> list[dict[str, Any]]:
    """The table for an artifact, by column."""
    names = (*COLUMNS, "recommended")
    return [
        dict(zip(names, (*_cells(one), "yes" if one.precision == choice.chosen else ""), strict=True))
        for one in choice.measured
    ]


def _how(one: Trial) -> str:
    """How a precision computes, and how long it was looked at."""
    times = ", ".join(duration(repeat.seconds) for repeat in one.repeats)
    return f"{printable(one.computed)}; {plural(len(one.repeats), 'repeat')}: {times}"


def _cells(one: Trial) -> Iterator[str]:
    yield one.precision
    if one.failure is not None:
        yield from ["not measured"] + [""] * (len(COLUMNS) - 2)
        return
    yield short(one.rate)
    yield short(one.output_rate)
    yield size(one.weight_bytes)
    yield _interval(one.same)
    yield _interval(one.accuracy)


def _interval(estimate: Estimate | None) -> str:
    """`98.7 (97.1-99.4)`, in percent; a dash where nothing is known."""
    if estimate is None:
        return "-"
    value, low, high = (f"{100 * part:.1f}" for part in (estimate.value, estimate.low, estimate.high))
    return f"{value} ({low}-{high})"
