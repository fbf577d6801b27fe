"""A pointer: a name that leads to a checkpoint, so that what comes at night follows it without a change of settings.

It is a relative symbolic link, which every tool follows, put in place by rename, so that it leads to the old checkpoint
or to the new one at every moment. The link is the truth. Its history lies beside it and is written first: a kill in
between leaves a line without a move, which `data.pointer_history` recognises.

A run reads a pointer once, when its job is prepared (`Checkpoint.open`); moving it changes no run that has begun.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path

from data.checkpoint import Checkpoint
from data.durable import move, sync_folder
from data.errors import Held, InputError
from data.lock import locked
from data.pointer_history import Move, Place, made, read_moves, trail, write_move

WAIT_SECONDS = 5.0
_POLL_SECONDS = 0.05


class Pointer:
    """The pointer of a path, which need not be there yet."""

    def __init__(self, path: Path | str) -> None:
        """InputError if something else than a link has this name, or its folder is not there."""
        self.given = Path(path).expanduser()
        self.folder = Path(os.path.realpath(self.given.parent))
        self.link = self.folder / self.given.name
        self._history = self.folder / f".{self.link.name}.history.jsonl"
        self._check()

    def _check(self) -> None:
        if not self.folder.is_dir():
            raise InputError(f"{self.given.parent} is not a folder: make it first, or name the pointer elsewhere")
        if not self.link.is_symlink() and self.link.exists():
            kind = "folder" if self.link.is_dir() else "file"
            raise InputError(f"{self.given} is a {kind}, and a pointer is a link: choose another name for the pointer")

    def target(self) -> Path | None:
        """The folder to which it leads, which need not be there; None if there is no pointer."""
        return Path(os.path.realpath(self.link)) if self.link.is_symlink() else None

    def moves(self) -> list[Move]:
        """Its history, from the first move on."""
        return read_moves(self._history)

    def led_to(self, checkpoint: Path) -> bool:
        """Whether it was ever moved to this checkpoint, as its bytes are now."""
        to = Place(self._relative(Path(os.path.realpath(checkpoint))), Checkpoint.open(str(checkpoint)).digests())
        target = self.target()
        now = None if target is None else self._relative(target)
        return any(was_made and move.to == to for move, was_made in made(self.moves(), now))

    def place(self) -> Place | None:
        """Where it is, with the digests that were recorded when it was moved there; None if there is no pointer.

        One that was moved there by hand has those of today.
        """
        target = self.target()
        if target is None:
            return None
        known = trail(self.moves(), Place(self._relative(target), None))[-1]
        return known if known.digests is not None else Place(known.path, _digests(target))

    def promote(self, checkpoint: Path | str) -> Move | None:
        """Lead to a checkpoint from now on; None if it leads there already and nothing there has changed.

        Raises:
            InputError: it is no checkpoint, or one that a pointer here cannot lead to.
            Held: others were moving the pointer for five seconds.
        """
        folder = self._real(Path(checkpoint).expanduser())
        to = Place(self._relative(folder), Checkpoint.open(str(folder)).digests())
        with self._locked():
            before = self.place()
            if to == before:
                sync_folder(self.folder)  # whoever moved it there may have been killed before this
                return None
            return self._move(to, before, rollback=False)

    def roll_back(self) -> Move:
        """Lead to the checkpoint before; repeated, to the one before that.

        Raises:
            InputError: there is none, it is gone, or it is not what it was when the pointer led to it.
            Held: others were moving the pointer for five seconds.
        """
        with self._locked():
            before = self.place()
            if before is None:
                raise InputError(f"{self.given} does not exist: overnight promote {self.given} CHECKPOINT makes it")
            places = trail(self.moves(), before)
            if len(places) < 2:
                raise InputError(f"{self.given} has led to no checkpoint before {before.path}")
            to = places[-2]
            self._check_unchanged(to)
            return self._move(to, before, rollback=True)

    def _check_unchanged(self, to: Place) -> None:
        folder = self.folder / to.path
        remedy = f"name another one with overnight promote {self.given} CHECKPOINT"
        if not folder.exists():
            raise InputError(f"the checkpoint before, {folder}, is gone: put it back, or {remedy}")
        if Checkpoint.open(str(folder)).digests() != to.digests:
            raise InputError(
                f"the checkpoint before, {folder}, is not what it was when {self.given} led to it (its digest has "
                f"changed): restore it, or {remedy}"
            )

    def _move(self, to: Place, before: Place | None, *, rollback: bool) -> Move:
        self._check()
        line = Move(datetime.now(UTC).isoformat(timespec="seconds"), to, before, rollback)
        write_move(self._history, line)
        new = self.folder / f".{self.link.name}.new"
        new.unlink(missing_ok=True)  # of one that was killed
        os.symlink(to.path, new)
        move(new, self.link)
        return line

    def _real(self, checkpoint: Path) -> Path:
        """The folder of a checkpoint, pointers resolved. InputError if this pointer cannot lead to it."""
        for parent in checkpoint.absolute().parents:
            if parent.is_symlink() and Path(os.path.realpath(parent.parent)) / parent.name == self.link:
                raise InputError(
                    f"{checkpoint} lies inside {self.given}: name it by its real path, {os.path.realpath(checkpoint)}"
                )
        real = Path(os.path.realpath(checkpoint))
        if not real.exists():
            link = f" (a link to {os.readlink(checkpoint)})" if checkpoint.is_symlink() else ""
            raise InputError(f"{checkpoint}{link} does not exist: name the folder of a checkpoint")
        if real == self.folder or real in self.folder.parents:
            raise InputError(f"{self.given} lies inside {checkpoint}: choose a place beside it for the pointer")
        return real

    def _relative(self, folder: Path) -> str:
        return os.path.relpath(folder, self.folder)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        until = time.monotonic() + WAIT_SECONDS
        with ExitStack() as stack:
            while True:
                try:
                    stack.enter_context(locked(self.folder / f".{self.link.name}.lock", f"the pointer {self.given}"))
                    break
                except Held:
                    if time.monotonic() > until:
                        raise
                time.sleep(_POLL_SECONDS)
            yield


def promote(pointer: Path | str, checkpoint: Path | str) -> Move | None:
    """Have a pointer lead to a checkpoint, both as paths; see `Pointer.promote`."""
    return Pointer(pointer).promote(checkpoint)


def _digests(folder: Path) -> dict[str, str] | None:
    try:
        return Checkpoint.open(str(folder)).digests()
    except InputError:  # a link that somebody made by hand may lead to anything
        return None
