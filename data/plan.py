"""Planning: rows are read, encoded once, folded and divided into shards, a window at a time.

A window that exists on disk is loaded, never planned again; prompt files that its unfinished shards lack are made again
from the input and must give the same shards. Equal prompts of earlier windows are found by joining their keys out of
core: with folding the rows point at the earlier sequence, without it the occurrence goes on counting. The plan depends
on the input, the run's identity, the answers of earlier runs that it takes and the priorities of the rows, never on
workers. Priorities order the shards and decide which rows share one; a run whose plan exists keeps its order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from data.cached_shards import commit_cached
from data.encoded import EncodedRows
from data.errors import RunError
from data.folding import Integers
from data.histogram import count_lengths
from data.json_types import JsonTypes
from data.ledger import Ledger
from data.placement import Placement, place
from data.rows import BadRow, Record
from data.run_folder import RunFolder
from data.sharding import PlanOptions, shard_prompts
from data.shards import Shard, prompts_path, write_prompts
from data.shared_prefixes import shared_tokens
from data.window import Window, checked_path, load_window, read_table, save_window

if TYPE_CHECKING:
    from data.dataset import Dataset
    from data.priority import Priority
    from data.prompts import Prompter


def plan_windows(
    run: RunFolder, dataset: Dataset, prompter: Prompter, identity_digest: str, options: PlanOptions
) -> Iterator[Window]:
    """The windows of a run in order; the next one is planned when it is asked for.

    The shards that are not committed have their prompt files when a window is yielded. RunError: the input no longer
    gives the shards that were planned, or a plan file is damaged.
    """
    stream = _Stream(dataset, read_columns(dataset, prompter, options.priority))
    ledger = Ledger(run)
    earlier: list[Window] = []
    next_shard = 0
    while not earlier or not earlier[-1].last:
        window = load_window(run, f"w{len(earlier):05d}")
        if window is None:
            window = _plan(run, dataset, stream, prompter, identity_digest, options, earlier, next_shard)
            commit_cached(run, window, ledger)
        else:
            for suffix in window.digests:
                checked_path(run, window, suffix)  # publication needs them: not to be found damaged hours from now
            commit_cached(run, window, ledger)
            restore_prompts(run, dataset, prompter, identity_digest, window, ledger)
        earlier.append(window)
        next_shard = window.next_shard if window.shards else next_shard
        yield window


def load_windows(run: RunFolder) -> list[Window]:
    """The windows planned so far."""
    windows: list[Window] = []
    while (window := load_window(run, f"w{len(windows):05d}")) is not None:
        windows.append(window)
    return windows


def encode_rows(run: RunFolder, dataset: Dataset, prompter: Prompter, rows: Integers) -> EncodedRows:
    """Read and encode the given rows alone (sorted positions); the result numbers them from 0."""
    encoded = EncodedRows(run.tmp)
    done = 0
    for chunk in dataset.chunks(int(rows[0]), columns=read_columns(dataset, prompter)) if len(rows) else ():
        stop = int(np.searchsorted(rows, chunk.first_row + len(chunk)))
        if stop > done:
            records = chunk.records
            _encode(encoded, prompter, [records[row - chunk.first_row] for row in rows[done:stop].tolist()])
            done = stop
        if done == len(rows):
            break
    encoded.seal()
    if done < len(rows):
        raise RunError(f"the input has changed: row {int(rows[done])} is no longer there; start again with --fresh")
    return encoded


def restore_prompts(
    run: RunFolder, dataset: Dataset, prompter: Prompter, identity_digest: str, window: Window, ledger: Ledger
) -> None:
    """Make the prompt files of a loaded window's unfinished shards again where they are missing."""
    lacking = [shard for shard in ledger.missing(window.shards) if not prompts_path(run, shard.id).exists()]
    if not lacking:
        return
    plan = read_table(run, window, ".parquet", ["row", "shard", "slot", "occurrence"])
    row, shard_of, slot, occurrence = (plan[name].to_numpy() for name in plan.column_names)
    wanted = np.flatnonzero(np.isin(shard_of, [shard.index for shard in lacking]))
    # The first row of each sequence holds its prompt.
    place_of = shard_of[wanted].astype(np.int64) << 32 | slot[wanted]
    wanted = wanted[np.unique(place_of, return_index=True)[1]]
    by_row = np.sort(wanted)
    encoded = encode_rows(run, dataset, prompter, row[by_row])
    for shard in lacking:
        members = wanted[shard_of[wanted] == shard.index]
        members = members[np.argsort(slot[members])]
        prompts = shard_prompts(encoded, np.searchsorted(by_row, members), occurrence[members])
        if write_prompts(run, identity_digest, window.generation, prompts) != shard.id:
            raise RunError("the input or the tokenizer gives other prompts than planned; start again with --fresh")


def rows_without_prompt(run: RunFolder, windows: Sequence[Window], most: int) -> dict[str, list[int]]:
    """Positions of the first rows of each code that were found to have no prompt, at most so many of each."""
    found: dict[str, list[int]] = {}
    for window in windows:
        if not window.errors:
            continue
        table = read_table(run, window, ".parquet", ["row", "code"])
        for code in sorted(window.errors):
            rows = found.setdefault(code, [])
            rows += table.filter(pc.equal(table["code"], code))["row"].slice(0, most - len(rows)).to_pylist()
    return found


