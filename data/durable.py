"""The one way in which a file of a run comes to exist: whole, durable and under its final name, or not at all.

A private temporary file is written, synced, closed and checked, then linked to its name. `link` refuses a name that is
taken, so of several attempts the first wins and the others learn of it; a record that was created under its final name
and then written could be found torn and would win for ever. The folder is synced last, by the losers too: whoever goes
on from a name must know that the name survives a power cut. A failed write or sync is never repeated in place, since
the kernel may have dropped the pages already: the attempt is discarded and the error raised.

What the files hold, and who may write them when, is for the run folder, the plan and the ledger to say.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from data.errors import RunError

_BLOCK = 1 << 20


def write_file(
    tmp: Path,
    target: Path,
    write: Callable[[BinaryIO], object],
    *,
    check: Callable[[Path], object] | None = None,
    same: bool = False,
    mode: int = 0o600,
) -> bool:
    """Write `target` through a temporary file in `tmp`, a folder of the same filesystem.

    Returns True when this call created the file, False when another attempt had done so. `check` reads the closed
    temporary file and raises if it is not right. `same` is for files whose bytes follow from what they are: RunError
    if the winner's differ from ours. OSError: nothing was written, or the name exists but may not be durable.
    """
    staged = stage(tmp, write, mode=mode)
    try:
        if check is not None:
            check(staged)
        return link_file(staged, target, same=same)
    finally:
        with suppress(OSError):  # it changes nothing in what was done, and the next start sweeps the folder
            staged.unlink(missing_ok=True)


def stage(tmp: Path, write: Callable[[BinaryIO], object], *, mode: int = 0o600) -> Path:
    """Write and sync a new private file in `tmp`; the caller links it to its name and unlinks it."""
    path = tmp / f"{os.getpid()}-{secrets.token_hex(8)}"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with open(descriptor, "wb", buffering=_BLOCK) as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        with suppress(OSError):  # the first error is the one to tell
            path.unlink(missing_ok=True)
        raise
    return path


def link_file(staged: Path, target: Path, *, same: bool = False) -> bool:
    """Give a staged file its name and make the name durable. False if the name was taken; `same` as in write_file."""
    try:
        os.link(staged, target)
        won = True
    except FileExistsError:
        # A network filesystem may repeat a link whose answer was lost and then find its own name.
        won = os.path.samefile(staged, target)
    if not won and same and digest_file(staged) != digest_file(target):
        raise RunError(
            f"{target} is damaged: delete it and run again. If another version of this program wrote it, use --fresh"
        )
    sync_folder(target.parent)
    return won


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(path: Path, mode: int = 0o777) -> None:
    """Create a folder and its missing parents, each made durable in the one above it.

    So is one that is there: who made it may have been killed before. A mount, or a folder in one that cannot be read
    and written, was made by nobody like us.
    """
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(mode=mode, exist_ok=True)
    elif path.is_mount() or not os.access(path.parent, os.R_OK | os.W_OK):
        return
    sync_folder(path.parent)


def move(source: Path, target: Path) -> None:
    """Rename within one folder and make it durable."""
    os.rename(source, target)
    sync_folder(target.parent)


def digest_file(path: Path) -> str:
    """SHA-256 of a file's bytes in hexadecimal."""
    with open(path, "rb", buffering=0) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
