"""What the result cache holds, on a screen: where it is, how full, and the answers by model and kind of job."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from rich.console import Console
from rich.table import Table
from rich.text import Text

from data.answer_cache import AnswerCache, JobUsage
from tasks.figures import plural, printable, size


def print_cache(cache: AnswerCache, console: Console) -> None:
    """Print where the cache is, what it holds by job, and how full it is."""
    usage = cache.usage()
    entries, held = sum(job.entries for job in usage), sum(job.size for job in usage)
    console.print(Text.assemble("Cache     ", (printable(str(cache.folder)), "cyan")), soft_wrap=True)
    console.print(f"Holds     {plural(entries, 'answer')}, {size(held)} of {size(cache.max_bytes)}")
    if usage:
        console.print()
        console.print(_table(usage))


def _table(usage: Sequence[JobUsage]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("model", overflow="fold")
    for name in ("digest", "kind", "precision"):
        table.add_column(name, no_wrap=True)
    for name in ("answers", "size", "last used"):
        table.add_column(name, justify="right", no_wrap=True)
    for job in usage:
        told = [Text(printable(job.about.get(name, "?"))) for name in ("model", "digest", "kind", "precision")]
        used = datetime.fromtimestamp(job.used).strftime("%Y-%m-%d %H:%M")
        table.add_row(*told, f"{job.entries:,}", size(job.size), used)
    return table
