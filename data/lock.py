"""Exclusive locks between drivers: one on a run folder, one on an output.

An advisory `flock` on a small file, which the kernel drops when its holder dies, however it dies. The descriptor is
not inherited by programs that the holder starts. A lock saves work and gives the second driver a clear answer; no
invariant rests on it, since the files of a run are safe when several processes write them. For the same reason nothing
that goes wrong with its release is an error, let alone one that would hide what its holder has to say.
"""

from __future__ import annotations

import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data.errors import Held

logger = logging.getLogger(__name__)


@contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Hold the lock file `path` for the block; Held, naming `what` and the holder, if another process has it.

    The file is removed on release; where it cannot be, that is a warning, and the next holder takes and removes it. A
    process that had opened it before finds that the name no longer leads to what it has locked, and opens it again.
    """
    descriptor = _acquire(path, what)
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        yield
    finally:
        _release(path, descriptor)


def _release(path: Path, descriptor: int) -> None:
    try:
        try:
            # The name may lead elsewhere by now: the folder was set aside, and another driver has locked a new one.
            if leads_to(path, descriptor):
                os.unlink(path)
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        pass
    except OSError as error:
        logger.warning("a lock file is left there, which holds nobody up: %s", error)


def _acquire(path: Path, what: str) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if leads_to(path, descriptor):
                return descriptor
        except BlockingIOError:
            holder = os.pread(descriptor, 200, 0).decode(errors="replace") or "another process"
            os.close(descriptor)
            raise Held(f"{what} is in use by {holder}") from None
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def leads_to(path: Path, descriptor: int) -> bool:
    """Whether the name still is that of the open file."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False
