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
    slot: npt.NDArray[np.int32]


def divide(
    run: str, encoded: EncodedRows, sequences: Sequences, options: PlanOptions, *, first: int, window: int, retry: int
) -> Sharding:
    """Divide sequences into shards numbered from `first`. `Shard.rows` counts sequences; the caller knows the rows."""
    lengths = encoded.lengths[sequences.rows].astype(np.int64)
    count = len(lengths)
    result = Sharding([], [], np.full(count, -1, np.int32), np.full(count, -1, np.int32))
    for number, members in enumerate(_groups(encoded, sequences, lengths + options.output_limit, options.shard_tokens)):
        # The longest first, so that no long sequence is left alone at a shard's end; the earlier one among equals.
        members = members[np.lexsort((members, -lengths[members]))]
        keys = encoded.keys[sequences.rows[members]].astype("<u8").tobytes()
        identifier = shard_id(run, retry, keys, sequences.occurrences[members])
        count, tokens = len(members), int(lengths[members].sum())
        limit = count * options.output_limit
        result.shards.append(
            Shard(identifier, window, first + number, count, count, tokens, limit, float(tokens + limit))
        )
        result.members.append(members)
        result.shard[members] = first + number
        result.slot[members] = np.arange(count)
    return result


def _groups(encoded: EncodedRows, sequences: Sequences, cost: Integers, shard_tokens: int) -> Iterator[Integers]:
    """The sequences of each shard, in the order in which shards are handed out: none holds two bands of priority."""
    hashes = encoded.hashes[sequences.rows]
    ranked = [np.arange(len(cost))] if sequences.priorities is None else bands(sequences.priorities)
    for band in ranked:
        order = band[order_by_prefix(hashes[band])]
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
