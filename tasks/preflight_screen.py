"""A plan on a screen: what there is to do, what cannot be done, how long prompts and answers are, and what it takes.

Row numbers and codes, never text of a row.
"""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tasks.figures import duration, numbers, plural, printable, share, size
from tasks.histogram import histogram
from tasks.preflight import Offer, PlanReport

_ROWS = "row numbers, from 0"


def print_plan(report: PlanReport, console: Console) -> None:
    """Print a plan; paths and the command stand on lines of their own and are never broken."""
    state = "published already" if report.published else "planned"
    console.print()
    console.print(Text.assemble(f"Run {report.job.run_id} ", (state, "bold green")))
    console.print()
    counts = Table.grid(padding=(0, 2))
    for name, number, note in _counts(report):
        counts.add_row(name, Text(number, justify="right"), Text(note, style="dim"))
    console.print(counts)
    for part in (_errors(report), _histograms(report), _needs(report)):
        if part is not None:
            console.print()
            console.print(part)
    console.print()
    _print_end(report, console)


def _counts(report: PlanReport) -> Iterator[tuple[str, str, str]]:
    planned, prompts = report.planned, report.planned.prompts
    failed = sum(planned.errors.values())
    yield "Rows", f"{planned.rows:,}", ""
    yield "Errors", f"{failed:,}", f"{share(failed, planned.rows)} of the rows have no prompt" if failed else ""
    folded = f"{share(planned.folded, planned.rows)} of the rows are answered with an equal prompt"
    yield "Folded", f"{planned.folded:,}", folded if planned.folded else ""
    if planned.cached:
        yield "Known", f"{planned.cached:,}", "answers of earlier runs, from the cache"
    yield "To answer", f"{round(prompts.sequences):,}", f"in {plural(len(planned.shards), 'shard')}"
    saved = planned.input_tokens - round(prompts.tokens - prompts.shared)
    why = f"{plural(round(prompts.shared), 'token')} of prompts that begin alike"
    others = [name for name, some in (("folded rows", planned.folded), ("what is answered", planned.answered)) if some]
    why = " and ".join([", ".join([why, *others[:-1]]), *others[-1:]])
    note = f"{share(saved, planned.input_tokens)} need not be computed: {why}" if planned.shards else ""
    yield "Tokens in", f"{planned.input_tokens:,}", note
    yield "Tokens out", f"{round(report.tokens_out):,}", report.forecaster.outputs_source


def _errors(report: PlanReport) -> Table | None:
    if not report.planned.errors:
        return None
    table = _table("error", "rows", _ROWS, left=(0, 2))
    for code, count in sorted(report.planned.errors.items(), key=lambda entry: (-entry[1], entry[0])):
        table.add_row(Text(code, "yellow"), f"{count:,}", numbers(report.error_rows.get(code, ()), count))
    return table


def _histograms(report: PlanReport) -> Table | None:
    if not report.planned.lengths:
        return None
    answers = report.forecaster.outputs.counts if report.tokens_out else ()
    # Of answers the shape is known, from however many there were: drawn for those that there will be.
    scale = report.planned.prompts.sequences / max(sum(answers), 1)
    grid = Table.grid(padding=(0, 4, 0, 0))
    prompts = histogram("Tokens of a prompt", "rows", report.planned.lengths)
    predicted = histogram("Tokens of an answer, predicted", "answers", [round(n * scale) for n in answers])
    grid.add_row(prompts, predicted if answers else "")
    return grid


def _needs(report: PlanReport) -> Table | None:
    """Memory beside time."""
    if not report.planned.shards:
        return None
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_row(_memory(report), _times(report))
    return grid


def _memory(report: PlanReport) -> Table:
    table = _table("memory of a worker", *(offer.precision.name for offer in report.offers), left=(0,))
    at_once = [min(offer.memory.batch, report.planned.prompts.sequences) for offer in report.offers]
    memories = [offer.memory for offer in report.offers]
    table.add_row("weights", *(size(memory.weights) for memory in memories))
    table.add_row("a step", *(size(memory.step) for memory in memories))
    if any(memory.sequence for memory in memories):
        table.add_row("KV of a row", *(size(memory.sequence) for memory in memories))
        longest = (Text(size(memory.longest), "" if memory.fits else "bold red") for memory in memories)
        table.add_row("KV of the longest", *longest)
        table.add_row("rows at once", *(f"{round(rows):,}" for rows in at_once))
        kv = (size(rows * memory.sequence) for rows, memory in zip(at_once, memories, strict=True))
        table.add_row("KV of these", *kv)
    if any(memory.device for memory in memories):
        table.add_row("the device", *(size(memory.device or 0) for memory in memories))
    return table


def _times(report: PlanReport) -> Table:
    price = report.job.settings.workers.hourly_price
    names = [name for offer in report.offers for name in (offer.precision.name, *(["cost"] if price else []))]
    table = _table("workers", *names, "", left=(-1,))
    for count in report.offers[0].seconds:
        cells = []
        for offer in report.offers:
            cells.append(duration(offer.seconds[count]) if offer.memory.fits else "does not fit")
            if price:
                cells.append(f"{offer.seconds[count] / 3600 * count * price:,.2f}" if offer.memory.fits else "")
        here = count == report.job.placement.workers
        table.add_row(str(count), *cells, Text("here", "dim") if here else "", style="bold" if here else "")
    return table


def _print_end(report: PlanReport, console: Console) -> None:
    """Where the times come from, what to know, and what to do next."""
    console.print(Text.assemble("Device    ", (printable(report.forecaster.device), "cyan")), soft_wrap=True)
    for source, offers in _by_source(report).items():
        names = f"{' and '.join(offer.precision.name for offer in offers)}: " if len(report.offers) > 1 else ""
        style = "" if all(offer.rates.measured for offer in offers) else "yellow"
        console.print(Text.assemble("Time      ", (names + source, style)), soft_wrap=True)
    console.print(Text.assemble("Run       ", (printable(str(report.job.run_path)), "cyan")), soft_wrap=True)
    for warning in report.job.warnings:
        console.print(Text(f"Warning   {printable(warning)}", style="yellow"), soft_wrap=True)
    console.print()
    console.print("To run this plan:", highlight=False)
    console.print(Text(f"  {printable(report.job.command)}", style="bold"), soft_wrap=True)


def _by_source(report: PlanReport) -> dict[str, list[Offer]]:
    found: dict[str, list[Offer]] = {}
    for offer in report.offers if report.planned.shards else ():
        found.setdefault(offer.rates.source, []).append(offer)
    return found


def _table(*names: str, left: tuple[int, ...]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    aligned = {number % len(names) for number in left}
    for number, name in enumerate(names):
        table.add_column(name, justify="left" if number in aligned else "right", no_wrap=name != _ROWS)
    return table