def read_columns(dataset: Dataset, prompter: Prompter, priority: Priority | None = None) -> Sequence[str] | None:
    """What the plan reads: of JSONL all columns, to know their types; of Parquet those that prompt and order need."""
    if dataset.columns is None:
        return None
    return (*prompter.columns, *(priority.columns if priority is not None else ())) or dataset.columns[:1]


class _Stream:
    """The rows of the dataset from any window's first row on, read once if windows are planned in sequence."""

    def __init__(self, dataset: Dataset, columns: Sequence[str] | None) -> None:
        self._dataset, self._columns = dataset, columns
        self._chunks: Iterator[tuple[Sequence[Record | BadRow], int]] | None = None
        self._rest: Sequence[Record | BadRow] = ()
        self._row = 0
        self.bytes_read = 0

    def seek(self, row: int) -> None:
        if self._chunks is None or row != self._row:
            chunks = self._dataset.chunks(row, columns=self._columns)
            self._chunks = ((chunk.records, chunk.bytes_read) for chunk in chunks)
            self._rest, self._row = (), row

    def take(self, rows: int) -> Iterator[Sequence[Record | BadRow]]:
        """The next rows, in pieces; fewer at the end of the input."""
        while rows and not self.exhausted:
            piece, self._rest = self._rest[:rows], self._rest[rows:]
            rows -= len(piece)
            self._row += len(piece)
            yield piece

    @property
    def exhausted(self) -> bool:
        """Whether no row is left; reads ahead to know."""
        assert self._chunks is not None, "seek comes first"
        while not len(self._rest):
            records, bytes_read = next(self._chunks, (None, self.bytes_read))
            self.bytes_read = bytes_read
            if records is None:
                return True
            self._rest = records
        return False


def _plan(
    run: RunFolder,
    dataset: Dataset,
    stream: _Stream,
    prompter: Prompter,
    identity_digest: str,
    options: PlanOptions,
    earlier: Sequence[Window],
    next_shard: int,
) -> Window:
    first_row = sum(window.rows for window in earlier)
    stream.seek(first_row)
    encoded = EncodedRows(run.tmp)
    types = JsonTypes() if dataset.columns is None else None
    priorities = _read(stream, prompter, options, encoded, types, first_row)
    last = stream.exhausted
    encoded.seal()
    placement = place(run, identity_digest, encoded, options, earlier, next_shard, priorities)
    shared = [0] * len(placement.cached)
    for members in placement.sharding.members[len(placement.cached) :]:
        rows, occurrences = placement.sequences.rows[members], placement.sequences.occurrences[members]
        prompts = shard_prompts(encoded, rows, occurrences)
        write_prompts(run, identity_digest, 0, prompts)
        shared.append(shared_tokens(prompts.ids))
        encoded.release()
        if options.on_progress is not None:
            options.on_progress(first_row + encoded.rows, stream.bytes_read)
    lengths = encoded.lengths[encoded.answerable]
    window = Window(
        index=len(earlier),
        generation=0,
        first_row=first_row,
        rows=encoded.rows,
        shards=_completed(placement, shared),
        errors=_count(encoded),
        folded=len(encoded.answerable) - len(placement.sequences.rows),
        input_tokens=int(lengths.sum()),
        last=last,
        bytes_read=stream.bytes_read,
        json_types=types.to_json() if types is not None else None,
        digests={},
        cached=placement.cached,
        priority=options.priority.text if options.priority is not None else None,
        lengths=count_lengths(lengths),
        longest=int(lengths.max(initial=0)),
    )
    return save_window(run, window, {".parquet": placement.table(first_row, encoded), ".keys.parquet": placement.keys})


def _read(
    stream: _Stream,
    prompter: Prompter,
    options: PlanOptions,
    encoded: EncodedRows,
    types: JsonTypes | None,
    first_row: int,
) -> npt.NDArray[np.float64] | None:
    """Encode the rows of a window and observe their JSON types. Returns their priorities, if they have any."""
    ranks = [np.empty(0)]
    for records in stream.take(options.window_rows):
        if types is not None:
            types.observe([record for record in records if not isinstance(record, BadRow)])
        _encode(encoded, prompter, records)
        if options.priority is not None:
            ranks.append(options.priority.of(records))
        if options.on_progress is not None:
            options.on_progress(first_row + encoded.rows, stream.bytes_read)
    return np.concatenate(ranks) if options.priority is not None else None


def _encode(encoded: EncodedRows, prompter: Prompter, records: Sequence[Record | BadRow]) -> None:
    if len(records):
        prompts = prompter.encode(records)
        encoded.append(prompts.ids, prompts.scored_from, prompts.errors)


def _completed(placement: Placement, shared: Sequence[int]) -> tuple[Shard, ...]:
    """The shards with the number of this window's rows that each answers, and their shared tokens."""
    shards = placement.sharding.shards
    if not shards:
        return ()
    counts = np.bincount(np.maximum(placement.shard - shards[0].index, -1) + 1, minlength=len(shards) + 1)[1:]
    return tuple(
        replace(shard, rows=int(count), shared_tokens=tokens)
        for shard, count, tokens in zip(shards, counts, shared, strict=True)
    )


def _count(encoded: EncodedRows) -> dict[str, int]:
    counts = encoded.codes.drop_null().value_counts()
    return {entry["values"]: entry["counts"] for entry in sorted(counts.to_pylist(), key=lambda entry: entry["values"])}
