"""A pointer on a screen: where it leads, whether that is what it was, and where it has led before."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from data.checkpoint import Checkpoint
from data.errors import InputError
from data.pointer import Pointer
from data.pointer_history import Move, Place, made
from tasks.figures import printable


def print_move(pointer: Pointer, move: Move | None, console: Console) -> None:
    """Print what a move has changed; None if it has changed nothing."""
    place = move.to if move is not None else pointer.place()
    assert place is not None
    what = "leads" if move is not None else "leads already"
    _line(console, f"{pointer.given} {what} to {place.path}, digest {place.short_digest}")
    if move is not None and move.before is not None:
        _line(console, f"Before: {move.before.path}, digest {move.before.short_digest}")


def print_pointer(pointer: Pointer, console: Console) -> None:
    """Print where a pointer leads and has led. InputError if there is none."""
    place = pointer.place()
    if place is None:
        raise InputError(f"{pointer.given} does not exist: overnight promote {pointer.given} CHECKPOINT makes it")
    folder = pointer.folder / place.path
    _line(console, f"{pointer.given} leads to {place.path}")
    _line(console, f"Folder  {Path(folder).resolve()}")
    _line(console, f"Digest  {place.digests['model'] if place.digests else 'unknown'}")
    if trouble := _trouble(place, folder):
        console.print(Text(f"Warning {printable(trouble)}", style="yellow"), soft_wrap=True)
    if moves := pointer.moves():
        console.print()
        console.print(_table(moves, place))


def _trouble(place: Place, folder: Path) -> str | None:
    """What keeps a run from going there, or makes it another checkpoint than the one that was promoted."""
    try:
        changed = Checkpoint.open(str(folder)).digests() != place.digests
    except InputError as error:
        return str(error)
    return "its digest has changed since the pointer was moved there" if changed else None


def _table(moves: list[Move], place: Place) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("time (UTC)", "move", "checkpoint", "digest"):
        table.add_column(name, no_wrap=name != "checkpoint", overflow="fold")
    for row in _rows(moves, place):
        table.add_row(*map(Text, row))
    return table


def _rows(moves: list[Move], place: Place) -> Iterator[tuple[str, str, str, str]]:
    for move, was_made in made(moves, place.path):
        what = "not made" if not was_made else "rollback" if move.rollback else "promotion"
        time = datetime.fromisoformat(move.time).strftime("%Y-%m-%d %H:%M:%S")
        yield time, what, printable(move.to.path), move.to.short_digest


def _line(console: Console, text: str) -> None:
    console.print(Text(printable(text)), soft_wrap=True)
