"""An evaluation on the terminal, and as Markdown for Prefect."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tasks.evaluation import Evaluation
from tasks.evaluation_table import (
    Cell,
    Line,
    agreement_lines,
    score_lines,
    slice_columns,
    slice_lines,
    slice_metrics,
    task_lines,
)
from tasks.figures import plural, printable
from tasks.summary import markdown_cell

WIDE = 100
"""Columns of a terminal on which figure and interval stand side by side."""

_METRIC_WIDTH, _INTERVAL = 26, 16


def print_evaluation(evaluation: Evaluation, console: Console) -> None:
    """Print every figure with its interval, and where the report is. Intervals of slices are left to the report."""
    apart = "  " if console.width >= WIDE else "\n"
    console.print()
    console.print(Text.assemble(("Evaluation", "bold green"), f" on {plural(evaluation.rows, 'row')}"))
    console.print()
    console.print(_table("", _headings(evaluation), list(score_lines(evaluation)), apart))
    if evaluation.agreement is not None:
        console.print()
        console.print(_table("", ["agreement", ""], list(agreement_lines(evaluation)), apart))
    if evaluation.tasks:
        console.print()
        console.print(_table("lm-eval", _headings(evaluation)[:2], list(task_lines(evaluation)), apart))
    for column in slice_columns(evaluation):
        fitting = max(1, (console.width - 30) // _METRIC_WIDTH)
        metrics = slice_metrics(evaluation, column)[:fitting]
        headings = ["\nrows", *(heading.replace(", ", "\n") for heading in _slice_headings(evaluation, metrics))]
        lines = [_bare(line) for line in slice_lines(evaluation, column, metrics)]
        console.print()
        console.print(_table(f"\n{printable(column)}", headings, lines, apart))
    console.print()
    for name, place in _places(evaluation):
        console.print(Text.assemble(f"{name:<9}  ", (printable(place), "cyan")), soft_wrap=True)


def as_markdown(evaluation: Evaluation) -> str:
    """The same for a Prefect artifact."""
    lines = [f"## Evaluation on {plural(evaluation.rows, 'row')}", ""]
    lines += _markdown(["", *_headings(evaluation)], list(score_lines(evaluation)))
    if evaluation.agreement is not None:
        lines += ["", *_markdown(["", "agreement", ""], list(agreement_lines(evaluation)))]
    if evaluation.tasks:
        lines += ["", *_markdown(["lm-eval", *_headings(evaluation)[:2]], list(task_lines(evaluation)))]
    for column in slice_columns(evaluation):
        metrics = slice_metrics(evaluation, column)
        headings = [column, "rows", *_slice_headings(evaluation, metrics)]
        lines += ["", *_markdown(headings, list(slice_lines(evaluation, column, metrics)))]
    lines += ["", *(f"- {name}: `{printable(place).replace('`', ' ')}`" for name, place in _places(evaluation)), ""]
    return "\n".join(lines)


def _headings(evaluation: Evaluation) -> list[str]:
    return ["candidate"] if evaluation.reference is None else ["candidate", "reference", "relative change"]


def _slice_headings(evaluation: Evaluation, metrics: Sequence[str]) -> list[str]:
    models = ["candidate"] if evaluation.reference is None else ["candidate", "reference"]
    return [f"{metric}, {model}" for metric in metrics for model in models]


def _places(evaluation: Evaluation) -> list[tuple[str, str]]:
    places = [("Candidate", evaluation.candidate.path)]
    if evaluation.reference is not None:
        places.append(("Reference", evaluation.reference.path))
    return [*places, ("Report", evaluation.report)]


def _table(first: str, headings: Sequence[str], lines: Sequence[Line], apart: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
    table.add_column(first, overflow="fold")
    for heading in headings:
        table.add_column(heading, justify="right" if heading else "left")
    for line in lines:
        table.add_row(Text(printable(line.name)), *(_shown(cell, apart) for cell in line.cells))
    return table


def _shown(cell: Cell, apart: str) -> Text:
    if not cell.interval:
        return Text(cell.figure)
    width = _INTERVAL if apart == "  " else 0  # so that figures stand below each other
    return Text.assemble(cell.figure, (f"{apart}{cell.interval:>{width}}", "dim"))


def _bare(line: Line) -> Line:
    return Line(line.name, tuple(Cell(cell.figure) for cell in line.cells))


def _markdown(headings: Sequence[str], lines: Sequence[Line]) -> list[str]:
    found = ["| " + " | ".join(map(markdown_cell, headings)) + " |", "|---|" + "---:|" * (len(headings) - 1)]
    for line in lines:
        cells = (f"{cell.figure} ({cell.interval})" if cell.interval else cell.figure for cell in line.cells)
        found.append("| " + " | ".join([markdown_cell(line.name), *cells]) + " |")
    return found
