"""Shards of sequences that an earlier run has answered: gathered while a window is planned, committed once it exists.

Their results are made durable under the digest of their bytes before the window's json is written, which holds the
commits to be. So the plan never promises answers that are gone: committing needs the run folder alone, whatever becomes
of the cache meanwhile, and from then on nobody need know that no worker has computed them. Sequences come in the order
in which the cache gives them, so that each of its files is read once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa

from data.durable import digest_file
from data.encoded import EncodedRows
from data.folding import MAX_SEQUENCES, Integers
from data.ledger import CACHE, Commit, Ledger, record_commit, results_path, store_results
from data.run_folder import RunFolder
from data.sharding import PlanOptions, Sequences, Sharding, make_shard
from data.window import Window


def take_answers(
    run: RunFolder,
    identity_digest: str,
    encoded: EncodedRows,
    sequences: Sequences,
    options: PlanOptions,
    *,
    first: int,
    window: int,
) -> tuple[Sharding, tuple[Commit, ...]]:
    """Shards numbered from `first` of the sequences that the cache answers, with their stored results."""
    sharding = Sharding.empty(len(sequences.rows))
    commits: list[Commit] = []
    if options.answers is not None:
        found = options.answers.find(encoded.keys[sequences.rows], sequences.occurrences)
        for members, results in _rebatched(found, MAX_SEQUENCES):
            index = first + len(commits)
            shard = make_shard(
                identity_digest, encoded, sequences, members, options, index=index, window=window, retry=0
            )
            slots = pa.array(np.arange(len(members), dtype=np.int32))
            table = results.add_column(0, pa.field("slot", pa.int32(), nullable=False), slots)
            commits.append(store_results(run, shard, table, worker=CACHE, attempt=0, seconds=0.0))
            sharding.add(shard, members)
    return sharding, tuple(commits)


def commit_cached(run: RunFolder, window: Window, ledger: Ledger) -> None:
    """Commit the shards of a planned window that the cache answered.

    One whose results were damaged or deleted stays uncommitted, and is computed like any other.
    """
    for commit in window.cached:
        if not ledger.committed(commit.shard):
            path = results_path(run, commit.sha256)
            if path.exists() and digest_file(path) != commit.sha256:
                path.unlink()  # in the way of what is computed in its place
            if path.exists():
                record_commit(run, commit)


def _rebatched(found: Iterable[tuple[Integers, pa.Table]], size: int) -> Iterator[tuple[Integers, pa.Table]]:
    """The same rows in batches of `size`, the last one smaller."""
    places: list[Integers] = []
    tables: list[pa.Table] = []
    for positions, table in found:
        places.append(positions)
        tables.append(table)
        while sum(map(len, places)) >= size:
            joined, rows = np.concatenate(places), pa.concat_tables(tables)
            yield joined[:size], rows.slice(0, size)
            places, tables = [joined[size:]], [rows.slice(size)]
    if sum(map(len, places)):
        yield np.concatenate(places), pa.concat_tables(tables)
