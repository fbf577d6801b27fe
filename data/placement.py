"""Where each row of a window finds its answer: equal prompts folded, inside the window and with earlier ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from data.cached_shards import take_answers
from data.database import database
from data.encoded import EncodedRows
from data.folding import Groups, Hashes, Integers, group
from data.ledger import Commit
from data.run_folder import RunFolder
from data.sharding import PlanOptions, Sequences, Sharding, divide
from data.window import KEYS, ROWS, Window, checked_path

Int32s = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Placement:
    """A window's shards, the sequence of each row (shard -1 for an error row), and its distinct new prompts."""

    sequences: Sequences
    sharding: Sharding
    shard: Int32s
    slot: Int32s
    occurrence: Int32s
    keys: pa.Table
    cached: tuple[Commit, ...]
    """Of the shards at the front that the cache answered."""

    def table(self, first_row: int, encoded: EncodedRows) -> pa.Table:
        """The table of `window.ROWS`."""
        rows = pa.array(np.arange(first_row, first_row + len(self.shard)), pa.int64())
        columns = [rows, self.shard, self.slot, self.occurrence, encoded.codes, encoded.messages]
        return pa.table(columns, schema=ROWS)


def place(
    run: RunFolder,
    identity_digest: str,
    encoded: EncodedRows,
    options: PlanOptions,
    earlier: Sequence[Window],
    first_shard: int,
    priorities: npt.NDArray[np.float64] | None = None,
) -> Placement:
    """Decide which sequences a window computes and which row each of them answers.

    `priorities` has one number for each encoded row.
    """
    answerable = encoded.answerable
    groups = group(encoded.keys[answerable])
    holders = answerable[groups.first]  # the first row of each distinct prompt
    known_shard, known_slot, before = _known(run, encoded.keys, holders, earlier)
    fresh = np.flatnonzero(known_shard < 0) if options.fold else np.arange(len(holders))
    ranks = None if priorities is None else priorities[answerable]
    if options.fold:
        best = None if ranks is None else _highest(ranks, groups)[fresh]
        sequences = Sequences(holders[fresh], np.zeros(len(fresh), np.int32), best)
    else:
        occurrence = (groups.rank + before[groups.inverse]).astype(np.int32)
        sequences = Sequences(answerable, occurrence, ranks)
    window = len(earlier)
    answered, cached = take_answers(run, identity_digest, encoded, sequences, options, first=first_shard, window=window)
    sharding = divide(
        identity_digest, encoded, sequences, options, first=first_shard, window=window, retry=0, answered=answered
    )
    if options.fold:
        known_shard[fresh], known_slot[fresh] = sharding.shard, sharding.slot
        of_shard, of_slot = known_shard[groups.inverse], known_slot[groups.inverse]
        of_occurrence = np.zeros(len(answerable), np.int32)
    else:
        of_shard, of_slot, of_occurrence = sharding.shard, sharding.slot, sequences.occurrences
    columns = []
    for values, missing in ((of_shard, -1), (of_slot, -1), (of_occurrence, 0)):
        column = np.full(encoded.rows, missing, np.int32)
        column[answerable] = values
        columns.append(column)
    keys = _keys(encoded.keys[holders[fresh]], groups.sizes[fresh], known_shard[fresh], known_slot[fresh])
    return Placement(sequences, sharding, columns[0], columns[1], columns[2], keys, cached)


def _highest(values: npt.NDArray[np.float64], groups: Groups) -> npt.NDArray[np.float64]:
    """The highest value in each group."""
    highest = np.full(len(groups.first), -np.inf)
    np.maximum.at(highest, groups.inverse, values)
    return highest


def _known(run: RunFolder, keys: Hashes, rows: Integers, earlier: Sequence[Window]) -> tuple[Int32s, Int32s, Int32s]:
    """For the key of each of `rows`: the shard and slot that answer it in an earlier window, else -1, and how often it
    came before."""
    shard, slot = np.full(len(rows), -1, np.int32), np.full(len(rows), -1, np.int32)
    before = np.zeros(len(rows), np.int32)
    if not earlier or not len(rows):
        return shard, slot, before
    paths = [str(checked_path(run, window, ".keys.parquet")) for window in earlier]
    with database(run.tmp) as connection:
        ours = {
            "n": np.arange(len(rows)),
            "hi": keys[rows, 0],
            "lo": keys[rows, 1],
        }
        connection.register("ours", pa.table(ours))
        found = connection.sql(
            """SELECT n, max(shard) AS shard, max(slot) AS slot, sum(count)::INTEGER AS before
               FROM read_parquet($paths) JOIN ours USING (hi, lo) GROUP BY n""",
            params={"paths": paths},
        ).to_arrow_table()
    position = found["n"].to_numpy()
    shard[position], slot[position] = found["shard"].to_numpy(), found["slot"].to_numpy()
    before[position] = found["before"].to_numpy()
    return shard, slot, before


def _keys(keys: Hashes, sizes: Integers, shard: Int32s, slot: Int32s) -> pa.Table:
    columns = [keys[:, 0], keys[:, 1], shard, slot, sizes.astype(np.int32)]
    return pa.table([pa.array(column) for column in columns], schema=KEYS)
