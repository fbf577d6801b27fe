"""A shard whose workers die: which of its rows is to blame, as far as its attempts tell, and what to do next.

It is tried whole twice, the second time with nothing beside it. If both died, its slots are tried in halves, each half
that dies in halves again, until what kills is a single slot; a slot that has killed twice, alone, is poisoned: an error
row. A trial keeps no answers. Once none is left the shard is computed in one pass without its poisoned slots, so the
answers of the others follow from the shard and from which of its slots are poisoned, and never from the history of the
search; if no slot is to blame, they are those of an undisturbed run. A shard whose slots all survive alone while the
whole still kills is computed in the parts that have survived, one after the other, as the last resort.

Slots that died before are tried first, in the worker that came up after that death; then what is untried. Everything
follows from the records, so a new driver goes on where the last one was. Which process tries what is not said here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from data.attempts import Attempt
from data.errors import RunError

TWICE = 2.0
ALONE_AFTER = 1.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is known of a shard. Slots are positions in it."""

    poisoned: frozenset[int]
    """Slots that are error rows."""
    trial: range | None
    """Slots to try next; None if nothing is left to find out."""
    parts: tuple[range, ...]
    """What to compute, one after the other, without the poisoned slots; the whole shard, but for the last resort."""


def alone(attempts: Sequence[Attempt]) -> bool:
    """Whether the shard's next attempt shall have a worker to itself."""
    return _deaths(attempts) >= ALONE_AFTER


def judge(shard: str, sequences: int, attempts: Sequence[Attempt]) -> Verdict:
    """What the attempts at a shard tell. RunError: it kills its workers although none of its parts does."""
    whole = range(sequences)
    if _deaths(attempt for attempt in attempts if not attempt.trial) < TWICE:
        return Verdict(frozenset(), None, (whole,))
    trials = [attempt for attempt in attempts if attempt.trial and attempt.end != "stopped"]
    pieces = list(_search(whole, trials, kills=True))
    poisoned = frozenset(piece.start for piece, state in pieces if state == "poisoned")
    for wanted in ("again", "untried"):
        for piece, state in pieces:
            if state == wanted:
                return Verdict(poisoned, piece, ())
    last = trials[-1].number if trials else 0
    since = _deaths(attempt for attempt in attempts if attempt.number > last)
    if since >= 2 * TWICE:
        raise RunError(
            f"shard {shard} ends its workers although none of its rows does so alone; "
            "the last words are in the run's folder workers/"
        )
    survived = tuple(piece for piece, state in pieces if state == "survived")
    return Verdict(poisoned, None, (whole,) if since < TWICE else survived)


def _search(piece: range, trials: Sequence[Attempt], *, kills: bool = False) -> Iterator[tuple[range, str]]:
    """The pieces that the search has come to, by slot: survived, untried, again, or poisoned."""
    own = [trial for trial in trials if range(trial.first, trial.stop) == piece]
    if any(trial.end == "survived" for trial in own):
        yield piece, "survived"
    elif len(piece) == 1:
        yield piece, "poisoned" if _deaths(own) >= TWICE else "again" if own else "untried"
    elif own or kills:
        middle = (piece.start + piece.stop) // 2
        yield from _search(range(piece.start, middle), trials)
        yield from _search(range(middle, piece.stop), trials)
    else:
        yield piece, "untried"


def _deaths(attempts: Iterable[Attempt]) -> float:
    return sum(attempt.deaths for attempt in attempts)
