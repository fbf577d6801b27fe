"""This run's turn on its devices: when it may have them, when it must leave them, and what is told of both.

There is no broker. Every driver looks at the claims of the others twice a second and comes to the same ruling
(data.claims). One that sees a more urgent claim hands out no further shard, and leaves its devices when those in flight
are finished; that is the border at which the other one comes in. Whether another driver still lives is told by the
kernel, so that nobody waits for a dead one; a waiting run ends by its deadline or an interrupt as any other does. Where
claims cannot be kept, in a home that cannot be written for example, the run takes no turns and warns of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from data.claim_file import ClaimFile, claims_folder
from data.claims import Claim
from data.errors import Held
from tasks.settings import Settings

LOOK_SECONDS = 0.5
ENTER_SECONDS = 10.0
"""How long a start waits for a process that was stopped in the few system calls in which it holds the gate."""


class Turn:
    """The turn of one run. Used by one thread at a time.

    Args:
        claim: on its devices.
        tell: takes events.
    """

    def __init__(self, claim: ClaimFile, tell: Callable[[dict[str, Any]], None]) -> None:
        self._claim, self._tell = claim, tell
        self._ours = False
        self._next_look = 0.0
        self._told: tuple[str, Claim] | None = None
        self._broken = False

    def enter(self, *, refuse: bool) -> None:
        """Make the claim. Held if it would have to `refuse` to wait: for one that does not give way to it."""
        try:
            found = self._claim.look()
            deadline = time.monotonic() + ENTER_SECONDS
            while found is None and time.monotonic() < deadline:
                found = self._claim.look()
        except OSError:
            return  # told when the devices are asked for
        if refuse and found is None:
            raise Held("another driver was stopped while it looked at the claims on this machine's devices")
        first = next((claim for claim in found or () if claim.urgency >= self._claim.urgency), None)
        if refuse and first is not None:
            raise Held(
                f"{_devices(first)} in use by run {first.run}, process {first.process}, and schedule.overlap = 'refuse'"
            )

    def ours(self) -> bool:
        """Whether shards may be handed out. If not, `leave` is to be called once none is in flight."""
        if self._broken or (now := time.monotonic()) < self._next_look:
            return self._ours
        self._next_look = now + LOOK_SECONDS
        try:
            found = self._claim.look()
        except OSError as error:
            self._give_up(error)
            return self._ours
        if found is not None:
            self._ours = not found
            self._tell_of(found)
        return self._ours

    def leave(self) -> None:
        """The devices are free: no worker is left. Idempotent."""
        try:
            if self._claim.holds and self._claim.leave() and self._told is not None:
                self._say("waiting", self._told[1])
        except OSError as error:
            self._give_up(error)

    def end(self) -> None:
        """The devices are not wanted any more. Idempotent."""
        self._claim.withdraw()

    def _tell_of(self, found: list[Claim]) -> None:
        if found:
            self._say("yielding" if self._claim.holds else "waiting", found[0])
        elif self._told is not None:
            self._told = None
            self._tell({"event": "going_on"})

    def _say(self, kind: str, first: Claim) -> None:
        about = {"run": first.run, "process": first.process, "urgency": first.urgency}
        before = self._told
        self._told = kind, first
        if before is None or before[0] != kind or (before[1].run, before[1].process) != (first.run, first.process):
            self._tell({"event": kind, **about, "devices": sorted(first.devices)})

    def _give_up(self, error: OSError) -> None:
        self._broken, self._ours = True, True
        message = f"this run takes no turns with others on this machine: its claim cannot be kept: {error}"
        self._tell({"event": "warning", "code": "turns", "message": message})
        if self._told is not None:
            self._told = None
            self._tell({"event": "going_on"})


@contextmanager
def turn_of(
    run: str, settings: Settings, devices: frozenset[str], tell: Callable[[dict[str, Any]], None]
) -> Iterator[Turn]:
    """The turn of a run for the block; Held if it is not to wait and would have to."""
    schedule = settings.schedule
    shares = schedule.overlap == "share" or (schedule.overlap is None and devices == {"cpu"})
    turn = Turn(ClaimFile(claims_folder(), run, schedule.urgency, devices, shares), tell)
    try:
        turn.enter(refuse=schedule.overlap == "refuse")
        yield turn
    finally:
        turn.end()


def _devices(claim: Claim) -> str:
    return "the CPU is" if claim.devices == {"cpu"} else f"{', '.join(sorted(claim.devices))} are"
