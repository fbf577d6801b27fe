"""The status of a run on a screen."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tasks.figures import duration, plural, printable, share, short

if TYPE_CHECKING:
    from tasks.status import Status

WORKERS_SHOWN = 16
OTHERS_SHOWN = 9
QUIET_SECONDS = 300.0  # a shard takes about a minute, so a run that is silent for longer deserves a look

_STYLES = {"running": "bold green", "completed": "bold green", "failed": "bold red", "not started": "bold"}


def print_status(status: Status, console: Console) -> None:
    """Print a run's status; paths stand on lines of their own and are never broken."""
    title = Text.assemble(f"Run {status.run_id} ", (status.state, _STYLES.get(status.state, "bold yellow")))
    if status.holder:
        title.append(f", driven by {printable(status.holder)}")
    elif status.state == "stopped":
        title.append(": no driver is there; run the same command again to resume")
    console.print(title, highlight=False)
    console.print()
    table = Table.grid(padding=(0, 2))
    for name, value in _lines(status):
        table.add_row(name, value)
    console.print(table, highlight=False)
    if status.workers:
        console.print()
        _print_workers(status, console)
    console.print()
    for name, place in (("Output", status.output), ("Run", status.folder)):
        if place:
            console.print(Text.assemble(f"{name:<7} ", (printable(place), "cyan")), soft_wrap=True)
    if status.command and not status.holder and status.state != "completed":
        console.print()
        console.print("To resume:", highlight=False)
        console.print(Text(f"  {printable(status.command)}", style="bold"), soft_wrap=True)
    if status.others:
        console.print()
        console.print("Other runs here, newest first:", highlight=False)
        for other in status.others[:OTHERS_SHOWN]:
            console.print(Text(f"  {printable(other)}"), soft_wrap=True)
        if len(status.others) > OTHERS_SHOWN:
            console.print(f"  and {len(status.others) - OTHERS_SHOWN} more", highlight=False)


def _lines(status: Status) -> list[tuple[str, Text]]:
    total = "" if status.rows_final else " or more; the input is still being planned"
    rows = Text(f"{status.rows_done:,} of {status.rows:,}{total}")
    if status.rows_final:
        rows.append(f"  {share(status.rows_done, status.rows)}" if status.rows else "", "dim")
    lines = [("Rows", rows if status.rows or status.rows_final else Text("not planned yet"))]
    lines.append(("Shards", Text(f"{status.shards_done:,} of {status.shards:,}")))
    lines.append(("Tokens", Text(f"{status.input_tokens:,} in, {status.output_tokens:,} out")))
    if status.hits.static or status.hits.predicted_tokens:
        found = [f"{status.hits.cached:,} of earlier runs", f"{status.hits.folded:,} equal prompts"]
        lines.append(("Hits", Text(f"{', '.join(found)}; {100 * status.hits.rate:.1f} % of the prompt tokens")))
    if status.waits_for is not None:
        lines.append(("Waits", Text(f"for {printable(status.waits_for)}", "yellow")))
    if status.row_rate:
        lines.append(
            ("Pace", Text(f"{short(status.row_rate)} rows and {short(status.output_rate)} tokens out a second"))
        )
    if status.eta_seconds is not None:
        lines.append(("Left", Text(duration(status.eta_seconds))))
    if status.outlook is not None:
        lines.append(("Deadline", Text(status.outlook.removeprefix("deadline "))))
    if status.finish_spread is not None:
        lines.append(("Spread", Text(f"the workers finished within {duration(status.finish_spread)} of each other")))
    listed = [f"{count:,} {code}" for code, count in sorted(status.errors.items())]
    if status.errors_without_code:
        listed.append(f"{status.errors_without_code:,} whose code was not read")
    lines.append(("Errors", Text(", ".join(listed), "yellow") if listed else Text("none")))
    if status.last_event is not None and status.last_event_age is not None:
        quiet = status.state == "running" and status.last_event_age > QUIET_SECONDS
        age = Text(f"{status.last_event}, {duration(status.last_event_age)} ago", "yellow" if quiet else "")
        lines.append(("Last", age))
    return lines


def _print_workers(status: Status, console: Console) -> None:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("worker", "state"):
        table.add_column(name, no_wrap=True)
    for name in ("rows", "errors", "tok/s out", "deaths"):
        table.add_column(name, justify="right", no_wrap=True)
    for worker in status.workers[:WORKERS_SHOWN]:
        table.add_row(
            str(worker.index),
            Text(worker.state, style="green" if worker.state in ("ready", "running") else "yellow"),
            f"{worker.sequences:,}",
            f"{worker.errors:,}",
            short(worker.output_rate),
            str(worker.deaths or ""),
        )
    console.print(table)
    if len(status.workers) > WORKERS_SHOWN:
        console.print(f"and {plural(len(status.workers) - WORKERS_SHOWN, 'worker')} more", highlight=False)
