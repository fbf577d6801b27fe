"""The claim of this driver on devices of its machine, as a file that lives no longer than the driver does.

Each driver has a file of its own in one folder of its user on this machine, locked (`flock`) while it lives. The kernel
drops the lock when the driver dies, however it dies; a file without a lock means nothing, and is removed by whoever
sees it. The end of the file's name says whether its driver waits for the devices or has them. Files are made, read and
renamed under one more lock, the gate: of two drivers that look at once, one comes after the other and sees what that
one did. The gate is held for a few system calls. Whose turn it is, is decided by data.claims.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from data.claims import Claim, obstacles
from data.digests import user_cache
from data.lock import leads_to

WAITS, HOLDS = ".waits", ".holds"
GATE_SECONDS = 0.1
MAX_BYTES = 1 << 16


def claims_folder() -> Path:
    """Where drivers of this user on this machine have their claims.

    A home may be shared by machines, and by containers of one machine, whose names differ: the boot tells them apart.
    """
    try:
        machine = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        machine = socket.gethostname()
    return user_cache() / "claims" / machine


class ClaimFile:
    """A claim. It waits until `look` finds that it may have the devices.

    Args:
        folder: of all claims.
        run, urgency, devices, shares: see Claim.
    """

    def __init__(self, folder: Path, run: str, urgency: int, devices: frozenset[str], shares: bool) -> None:
        self._folder = folder
        self._name = f"{os.getpid()}-{secrets.token_hex(4)}"
        self._claim = Claim(run, os.getpid(), urgency, devices, shares, ticket=0, holds=False)
        self._descriptor: int | None = None

    @property
    def holds(self) -> bool:
        """Whether the devices are this driver's."""
        return self._claim.holds

    @property
    def urgency(self) -> int:
        """Of this claim."""
        return self._claim.urgency

    def look(self) -> list[Claim] | None:
        """Whom this claim has to give way to or to wait for. If to nobody, it holds its devices from now on.

        None if another process has the gate; nothing has changed then.
        """
        with self._gate() as inside:
            if not inside:
                return None
            others = self._others()
            self._be_there(others)
            found = obstacles(self._claim, [self._claim, *others])
            if not found and not self.holds:
                self._become(holds=True)
            return found

    def leave(self) -> bool:
        """Wait again, in the old place; called once the devices are free. False if another process has the gate."""
        with self._gate() as inside:
            if inside and self.holds:
                self._become(holds=False)
            return inside

    def withdraw(self) -> None:
        """Want the devices no longer. Idempotent."""
        if self._descriptor is not None:
            with suppress(OSError):  # without its lock it means nothing
                self._path.unlink()
            os.close(self._descriptor)
            self._descriptor = None

    @property
    def _path(self) -> Path:
        return self._folder / (self._name + (HOLDS if self.holds else WAITS))

    @contextmanager
    def _gate(self) -> Iterator[bool]:
        """Hold the gate for the block; False if another process had it all the time."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self._folder / "gate"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            yield _locked(descriptor, GATE_SECONDS) and leads_to(path, descriptor)
        finally:
            os.close(descriptor)

    def _others(self) -> list[Claim]:
        paths = [path for path in self._folder.iterdir() if path.suffix in (WAITS, HOLDS) and path.stem != self._name]
        return [claim for path in paths if (claim := _living(path)) is not None]

    def _be_there(self, others: list[Claim]) -> None:
        """Make the file if it is not there: at the first look, or because somebody has emptied the folder."""
        if self._descriptor is not None:
            if leads_to(self._path, self._descriptor):
                return
            os.close(self._descriptor)
            self._descriptor = None
        if not self._claim.ticket:
            ticket = 1 + max((other.ticket for other in others), default=0)
            self._claim = replace(self._claim, ticket=ticket)
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_TRUNC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # nobody else looks at it without the gate
            os.write(descriptor, _text(self._claim))
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor

    def _become(self, *, holds: bool) -> None:
        claim = replace(self._claim, holds=holds)
        self._path.rename(self._folder / (self._name + (HOLDS if holds else WAITS)))
        self._claim = claim


def _text(claim: Claim) -> bytes:
    words = {"run": claim.run, "process": claim.process, "urgency": claim.urgency, "ticket": claim.ticket}
    more = {"devices": sorted(claim.devices), "shares": claim.shares, "made": time.time()}
    return json.dumps(words | more).encode()


def _living(path: Path) -> Claim | None:
    """The claim of another driver; None if that is dead, or has withdrawn it. Under the gate."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return _parsed(os.read(descriptor, MAX_BYTES), holds=path.suffix == HOLDS)
    else:
        with suppress(FileNotFoundError):
            path.unlink()
        return None
    finally:
        os.close(descriptor)


def _parsed(text: bytes, *, holds: bool) -> Claim | None:
    try:
        words = json.loads(text)
        return Claim(
            run=str(words["run"]),
            process=int(words["process"]),
            urgency=int(words["urgency"]),
            devices=frozenset(map(str, words["devices"])),
            shares=bool(words["shares"]),
            ticket=int(words["ticket"]),
            holds=holds,
        )
    except (ValueError, KeyError, TypeError):  # of another version of this program
        return None


def _locked(descriptor: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.005)
