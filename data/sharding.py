"""Turns encoded rows into shards: which sequences there are, in which shard and slot, and their prompt files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from data.encoded import EncodedRows
from data.folding import MIN_SHARDS, Integers, bands, cut, order_by_prefix
from data.settings import Kind
from data.shards import Shard, ShardPrompts, shard_id

if TYPE_CHECKING:
    from data.job_answers import JobAnswers
    from data.priority import Priority

DEFAULT_WINDOW_ROWS = 10_000_000
DEFAULT_SHARD_TOKENS = 400_000


@dataclass(frozen=True, slots=True)
class PlanOptions:
    """How a window is planned. None of it changes an answer, only how the work is divided."""

    kind: Kind
    max_tokens: int
    fold: bool
    """Answer equal prompts once: right at temperature 0 and for kinds without sampling."""
    shard_tokens: int = DEFAULT_SHARD_TOKENS
    """Predicted tokens of a shard, input and output."""
    window_rows: int = DEFAULT_WINDOW_ROWS
    on_progress: Callable[[int, int], None] | None = None
    """Called with the rows planned so far and the input bytes read for them, as rows are read and as each shard's
    prompts are written. What it raises ends the planning."""
    answers: JobAnswers | None = None
    """Answers of earlier runs, which are taken where they are found."""
    priority: Priority | None = None
    """Which rows of a window are answered first."""

    @property
    def output_limit(self) -> int:
        """The most tokens a sequence can produce."""
        return self.max_tokens if self.kind == "generate" else 0


@dataclass(frozen=True, slots=True)
class Sequences:
    """What is to be computed: for each sequence, the encoded row that holds its prompt, and its occurrence."""

    rows: Integers
    occurrences: npt.NDArray[np.int32]
    priorities: npt.NDArray[np.float64] | None = None
    """The highest one of the rows that each of them answers; None if they do not differ."""


@dataclass(frozen=True, slots=True)
class Sharding:
    """Shards, and for each of them the sequences in slot order; `shard` and `slot` are the inverse, by sequence."""

    shards: list[Shard]
    members: list[Integers]
    shard: npt.NDArray[np.int32]
    """-1 for a sequence that has no shard yet."""
    slot: npt.NDArray[np.int32]

    @classmethod
    def empty(cls, sequences: int) -> Sharding:
        return cls([], [], np.full(sequences, -1, np.int32), np.full(sequences, -1, np.int32))

    def add(self, shard: Shard, members: Integers) -> None:
        """One more shard."""
        self.shards.append(shard)
        self.members.append(members)
        self.shard[members] = shard.index
        self.slot[members] = np.arange(len(members))


def divide(
    run: str,
    encoded: EncodedRows,
    sequences: Sequences,
    options: PlanOptions,
    *,
    first: int,
    window: int,
    retry: int,
    answered: Sharding | None = None,
) -> Sharding:
    """Divide sequences into shards numbered from `first`; those in shards of `answered` stay there, at the front."""
    sharding = answered if answered is not None else Sharding.empty(len(sequences.rows))
    left = np.flatnonzero(sharding.shard < 0)
    lengths = encoded.lengths[sequences.rows[left]].astype(np.int64)
    for members in _groups(encoded, sequences, left, lengths + options.output_limit, options.shard_tokens):
        # The longest first, so that no long sequence is left alone at a shard's end; the earlier one among equals.
        members = left[members[np.lexsort((members, -lengths[members]))]]
        index = first + len(sharding.shards)
        sharding.add(
            make_shard(run, encoded, sequences, members, options, index=index, window=window, retry=retry), members
        )
    return sharding


def make_shard(
    run: str,
    encoded: EncodedRows,
    sequences: Sequences,
    members: Integers,
    options: PlanOptions,
    *,
    index: int,
    window: int,
    retry: int,
) -> Shard:
    """The shard of some sequences in slot order. Its `rows` count sequences; the caller knows the rows."""
    rows = sequences.rows[members]
    identifier = shard_id(run, retry, encoded.keys[rows].astype("<u8").tobytes(), sequences.occurrences[members])
    count, tokens = len(members), int(encoded.lengths[rows].sum())
    limit = count * options.output_limit
    return Shard(identifier, window, index, count, count, tokens, limit, float(tokens + limit))


def _groups(
    encoded: EncodedRows, sequences: Sequences, left: Integers, cost: Integers, shard_tokens: int
) -> Iterator[Integers]:
    """What goes into each shard, as places in `left`, in the order in which shards are handed out.

    No shard holds two bands of priority. left: the sequences to divide; cost: of each of them.
    """
    rows = sequences.rows[left]
    ranked = [np.arange(len(left))] if sequences.priorities is None else bands(sequences.priorities[left])
    for band in ranked:
        order = band[order_by_prefix(encoded.hashes, rows[band])]
        for start, stop in cut(cost[order], shard_tokens, -(-MIN_SHARDS // len(ranked))):
            yield order[start:stop]


def shard_prompts(encoded: EncodedRows, rows: Integers, occurrences: npt.NDArray[np.int32]) -> ShardPrompts:
    """The prompts of a shard whose sequences are the given encoded rows, in slot order."""
    keys = encoded.keys[rows].astype("<u8").tobytes()
    scored = encoded.scored_from[rows].tolist() if encoded.scored_from is not None else None
    return ShardPrompts(
        ids=[encoded.ids(row) for row in rows.tolist()],
        keys=[keys[start : start + 16] for start in range(0, len(keys), 16)],
        occurrences=occurrences.tolist(),
        scored_from=scored,
    )
