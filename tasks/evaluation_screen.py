"""An evaluation on the terminal, and as Markdown for Prefect."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tasks.evaluation import Evaluation
from tasks.evaluation_table import Cell, Line, agreement_lines, score_lines, slice_columns, slice_lines, slice_metrics
from tasks.figures import plural, printable
from tasks.summary import markdown_cell


def print_evaluation(evaluation: Evaluation, console: Console) -> None:
    """Print every figure with its interval, and where the report is."""
    console.print()
    console.print(Text.assemble(("Evaluation", "bold green"), f" on {plural(evaluation.rows, 'row')}"))
    console.print()
    console.print(_table("", _headings(evaluation), list(score_lines(evaluation))))
    if evaluation.agreement is not None:
        console.print()
        console.print(_table("", ["", ""], list(agreement_lines(evaluation))))
    for column in slice_columns(evaluation):
        console.print()
        headings = ["\nrows", *(heading.replace(", ", "\n") for heading in _slice_headings(evaluation, column))]
        bare = [Line(line.name, tuple(map(_bare, line.cells))) for line in slice_lines(evaluation, column)]
        console.print(_table(f"\n{printable(column)}", headings, bare))
    console.print()
    for name, place in _places(evaluation):
        console.print(Text.assemble(f"{name:<9}  ", (printable(place), "cyan")), soft_wrap=True)


def as_markdown(evaluation: Evaluation) -> str:
    """The same for a Prefect artifact."""
    lines = [f"## Evaluation on {plural(evaluation.rows, 'row')}", ""]
    lines += _markdown(["", *_headings(evaluation)], list(score_lines(evaluation)))
    if evaluation.agreement is not None:
        lines += ["", *_markdown(["agreement", "", ""], list(agreement_lines(evaluation)))]
    for column in slice_columns(evaluation):
        headings = [column, "rows", *_slice_headings(evaluation, column)]
        lines += ["", *_markdown(headings, list(slice_lines(evaluation, column)))]
    lines += ["", *(f"- {name}: `{printable(place).replace('`', ' ')}`" for name, place in _places(evaluation)), ""]
    return "\n".join(lines)


def _headings(evaluation: Evaluation) -> list[str]:
    return ["candidate"] if evaluation.reference is None else ["candidate", "reference", "change"]


def _slice_headings(evaluation: Evaluation, column: str) -> list[str]:
    models = ["candidate"] if evaluation.reference is None else ["candidate", "reference"]
    return [f"{metric}, {model}" for metric in slice_metrics(evaluation, column) for model in models]


def _places(evaluation: Evaluation) -> list[tuple[str, str]]:
    places = [("Candidate", evaluation.candidate.path)]
    if evaluation.reference is not None:
        places.append(("Reference", evaluation.reference.path))
    return [*places, ("Report", evaluation.report)]


def _table(first: str, headings: Sequence[str], lines: Sequence[Line]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
    table.add_column(first, overflow="fold")
    for heading in headings:
        table.add_column(heading, justify="right")
    for line in lines:
        table.add_row(Text(printable(line.name)), *map(_shown, line.cells))
    return table


def _shown(cell: Cell) -> Text:
    interval = (f"  {cell.interval}", "dim") if cell.interval else ""
    return Text.assemble(cell.figure, interval)


def _bare(cell: Cell) -> Cell:
    """Intervals of many values side by side are left to the report."""
    return Cell(cell.figure)


def _markdown(headings: Sequence[str], lines: Sequence[Line]) -> list[str]:
    found = ["| " + " | ".join(map(markdown_cell, headings)) + " |", "|---|" + "---:|" * (len(headings) - 1)]
    for line in lines:
        cells = (f"{cell.figure} ({cell.interval})" if cell.interval else cell.figure for cell in line.cells)
        found.append("| " + " | ".join([markdown_cell(line.name), *cells]) + " |")
    return found
