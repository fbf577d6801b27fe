"""Claims on the devices of a machine, and whose turn it is: decided alike by every driver that knows them all.

The more urgent claim goes first; among equal ones the one that has the devices keeps them, and those that wait take
their turns in the order in which they came. A claim that waits keeps later ones from its devices, also from those that
are free, so that nobody is passed by for ever by claims of its own urgency. A more urgent claim takes devices from a
holder only if it could have all that it wants then: none is left idle for one that waits for others.

Nothing here touches a file: that is data.claim_file.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Claim:
    """What one driver wants, or has."""

    run: str
    process: int
    urgency: int
    devices: frozenset[str]
    shares: bool
    """Whether it takes devices that others of its urgency have too, if these share as well."""
    ticket: int
    """Grows with the order in which claims were made; no two that live have the same."""
    holds: bool
    """Whether its driver has the devices, rather than waits for them."""

    @property
    def place(self) -> tuple[int, bool, int]:
        """Sorts claims: the one that goes first is the smallest."""
        return -self.urgency, not self.holds, self.ticket

    def conflicts(self, other: Claim) -> bool:
        """Whether both cannot have their devices at once."""
        together = self.shares and other.shares and self.urgency == other.urgency
        return bool(self.devices & other.devices) and not together


def entitled(claims: Iterable[Claim]) -> list[Claim]:
    """Those whose turn it is, some of which may have to wait until others have left. No two of them conflict."""
    ahead: list[Claim] = []
    chosen: list[Claim] = []
    for claim in sorted(claims, key=lambda claim: claim.place):
        if not any(claim.conflicts(other) for other in (chosen if claim.holds else ahead)):
            chosen.append(claim)
        ahead.append(claim)
    return chosen


def obstacles(mine: Claim, claims: Sequence[Claim]) -> list[Claim]:
    """Whom `mine`, one of `claims`, has to give way to or to wait for; if to nobody, it may have its devices."""
    now = entitled(claims)
    if mine in now:
        found = [] if mine.holds else [other for other in claims if other.holds and other.conflicts(mine)]
    elif mine.holds:
        found = [other for other in now if other.conflicts(mine)]
    else:
        found = [other for other in claims if other.place < mine.place and other.conflicts(mine)]
    return sorted(found, key=lambda claim: claim.place)
