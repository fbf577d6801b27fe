"""The closing report of a run: how it ended, the counts, the errors with their rows, and where everything is.

The same report is printed by the command line and kept as a Prefect artifact. It holds row numbers and codes, never
text of a row. Row numbers count from 0 in the order of the input.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tasks.figures import duration, numbers, plural, printable, share, short
from tasks.histogram import histogram, histogram_lines

if TYPE_CHECKING:
    from data.audit import AuditReport
    from tasks.hits import Hits

STYLES = {"completed": "bold green", "partial": "bold yellow", "failed": "bold red", "interrupted": "bold yellow"}


WAYS_SHOWN = 4


@dataclass(frozen=True)
class RunReport:
    """How a run ended.

    `state` is completed, partial, failed or interrupted; `errors` counts rows by code and `error_rows` gives the first
    positions of each; `seconds` is wall time; `accuracy` is a share, measured against the column `accuracy_label`.
    """

    state: str
    run_id: str
    folder: str
    output: str
    manifest: str | None
    rows: int
    ok: int
    errors: dict[str, int]
    error_rows: dict[str, list[int]]
    input_tokens: int
    output_tokens: int
    seconds: float
    resumed_rows: int
    workers: int
    device: str
    accuracy: float | None
    accuracy_label: str
    resume_command: str
    message: str | None
    warnings: tuple[str, ...]
    hits: Hits | None = None
    """What was not computed; None if nothing was planned."""
    deaths: Mapping[str, int] = field(default_factory=dict)
    """Of workers in this start, by how they ended."""
    finish_spread: float | None = None
    """Seconds between the last shards of the first and the last worker."""
    prompt_lengths: Sequence[int] = ()
    """Rows by the tokens of their prompt, in the bins of data.histogram; empty if nothing was planned."""
    answer_lengths: Sequence[int] = ()
    """Answers that were computed, by their tokens."""

    @property
    def failed_rows(self) -> int:
        """Rows that ended in an error."""
        return sum(self.errors.values())

    @property
    def published(self) -> bool:
        """Whether there is a result."""
        return self.state in ("completed", "partial")


def print_summary(report: RunReport, console: Console) -> None:
    """Print the report. Paths and the command stand on lines of their own and are never broken."""
    console.print()
    headline = Text.assemble(
        (f"Run {report.run_id} {report.state}", STYLES.get(report.state, "bold")), f" after {duration(report.seconds)}"
    )
    if report.message:
        headline.append(f": {printable(report.message)}")
    console.print(headline)
    console.print()
    counts = Table.grid(padding=(0, 2))
    for name, number, note in _counts(report):
        counts.add_row(name, Text(number, justify="right"), Text(note, style="dim"))
    console.print(counts)
    if report.errors:
        console.print()
        console.print(_error_table(report))
    if lengths := list(_lengths(report)):
        grid = Table.grid(padding=(0, 4, 0, 0))
        grid.add_row(*(histogram(*drawn) for drawn in lengths))
        console.print()
        console.print(grid)
    console.print()
    for name, place in _places(report):
        console.print(Text.assemble(f"{name:<9} ", (printable(place), "cyan")), soft_wrap=True)
    for warning in report.warnings:
        console.print(Text(f"Warning   {printable(warning)}", style="yellow"), soft_wrap=True)
    console.print()
    sentence, command = _next(report)
    console.print(sentence, highlight=False)
    console.print(Text(f"  {command}", style="bold"), soft_wrap=True)


def print_audit(report: AuditReport, console: Console | None = None) -> None:
    """Print what an audit found: each problem on a line, and the counts of what was verified."""
    console = console or Console()
    place = Text(printable(report.path), style="cyan")
    if report.valid:
        kind = "complete" if report.complete else "partial"
        console.print(Text.assemble(("Valid", "bold green"), f" {kind} result in ", place), soft_wrap=True)
    else:
        found = plural(len(report.problems), "problem")
        console.print(Text.assemble(("Not valid", "bold red"), f", {found}: ", place), soft_wrap=True)
        for problem in report.problems:
            console.print(Text(f"  {printable(problem)}", style="red"), soft_wrap=True)
    if report.run is None:
        return
    files, counts = plural(report.files, "file"), f"{report.ok:,} ok, {plural(sum(report.errors.values()), 'error')}"
    if report.valid:
        line = f"run {report.run}, {files}, {plural(report.rows, 'row')}: {counts}"
    elif report.counted:
        whole = "is as the manifest says and holds" if report.counted == 1 else "are as the manifest says and hold"
        line = f"run {report.run}: {report.counted:,} of {files} {whole} {plural(report.rows, 'row')}: {counts}"
    else:
        line = f"run {report.run}: none of {files} is as the manifest says, so nothing is counted"
    console.print(line, highlight=False)
    if report.counted:
        for code, count in sorted(report.errors.items()):
            console.print(f"  {code}: {count:,}", highlight=False)


def as_markdown(report: RunReport) -> str:
    """The report for a Prefect artifact."""
    lines = [f"## Run {report.run_id}: {report.state} after {duration(report.seconds)}", ""]
    if report.message:
        lines += [markdown_cell(report.message), ""]
    lines += ["| | | |", "|---|---:|---|"]
    lines += [f"| {name} | {number} | {markdown_cell(note)} |" for name, number, note in _counts(report)]
    if report.errors:
        lines += ["", "| error | rows | row numbers, from 0 |", "|---|---:|---|"]
        lines += [f"| `{code}` | {count:,} | {rows} |" for code, count, rows in _errors(report)]
    for title, what, counts in _lengths(report):
        lines += ["", f"| {title} | {what} | |", "|---:|---:|---|"]
        lines += [f"| {label} | {count} | {bar} |" for label, bar, count in histogram_lines(counts)]
    lines += ["", *(f"- {name}: {_code(place)}" for name, place in _places(report))]
    lines += [f"- Warning: {markdown_cell(warning)}" for warning in report.warnings]
    sentence, command = _next(report)
    lines += ["", sentence, "", f"    {printable(command)}", ""]
    return "\n".join(lines)


def _counts(report: RunReport) -> Iterator[tuple[str, str, str]]:
    """The lines of the summary: a name, a number, and what is to be said of it."""
    known = "" if report.published else "planned so far"
    notes = [known] if known else []
    if report.resumed_rows:
        notes.append(f"{report.resumed_rows:,} finished in an earlier start")
    hits = report.hits
    if hits is not None and hits.folded:
        notes.append(f"{hits.folded:,} answered with an equal prompt")
    if hits is not None and hits.cached:
        notes.append(f"{plural(hits.cached, 'prompt')} answered by earlier runs")
    yield "Rows", f"{report.rows:,}", ", ".join(notes)
    yield "Answered", f"{report.ok:,}", share(report.ok, report.rows) if report.rows else ""
    yield "Errors", f"{report.failed_rows:,}", share(report.failed_rows, report.rows) if report.failed_rows else ""
    if report.accuracy is not None:
        label = f"of the answers equal the column {printable(report.accuracy_label)}" if report.accuracy_label else ""
        yield "Accuracy", f"{100 * report.accuracy:.1f} %", label
    # Tokens of an earlier start or run, or of a result that was only verified, were not spent in these seconds.
    earlier = report.resumed_rows or (hits is not None and hits.cached)
    fresh = not earlier and (report.message is None or report.state == "partial") and report.seconds > 0
    for name, tokens in (("Tokens in", report.input_tokens), ("Tokens out", report.output_tokens)):
        yield name, f"{tokens:,}", f"{short(tokens / report.seconds)} a second" if fresh and tokens else ""
    if hits is not None and hits.rate:
        yield "Hit rate", f"{100 * hits.rate:.1f} %", "of the prompt tokens were not computed"
    if report.deaths:
        yield "Deaths", f"{sum(report.deaths.values()):,}", _deaths(report.deaths)
    if not report.workers:
        yield "Workers", "0", "nothing was left to compute" if report.state == "completed" else "none was started"
        return
    where = "on the CPU" if report.device == "cpu" else "on GPUs"
    if report.finish_spread is not None:
        where += f", finished within {duration(report.finish_spread)} of each other"
    yield "Workers", f"{report.workers}", where


def _deaths(deaths: Mapping[str, int]) -> str:
    """How workers ended, the most frequent ways first."""
    ways = sorted(deaths.items(), key=lambda entry: (-entry[1], entry[0]))
    shown = [f"{count:,} {how}" for how, count in ways[:WAYS_SHOWN]] if sum(deaths.values()) > 1 else [ways[0][0]]
    others = sum(count for _, count in ways[WAYS_SHOWN:])
    return f"of workers: {', '.join(shown)}" + (f" and {others:,} others" if others else "")


def _lengths(report: RunReport) -> Iterator[tuple[str, str, Sequence[int]]]:
    """What is drawn: a title, what is counted, and the counts."""
    if report.prompt_lengths:
        yield "Tokens of a prompt", "rows", report.prompt_lengths
    if sum(report.answer_lengths[1:]):
        yield "Tokens of an answer", "answers", report.answer_lengths


def _errors(report: RunReport) -> Iterator[tuple[str, int, str]]:
    for code, count in sorted(report.errors.items(), key=lambda entry: (-entry[1], entry[0])):
        yield code, count, numbers(report.error_rows.get(code, ()), count)


def _error_table(report: RunReport) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("error", style="yellow", no_wrap=True)
    table.add_column("rows", justify="right", no_wrap=True)
    table.add_column("row numbers, from 0")
    for code, count, rows in _errors(report):
        table.add_row(Text(code), f"{count:,}", Text(rows or "listed in the result once it is published", style="dim"))
    return table


def _places(report: RunReport) -> Iterator[tuple[str, str]]:
    if report.published:
        yield "Output", report.output
    if report.manifest is not None:
        yield "Manifest", report.manifest
    yield "Run", report.folder


def _next(report: RunReport) -> tuple[str, str]:
    """What the user can do next, and the command that does it."""
    command = printable(report.resume_command)
    if report.state == "partial":
        return "To finish the rest, run the same command again (with a later deadline if it was a time):", command
    if not report.published:
        return "No result was published; finished work is kept. To resume:", command
    if report.failed_rows and command.startswith("overnight "):
        retry = command if "--retry-errors" in command else f"{command} --retry-errors"
        return f"To try the {plural(report.failed_rows, 'error row')} again:", retry
    return "The same command again verifies this result and changes nothing:", command


def _code(text: str) -> str:
    return f"`{printable(text).replace('`', ' ')}`"


def markdown_cell(text: str) -> str:
    """Plain text for Markdown: no links, no HTML, no broken tables."""
    plain = printable(text)
    for letter in "\\`*_[]<>|":
        plain = plain.replace(letter, f"\\{letter}")
    return plain
