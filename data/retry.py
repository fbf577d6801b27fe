"""Computing error rows again: a generation of shards that hold the failed sequences alone.

The ledger only grows: a retry adds a plan (`r00001`) and, as its shards finish, commits. Wherever results are read, the
latest committed generation of a sequence counts. Rows that never had a prompt have nothing to compute.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data.destination import Destination
from data.errors import InputError, RunError
from data.ledger import Commit, Ledger, read_results
from data.manifest import Manifest
from data.outcomes import committed_by_index
from data.plan import encode_rows, restore_prompts
from data.published import added_tables
from data.results import BASE, ERROR
from data.run_folder import RunFolder
from data.sharding import PlanOptions, Sequences, divide, shard_prompts
from data.shards import write_prompts
from data.window import RETRIES, ROWS, Window, load_window, read_table, save_window

if TYPE_CHECKING:
    from data.dataset import Dataset
    from data.prompts import Prompter

FAILED = pa.schema([("shard", pa.int32()), ("slot", pa.int32()), ("code", pa.string())])
"""Sequences whose result is an error, at their place in the plan's windows."""

_PLACE = ["shard", "slot"]


def load_retries(run: RunFolder) -> list[Window]:
    """The retry generations planned so far, the first one first."""
    retries: list[Window] = []
    while (window := load_window(run, f"r{len(retries) + 1:05d}")) is not None:
        retries.append(window)
    return retries


def finished_retries(
    retries: Sequence[Window], ledger: Ledger, base: tuple[Destination, Manifest] | None
) -> Sequence[Window]:
    """The generations before the first one that lacks a commit; those that the published result includes lack nothing.

    Each was finished before the next one was planned, but a user who is told of damaged data deletes a commit.
    """
    included = base[1].retries if base is not None else 0
    for number, window in enumerate(retries):
        if number >= included and ledger.missing(window.shards):
            return retries[:number]
    return retries


def plan_retry(
    run: RunFolder,
    dataset: Dataset,
    prompter: Prompter,
    identity_digest: str,
    options: PlanOptions,
    windows: Sequence[Window],
    base: tuple[Destination, Manifest] | None = None,
) -> Window | None:
    """A window with the sequences that failed, its prompts written; the first unfinished one is gone on with.

    `base` is the published result of this ledger, if there is one (`publications.recorded`). None: no sequence has
    failed. InputError: the windows are not planned to the end. Publish afterwards, whatever was returned.
    """
    if not windows or not windows[-1].last:
        raise InputError("the run is not planned to its end, so its errors cannot be retried; run it without the flag")
    ledger = Ledger(run)
    retries = load_retries(run)
    if unfinished := retries[len(finished_retries(retries, ledger, base)) :]:
        restore_prompts(run, dataset, prompter, identity_digest, unfinished[0], ledger)
        return unfinished[0]
    failed = failures(run, windows, retries, ledger, base)
    if not failed.num_rows:
        return None
    source = _first_rows(run, windows, failed)
    encoded = encode_rows(run, dataset, prompter, source["row"].to_numpy())
    if len(encoded.answerable) != source.num_rows:
        raise RunError("the input gives other prompts than planned; start again with --fresh")
    sequences = Sequences(encoded.answerable, source["occurrence"].to_numpy())
    first = max(window.next_shard for window in (*windows, *retries) if window.shards)
    generation = len(retries) + 1
    sharding = divide(identity_digest, encoded, sequences, options, first=first, window=-1, retry=generation)
    for members in sharding.members:
        prompts = shard_prompts(encoded, sequences.rows[members], sequences.occurrences[members])
        write_prompts(run, identity_digest, generation, prompts)
    places = [source["row"], sharding.shard, sharding.slot, source["occurrence"], source["shard"], source["slot"]]
    window = Window(
        index=-1,
        generation=generation,
        first_row=0,
        rows=0,
        shards=tuple(sharding.shards),
        errors={},
        folded=0,
        input_tokens=int(encoded.lengths.sum()),
        last=True,
        bytes_read=windows[-1].bytes_read,
        json_types=None,
        digests={},
    )
    return save_window(run, window, {".parquet": pa.table(places, schema=RETRIES)})


