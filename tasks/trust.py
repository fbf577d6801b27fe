"""Which workers of a pool are believed, judged by what they say of their canaries and of their weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from tasks.seat import Event, Seat

_FAULTS = 2  # after which a seat stays empty: the first may be a stray particle, the second is the device


def hopeless(seats: Sequence[Seat], seat: Seat, message: Event, *, proved: bool) -> bool:
    """Whether a worker's refusal holds for all. `proved`: a worker has been ready.

    If nobody could load the model, the next one will not either: it is wrong, not unlucky. Where canaries disagree,
    also before any worker is ready, the run ends once most do: then the one that was first may be wrong.
    """
    seat.refused = bool(message.get("canary"))
    if seat.refused and not message.get("certain"):
        return 2 * sum(seat.refused for seat in seats) > len(seats)
    return seat.refused or not proved


def free_for_questions(seats: Sequence[Seat], besides: int) -> list[Seat]:
    """The seats whose workers can answer for worker `besides`, the one that holds least first.

    A worker that is alone with a suspected shard must not die of anything else, and one that is leaving has no time.
    """
    free = [seat for seat in seats if seat.index != besides and seat.ready and not (seat.alone or seat.leaving)]
    return sorted(free, key=lambda seat: seat.tokens)


class Faults:
    """Counts how often the memory of a seat's workers has changed their weights."""

    def __init__(self) -> None:
        self._count: Counter[int] = Counter()

    def note(self, seat: Seat) -> None:
        """Its process is about to end of that. After the second time no other one is started."""
        self._count[seat.index] += 1
        if self._count[seat.index] >= _FAULTS:
            seat.failures = max(seat.failures, seat.retries + 1)
