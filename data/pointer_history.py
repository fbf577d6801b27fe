"""Where a pointer has been: one JSON line a move, written before the move.

A line without its move is what a kill between the two leaves. It is told by the link, which alone says where the
pointer is: a move was made if the pointer was where it led to when the next line was written, or is there now. What
follows the last line end was never synced, so no move followed it either; the next line takes its place.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data.durable import sync_folder
from data.errors import InputError


@dataclass(frozen=True, slots=True)
class Place:
    """A checkpoint that a pointer leads to."""

    path: str
    """From the pointer's folder."""
    digests: Mapping[str, str] | None
    """As `Checkpoint.digests` gives them; None if it was no checkpoint that could be read."""

    @property
    def short_digest(self) -> str:
        """The beginning of the model's digest, as `overnight cache` shows it."""
        return self.digests["model"][:12] if self.digests else "unknown"


@dataclass(frozen=True, slots=True)
class Move:
    """One line of the history."""

    time: str
    """ISO, in UTC."""
    to: Place
    before: Place | None
    """None if there was no pointer."""
    rollback: bool


def read_moves(path: Path) -> list[Move]:
    """The moves in the order in which they were written. InputError for a line that is none."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    lines = content[: content.rfind(b"\n") + 1].splitlines()
    return [_parsed(line, f"{path}, line {number}") for number, line in enumerate(lines, 1)]


def write_move(path: Path, move: Move) -> None:
    """Append a line and make it durable. The caller holds the pointer's lock."""
    line = json.dumps(asdict(move)).encode() + b"\n"
    with open(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), "r+b") as file:
        file.seek(file.read().rfind(b"\n") + 1)
        file.truncate()
        file.write(line)
        file.flush()
        os.fsync(file.fileno())
    sync_folder(path.parent)


def made(moves: Sequence[Move], now: str | None) -> Iterator[tuple[Move, bool]]:
    """Each move, and whether it was made; `now` is the path that the pointer leads to.

    One after which the link was moved by hand before the next line was written counts as not made, since it may have
    been killed: a rollback goes to no place to which the pointer may never have led.
    """
    for move, following in zip(moves, (*moves[1:], None), strict=False):
        found = now if following is None else following.before and following.before.path
        yield move, move.to.path == found


def trail(moves: Sequence[Move], now: Place | None) -> list[Place]:
    """The places that rollbacks lead through, the present one last.

    A rollback takes off its end what it left; a place to which the pointer was moved by hand is a part of it.
    """
    places: list[Place] = []
    for move, was_made in made(moves, now.path if now else None):
        _go(places, move.before)
        if was_made and move.rollback and move.to in places:
            del places[len(places) - places[::-1].index(move.to) :]
        elif was_made and places[-1:] != [move.to]:
            places.append(move.to)
    _go(places, now)
    return places


def _go(places: list[Place], found: Place | None) -> None:
    if found is not None and (not places or places[-1].path != found.path):
        places.append(found)


def _parsed(line: bytes, where: str) -> Move:
    try:
        record: dict[str, Any] = json.loads(line)
        to, before = record.pop("to"), record.pop("before")
        return Move(to=Place(**to), before=None if before is None else Place(**before), **record)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{where}, is no move of a pointer: delete the line, or move the file away") from error
