"""The closing report of a quantization, on a screen and as Markdown: what it kept, what it saved, and the verdict."""

from __future__ import annotations

from collections.abc import Iterator

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tasks.evaluation import Evaluation
from tasks.figures import duration, plural, printable, share, size
from tasks.quantization_progress import error_text
from tasks.quantization_report import Quantization

_STYLES = {"completed": "bold green", "refused": "bold red"}


def print_quantization(report: Quantization, console: Console, *, before: bool = False) -> None:
    """Print the report; `before`: the checkpoint had been published by an earlier call."""
    console.print()
    ended = "published before" if before else report.state
    headline = Text.assemble("Quantization ", (ended, _STYLES[report.state]))
    console.print(headline if before else Text.assemble(headline, f", {duration(report.seconds)} for the layers"))
    console.print()
    counts = Table.grid(padding=(0, 2))
    for name, figure, note in _lines(report):
        counts.add_row(name, Text(figure, justify="right"), Text(note, style="dim"))
    console.print(counts)
    if report.evaluation is not None:
        console.print()
        console.print(_comparison(report.evaluation))
    console.print()
    if report.verdict is not None or report.warnings:
        console.print(_sentences(report))
    places = [("Model", report.model), ("Checkpoint", report.output)]
    if report.evaluation is not None:
        places.append(("Report", report.evaluation.report))
    if report.pointer is not None:
        places.append(("Pointer", report.pointer))
    for name, place in places:
        console.print(Text.assemble(f"{name:<11} ", (printable(place), "cyan")), soft_wrap=True)


def _sentences(report: Quantization) -> Table:
    """The verdict and the warnings, wrapped beside their names."""
    grid = Table.grid(padding=(0, 1, 0, 0))
    grid.add_column(min_width=11)
    if report.verdict is not None:
        word = ("accepted", "bold green") if report.verdict.accepted else ("refused", "bold red")
        grid.add_row("Verdict", Text.assemble(word, f": {report.verdict.reason}"))
    for warning in report.warnings:
        grid.add_row(Text("Warning", style="yellow"), Text(printable(warning), style="yellow"))
    return grid


def as_markdown(report: Quantization) -> str:
    """The report for a Prefect artifact, with every layer."""
    lines = [f"## {report.output}: {report.state}", ""]
    if report.verdict is not None:
        lines += [f"{report.verdict.reason}.", ""]
    lines += ["| | | |", "|---|---:|---|"]
    lines += [f"| {name} | {figure} | {note} |" for name, figure, note in _lines(report)]
    if report.evaluation is not None:
        lines += ["", "| | original | quantized | relative change | 95 % interval |", "|---|---:|---:|---:|---:|"]
        lines += [f"| {' | '.join(cells)} |" for cells in _compared(report.evaluation)]
    lines += ["", "| layer | error before | after | size | seconds |", "|---:|---:|---:|---:|---:|"]
    for layer in report.layers:
        errors = f"{error_text(layer.error_before)} | {error_text(layer.error_after)}"
        lines.append(f"| {layer.layer} | {errors} | {size(layer.bytes_after)} | {layer.seconds:.1f} |")
    return "\n".join([*lines, "", *(f"- {warning}" for warning in report.warnings)])


def _lines(report: Quantization) -> Iterator[tuple[str, str, str]]:
    settings, rows = report.settings, report.calibration
    shape = f"{settings.bits} bits" + (f", groups of {settings.group_size}" if settings.int4 else "")
    yield "Method", settings.quant_method, shape
    if rows.rows:
        skipped = f"; {rows.skipped:,} more cannot be asked" if rows.skipped else ""
        of = f"{rows.text} of {rows.source}, {plural(rows.tokens, 'token')}{skipped}"
        yield "Rows", f"{rows.rows:,}", of
    worst = max(report.layers, key=lambda layer: layer.error_after or 0.0)
    note = f"error {error_text(report.mean_error)} in the mean, at most {error_text(worst.error_after)}"
    yield "Layers", f"{len(report.layers):,}", f"{note} in layer {worst.layer}" if report.errors else ""
    saved = f"of {size(report.bytes_before)}, {share(report.bytes_after, report.bytes_before)}"
    linear = f"; linear layers {share(report.linear_bytes_after, report.linear_bytes_before)}"
    yield "Size", size(report.bytes_after), saved + linear


def _comparison(evaluation: Evaluation) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column(f"on {plural(evaluation.rows, 'other row')}")
    for name in ("original", "quantized", "relative change", "95 % interval"):
        table.add_column(name, justify="right")
    for cells in _compared(evaluation):
        table.add_row(*cells)
    return table


def _compared(evaluation: Evaluation) -> Iterator[tuple[str, str, str, str, str]]:
    """A line for each measure: its name, both models', the change and its interval."""
    ours, theirs, agreement = evaluation.candidate, evaluation.reference, evaluation.agreement
    assert theirs is not None, "a gate compares two models"
    for name, before, after, change, shown in (
        ("Accuracy", theirs.accuracy, ours.accuracy, evaluation.accuracy_change, _percent),
        ("Answers that match", theirs.match, ours.match, None, _percent),
        ("Perplexity", theirs.perplexity, ours.perplexity, evaluation.perplexity_change, _figure),
    ):
        if before is not None and after is not None:
            changed = (
                (_signed(change.value), f"{_signed(change.low)} to {_signed(change.high)}") if change else ("", "")
            )
            yield name, shown(before.value), shown(after.value), *changed
    if agreement is not None:
        for name, found in (("Same answers", agreement.answers), ("Same likeliest tokens", agreement.tokens)):
            if found is not None:
                yield name, "", _percent(found.value), "", f"{_percent(found.low)} to {_percent(found.high)}"


def _figure(value: float) -> str:
    return f"{value:.4g}"


def _percent(value: float) -> str:
    return f"{100 * value:.2f} %"


def _signed(value: float) -> str:
    return f"{100 * value:+.2f} %"
