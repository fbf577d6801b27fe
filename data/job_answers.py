"""The answers of one job in the result cache: kept when a shard is finished, found when sequences are planned.

A job is everything that decides an answer beside the prompt's token ids. A sequence is known by the key that also folds
equal prompts: 128 bits of BLAKE2b over the ids and where scoring starts. Among 10^10 prompts two share one by chance
with probability 10^-19; to make two on purpose takes 2^64 trials and gains one's own prompt the other's answer; to
match the prompt of somebody else takes 2^128. The occurrence is 0 wherever equal prompts are answered once.

Only answers are kept. An error may be the machine's, and a run that meets the prompt again is to try it again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from data.answer_cache import AnswerCache
from data.durable import digest_file, link_file, stage
from data.folding import Hashes, Integers
from data.results import OK
from data.segment import Damaged, Occurrences, Segment, segment_name, write_segment


@dataclass(frozen=True, slots=True)
class JobAnswers:
    """What one job can take from a cache and gives to it."""

    cache: AnswerCache
    job: str
    """32 hexadecimal digits."""
    about: Mapping[str, str]
    """What `overnight cache` shows of the job."""
    results: pa.Schema
    """The job's `results.result_schema`."""

    @property
    def count(self) -> int:
        """How many answers there are, those included that no prompt of the run will ask for."""
        return sum(segment.rows for segment in self.cache.segments(self.job))

    def add(self, keys: Sequence[bytes], occurrences: Sequence[int], results: pa.Table) -> None:
        """Keep the answers of a shard; all three are by slot. OSError: nothing was kept, which harms nobody."""
        assert results.schema.equals(self.results)
        good = np.flatnonzero(pc.equal(results["status"], OK).to_numpy())
        if not len(good):
            return
        answered = results.drop_columns("slot").take(pa.array(good)).combine_chunks()
        known = [keys[row] for row in good.tolist()], [occurrences[row] for row in good.tolist()]
        cache = self.cache
        staged = stage(cache.tmp, lambda file: write_segment(file, *known, answered, self.about))
        try:
            link_file(staged, cache.answers / segment_name(self.job, len(good), digest_file(staged)))
        finally:
            staged.unlink(missing_ok=True)
        cache.evict()

    def find(self, keys: Hashes, occurrences: Occurrences) -> Iterator[tuple[Integers, pa.Table]]:
        """The answers that are there, a segment at a time: positions in `keys` [N, 2], and their results without slot.

        Every position comes at most once, and the newest answer counts. A segment that is damaged is deleted, one that
        was evicted or cannot be read is passed over.
        """
        wanted = _Wanted(keys, occurrences)
        for segment in sorted(self.cache.segments(self.job), key=lambda segment: segment.written, reverse=True):
            if not wanted.left:
                return
            try:
                if not len(wanted.match(*segment.keys())[0]):
                    continue
                held, occurrence, results = segment.read()
            except OSError:  # a miss costs time, and nothing else
                continue
            except Damaged:
                segment.path.unlink(missing_ok=True)
                continue
            positions, rows = wanted.match(held, occurrence)
            answers = results.replace_schema_metadata(None)
            if len(rows) and answers.schema.equals(self.results.remove(0)):
                wanted.take(positions)
                _touch(segment)
                yield positions, answers.take(pa.array(rows))


class _Wanted:
    """Sequences that are looked for, sorted by a hash of key and occurrence.

    Two with one hash, which 10^7 have once in 10^5 plans, cost a miss of the second: all of the key is compared.
    """

    def __init__(self, keys: Hashes, occurrences: Occurrences) -> None:
        self._keys, self._occurrences = keys, occurrences
        hashes = _mixed(keys, occurrences)
        self._order = np.argsort(hashes, kind="stable")
        self._sorted = hashes[self._order]
        self._open = np.ones(len(keys), bool)
        self.left = len(keys)

    def match(self, keys: Hashes, occurrences: Occurrences) -> tuple[Integers, Integers]:
        """Which of these are still looked for: positions in what is wanted, and in these."""
        if not self.left:
            return np.empty(0, np.int64), np.empty(0, np.int64)
        place = np.searchsorted(self._sorted, _mixed(keys, occurrences))
        positions = self._order[np.minimum(place, len(self._order) - 1)]
        same = (self._keys[positions] == keys).all(axis=1) & (self._occurrences[positions] == occurrences)
        rows = np.flatnonzero(same & self._open[positions])
        found, first = np.unique(positions[rows], return_index=True)
        return found, rows[first]

    def take(self, positions: Integers) -> None:
        """These are found."""
        self._open[positions] = False
        self.left -= len(positions)


def _mixed(keys: Hashes, occurrences: Occurrences) -> npt.NDArray[np.uint64]:
    mixed: npt.NDArray[np.uint64] = keys[:, 0] ^ (occurrences.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    return mixed


def _touch(segment: Segment) -> None:
    with suppress(OSError):  # evicted meanwhile, or on a disk that is read only
        os.utime(segment.path, (time.time(), segment.written))
