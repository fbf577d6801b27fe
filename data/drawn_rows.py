"""Rows drawn at random from a dataset, in parts that share none: to calibrate with, to evaluate on, to try a job with.

What is drawn depends on the number of rows and the seed alone. A row's rank is a hash of its position; the first part
are the rows of the lowest ranks, the next part those that follow, so a part stays as it is when a later one grows.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data.chunk import Chunk
from data.dataset import Dataset
from data.rows import BadRow, Record

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class DrawnRows:
    """Some rows in the dataset's order: `table` of Parquet, `lines` of JSONL."""

    positions: tuple[int, ...]
    records: tuple[Record, ...]
    table: pa.Table | None
    lines: tuple[str, ...]

    def write(self, file: BinaryIO) -> None:
        """Write them in the dataset's format, partition columns among the others."""
        if self.table is not None:
            pq.write_table(self.table, file)
        else:
            file.writelines(f"{line}\n".encode() for line in self.lines)


def drawn_suffix(dataset: Dataset) -> str:
    """What a file of rows drawn from it is called at its end."""
    return ".jsonl" if dataset.schema is None else ".parquet"


def draw_rows(dataset: Dataset, counts: Sequence[int], seed: int = 0) -> list[DrawnRows]:
    """One part for each of `counts`, smaller where the dataset has no more rows. Unreadable rows are left out.

    Reads the dataset once, and JSONL twice. InputError or RunError as of `Dataset.chunks`.
    """
    ranked = _lowest_ranks(_rows(dataset), sum(counts), seed)
    parts = [np.sort(part) for part in np.split(ranked, np.cumsum(counts)[:-1])] if counts else []
    found = [_Finder(part) for part in parts]
    last = int(ranked.max(initial=-1))
    for chunk in dataset.chunks():
        if chunk.first_row > last:
            break
        for finder in found:
            finder.take(chunk, dataset.schema)
    return [finder.drawn(dataset.schema) for finder in found]


class _Finder:
    """Picks the rows at `positions`, sorted int64 [n], out of passing chunks."""

    def __init__(self, positions: np.ndarray) -> None:
        self._positions = positions
        self._found: list[int] = []
        self._records: list[Record] = []
        self._batches: list[pa.RecordBatch] = []
        self._lines: list[str] = []

    def take(self, chunk: Chunk, schema: pa.Schema | None) -> None:
        first, last = np.searchsorted(self._positions, [chunk.first_row, chunk.first_row + len(chunk)])
        if first == last:
            return
        records = chunk.records
        places = [int(place) - chunk.first_row for place in self._positions[first:last]]
        places = [place for place in places if not isinstance(records[place], BadRow)]
        lines = None if schema is not None else chunk.lines()
        for place in places:
            record = records[place]
            assert not isinstance(record, BadRow)
            self._found.append(chunk.first_row + place)
            self._records.append(record)
            if lines is not None:
                line = lines[place]
                self._lines.append(json.dumps(record) if chunk.partition or line is None else line)
        if schema is not None:
            self._batches.append(chunk.arrow(schema).take(pa.array(places, pa.int64())))

    def drawn(self, schema: pa.Schema | None) -> DrawnRows:
        table = None if schema is None else pa.Table.from_batches(self._batches, schema)
        return DrawnRows(tuple(self._found), tuple(self._records), table, tuple(self._lines))


def _rows(dataset: Dataset) -> int:
    total = 0
    for chunk in dataset.chunks(columns=(dataset.columns or ())[:1]):
        total = chunk.first_row + len(chunk)
    return total


def _lowest_ranks(rows: int, count: int, seed: int) -> np.ndarray:
    """Positions int64 of the `count` rows of the lowest ranks, in the order of their ranks."""
    kept = np.empty(0, np.int64)
    step = max(1 << 20, count)
    for start in range(0, rows, step):
        kept = np.concatenate([kept, np.arange(start, min(start + step, rows), dtype=np.int64)])
        kept = kept[np.argsort(_ranks(kept, seed), kind="stable")[:count]]
    return kept


def _ranks(positions: np.ndarray, seed: int) -> np.ndarray:
    """splitmix64 of the positions, uint64 (Steele, Lea and Flood 2014)."""
    value = (positions.astype(np.uint64) + np.uint64(seed % (1 << 64)) * _GOLDEN) * _GOLDEN + _GOLDEN
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        value = (value ^ (value >> np.uint64(shift))) * np.uint64(factor)
    return value ^ (value >> np.uint64(31))