def failures(
    run: RunFolder,
    windows: Sequence[Window],
    retries: Sequence[Window],
    ledger: Ledger,
    base: tuple[Destination, Manifest] | None,
) -> pa.Table:
    """The sequences whose latest committed result is an error, as a table of `FAILED`."""
    included = 0
    if base is None:
        failed = _failed(run, committed_by_index(windows, ledger))
    else:
        failed, included = _failed_rows(run, windows, *base), base[1].retries
    for window in retries[included:]:
        commits = committed_by_index([window], ledger)
        places = _places(run, window, commits)
        again = places.join(_failed(run, commits), _PLACE, join_type="inner")
        again = again.select(["old_shard", "old_slot", "code"]).rename_columns(FAILED.names)
        done = places.select(["old_shard", "old_slot"]).rename_columns(_PLACE)
        failed = pa.concat_tables([failed.join(done, _PLACE, join_type="left anti").select(FAILED.names), again])
    return failed


def latest_places(run: RunFolder, retries: Sequence[Window], ledger: Ledger) -> pa.Table:
    """Where the latest committed result of each retried sequence is: `shard, slot, new_shard, new_slot`."""
    names = [*_PLACE, "new_shard", "new_slot"]
    latest = pa.schema([(name, pa.int32()) for name in names]).empty_table()
    for window in retries:
        places = _places(run, window, committed_by_index([window], ledger))
        newer = places.select(["old_shard", "old_slot", "shard", "slot"]).rename_columns(names)
        older = latest.join(newer.select(_PLACE), _PLACE, join_type="left anti").select(names)
        latest = pa.concat_tables([older, newer])
    return latest


def count_rows(run: RunFolder, windows: Sequence[Window], failed: pa.Table) -> dict[str, int]:
    """Error rows by code: those that the plan found, and those whose sequence has failed."""
    counts: dict[str, int] = {}
    for window in windows:
        for code, count in window.errors.items():
            counts[code] = counts.get(code, 0) + count
        rows = read_table(run, window, ".parquet", _PLACE).join(failed, _PLACE, join_type="inner")
        for entry in rows["code"].value_counts().to_pylist() if failed.num_rows else ():
            counts[entry["values"]] = counts.get(entry["values"], 0) + entry["counts"]
    return counts


def _places(run: RunFolder, window: Window, commits: dict[int, Commit]) -> pa.Table:
    table = read_table(run, window, ".parquet")
    return table.filter(pc.is_in(table["shard"], pa.array(list(commits), pa.int32())))


def _failed(run: RunFolder, commits: dict[int, Commit]) -> pa.Table:
    pieces = [FAILED.empty_table()]
    for index, commit in commits.items():
        if commit.errors:
            table = read_results(run, commit)
            table = table.filter(pc.equal(table["status"], ERROR))
            shard = pa.array(np.full(table.num_rows, index, np.int32))
            pieces.append(pa.table([shard, table["slot"], table["code"]], schema=FAILED))
    return pa.concat_tables(pieces)


def _failed_rows(run: RunFolder, windows: Sequence[Window], target: Destination, manifest: Manifest) -> pa.Table:
    """The failed sequences of a published result."""
    prefix = manifest.prefix
    error = pa.struct([BASE.field("code"), BASE.field("message")])
    pieces = [pa.schema([("row", pa.int64()), ("code", pa.string())]).empty_table()]
    row = 0
    for table in added_tables(target, manifest, pa.schema([(f"{prefix}error", error)])):
        code = pc.struct_field(table[0].combine_chunks(), "code")
        rows = pa.array(np.arange(row, row + table.num_rows))
        pieces.append(pa.table({"row": rows, "code": code}).filter(pc.is_valid(code)))
        row += table.num_rows
    errors = pa.concat_tables(pieces)
    found = [FAILED.empty_table()]
    for window in windows:
        plan = read_table(run, window, ".parquet", ["row", *_PLACE])
        plan = plan.filter(pc.greater_equal(plan["shard"], 0))
        found.append(plan.join(errors, "row", join_type="inner").select(FAILED.names))
    return pa.concat_tables(found).group_by(_PLACE).aggregate([("code", "min")]).rename_columns(FAILED.names)


def _first_rows(run: RunFolder, windows: Sequence[Window], failed: pa.Table) -> pa.Table:
    """For each failed sequence the first row that holds its prompt, sorted by it: `row, shard, slot, occurrence`."""
    pieces = []
    for window in windows:
        plan = read_table(run, window, ".parquet", ROWS.names[:4])
        pieces.append(plan.join(failed, _PLACE, join_type="inner").select(ROWS.names[:4]))
    grouped = pa.concat_tables(pieces).group_by(_PLACE).aggregate([("row", "min"), ("occurrence", "min")])
    return grouped.rename_columns([*_PLACE, "row", "occurrence"]).sort_by("row").combine_chunks()
