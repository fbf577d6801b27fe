"""`overnight doctor`: everything a run rests on, looked at before a night depends on it.

Each check is one line; one that is not well says what to do. Checks come as they are made, cheap ones first, and none
of them changes anything: the files that it tries the filesystem with are removed again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tasks.check import Check
from tasks.cuda_versions import check_cuda
from tasks.figures import plural, printable
from tasks.machine import check_gpus, check_place, check_processor, read_gpus
from tasks.model_check import check_model
from tasks.settings import Settings
from tasks.versions import check_packages, check_python

NAME_WIDTH = 13
_MARKS = {"ok": ("ok  ", "green"), "warn": ("warn", "yellow"), "fail": ("FAIL", "red")}


def checks(settings: Settings, dry_run: Callable[[], str] | None = None) -> Iterator[Check]:
    """Make the checks one after the other.

    Args:
        settings: of the run that is to come.
        dry_run: answers a few rows in this process and says how that went; raises ValueError, RuntimeError or OSError
            if it did not go well. It is called if a model and an input are configured and no check before has failed.
    """
    failed = False
    for check in _before(settings):
        failed = failed or check.state == "fail"
        yield check
    if dry_run is None:
        return
    if not (settings.model.path and settings.input.path):
        advice = "set model.path and input.path to have ten rows answered"
        yield Check("dry run", "warn", "not made: no model or no input", advice)
    elif failed:
        yield Check("dry run", "warn", "not made", "put right what failed above first")
    else:
        yield _try(dry_run)


def print_checks(found: Iterable[Check], console: Console) -> bool:
    """Print each check as it comes, then the sum. Returns whether none failed."""
    counts = {"ok": 0, "warn": 0, "fail": 0}
    for check in found:
        counts[check.state] += 1
        console.print(_line(check))
    verdict = Text("\nNot ready", "bold red") if counts["fail"] else Text("\nReady", "bold green")
    verdict.append(
        f": {counts['ok']} ok, {plural(counts['warn'], 'warning')}, {counts['fail']} failed", "not bold default"
    )
    console.print(verdict)
    return not counts["fail"]


def _before(settings: Settings) -> Iterator[Check]:
    yield check_python()
    yield from check_packages()
    gpus = read_gpus()
    yield from check_gpus(gpus, settings.workers.dp_degree)
    yield from check_cuda(len(gpus.devices), gpus.cuda)
    yield from check_processor()
    yield from check_place(settings.output.path)
    yield from check_model(settings, gpus)


def _try(dry_run: Callable[[], str]) -> Check:
    try:
        return Check("dry run", "ok", dry_run())
    except (ValueError, RuntimeError, OSError) as error:
        return Check("dry run", "fail", f"{type(error).__name__}: {error}", "the message names what to change")


def _line(check: Check) -> Table:
    """Mark, name and finding in columns, the advice beneath the finding."""
    line = Table.grid(padding=(0, 2, 0, 0))
    line.add_column(width=4)
    line.add_column(width=NAME_WIDTH, no_wrap=True)
    line.add_column(overflow="fold")
    mark, style = _MARKS[check.state]
    found = Text(printable(check.found))
    if check.advice:
        found.append(f"\n{printable(check.advice)}", style)
    line.add_row(Text(mark, style), check.name, found)
    return line
