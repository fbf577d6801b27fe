"""The result cache on disk: a private folder of immutable segments, shared by every run of its user.

Each file comes to exist whole and durable under the digest of its bytes (data.durable), is never changed, and leaves
by being unlinked. So a kill at any point leaves a segment or none, two runs need no lock, and a reader whose file was
evicted by another run has a miss. There is no index that could disagree with the files: their names hold what a list
needs, and a plan reads the keys of its job's segments, about a second for ten million answers.

Where the files exceed the bound, those whose answers were not used for longest go first.
"""

from __future__ import annotations

import os
import re
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from data.durable import make_folder
from data.errors import InputError
from data.segment import Damaged, Segment, about_of, segment_at

_STAGED = re.compile(r"[0-9]+-[0-9a-f]{16}")  # as data.durable names them
_STALE_SECONDS = 3600.0  # a segment is written within seconds, so this is a dead writer's


@dataclass(frozen=True, slots=True)
class JobUsage:
    """What the cache holds of one job: `about` it as its writer told, and how much."""

    about: dict[str, str]
    entries: int
    size: int
    used: float


@dataclass(frozen=True, slots=True)
class AnswerCache:
    """The cache in a folder, which need not exist to be looked at; `create` makes it."""

    folder: Path
    max_bytes: int

    @classmethod
    def create(cls, folder: Path, max_bytes: int) -> AnswerCache:
        """Create the folder or take one that is a cache. InputError: it is something else, or open to other users."""
        cache = cls(folder.absolute(), max_bytes)
        try:
            make_folder(cache.folder, 0o700)
            cache.check()
            status = cache.folder.stat()
            if status.st_uid != os.geteuid() or status.st_mode & 0o077:
                raise InputError(f"cache.path {folder} is open to others: answers lie in it; chmod 700, or another one")
            for inner in (cache.answers, cache.tmp):
                make_folder(inner, 0o700)
        except OSError as error:
            raise InputError(f"cache.path {folder} cannot be used: {error.strerror}; set another one") from error
        return cache

    def check(self) -> None:
        """InputError: the folder is there and holds something that no cache does."""
        names = os.listdir(self.folder) if self.folder.exists() else []
        for foreign in sorted(set(names) - {"answers", "tmp"}):
            raise InputError(f"cache.path {self.folder} is not a cache: it holds {foreign}; choose another folder")

    @property
    def answers(self) -> Path:
        return self.folder / "answers"

    @property
    def tmp(self) -> Path:
        return self.folder / "tmp"

    @property
    def size(self) -> int:
        """Bytes of its files. Asked after every shard, so nothing is made of the names."""
        size = 0
        for entry in _entries(self.answers):
            with suppress(FileNotFoundError):
                size += entry.stat(follow_symlinks=False).st_size
        return size

    def segments(self, job: str = "") -> list[Segment]:
        """The segments of a job, or all of them, by name."""
        entries = sorted((e for e in _entries(self.answers) if e.name.startswith(job)), key=lambda entry: entry.name)
        return [segment for entry in entries if (segment := segment_at(entry)) is not None]

    def evict(self) -> None:
        """Delete what is longest unused, until the rest is within the bound; and what dead writers left."""
        excess = self.size - self.max_bytes
        for segment in sorted(self.segments(), key=lambda segment: segment.used) if excess > 0 else ():
            segment.path.unlink(missing_ok=True)
            excess -= segment.size
            if excess <= 0:
                break
        self._sweep()

    def clear(self) -> int:
        """Delete every answer; returns how many. What a run is writing just now stays."""
        segments = self.segments()
        for segment in segments:
            segment.path.unlink(missing_ok=True)
        self._sweep()
        return sum(segment.rows for segment in segments)

    def _sweep(self) -> None:
        """Delete what dead writers left. Nothing else in the folder is touched."""
        for entry in _entries(self.tmp):
            with suppress(FileNotFoundError):
                if _STAGED.fullmatch(entry.name) and time.time() - entry.stat().st_mtime > _STALE_SECONDS:
                    os.unlink(entry.path)

    def usage(self) -> list[JobUsage]:
        """What it holds, by job, the largest first."""
        jobs: dict[str, list[Segment]] = {}
        for segment in self.segments():
            jobs.setdefault(segment.job, []).append(segment)
        found = [
            JobUsage(
                _about(segments),
                sum(segment.rows for segment in segments),
                sum(segment.size for segment in segments),
                max(segment.used for segment in segments),
            )
            for segments in jobs.values()
        ]
        return sorted(found, key=lambda usage: -usage.size)


def _about(segments: list[Segment]) -> dict[str, str]:
    for segment in segments:
        with suppress(Damaged, FileNotFoundError):
            return about_of(segment.read()[2])
    return {}


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if entry.is_file(follow_symlinks=False)]
    except FileNotFoundError:
        return []
