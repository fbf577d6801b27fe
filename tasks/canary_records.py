"""What canaries were found to give before: small JSON files, in the run folder and in the user's cache.

A run's records are those of its first worker. They come into the user's cache when the run is completed, so that a load
that went wrong is not what later runs are measured by; and where most workers of a run contradict the cache, and the
files of the weights are whole, its record is replaced. Records of the cache that are the oldest are dropped.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from data.digests import user_cache
from data.durable import make_folder, stage, write_file
from data.run_folder import RunFolder
from engine.version import ANSWERS

VERSION = 2  # of the canaries and of their records
CAP = 1000  # records in the user's cache; 1 KB each


def key(what: str, **deciding: Any) -> str:
    """A record's name, of all that decides what it holds."""
    import torch
    import transformers

    versions = [VERSION, ANSWERS, torch.__version__, transformers.__version__, _engine_source()]
    text = json.dumps([what, versions, torch.backends.cpu.get_cpu_capability(), deciding], sort_keys=True)
    return f"{what}-{hashlib.sha256(text.encode()).hexdigest()[:32]}"


@cache
def _engine_source() -> str:
    """A digest of the engine's own files: another version of it may lay weights out, and round, in another way."""
    import engine

    folder = Path(engine.__path__[0])
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(f"{path.relative_to(folder)} ".encode() + path.read_bytes())
    return digest.hexdigest()


class Records:
    """A folder of records. `tmp` is on its filesystem.

    A disk that is full, or a home that cannot be written, costs comparisons only.
    """

    def __init__(self, folder: Path, tmp: Path) -> None:
        self.folder, self._tmp = folder, tmp

    def read(self, key: str) -> dict[str, Any] | None:
        """What is recorded under a key; None if nothing is that can be read."""
        try:
            found = json.loads((self.folder / f"{key}.json").read_bytes())
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def keep(self, key: str, content: Mapping[str, Any]) -> dict[str, Any] | None:
        """Record durably what was found under a key; what is there already, if something is."""
        path = self.folder / f"{key}.json"
        try:
            if not path.exists():
                make_folder(self.folder, 0o700)
                if write_file(self._tmp, path, lambda file: file.write(json.dumps(content).encode())):
                    return None
        except OSError:
            return None
        return self.read(key)

    def replace(self, key: str, content: Mapping[str, Any]) -> None:
        """Record this in place of what is there."""
        with suppress(OSError):
            make_folder(self.folder, 0o700)
            staged = stage(self._tmp, lambda file: file.write(json.dumps(content).encode()))
            os.replace(staged, self.folder / f"{key}.json")

    def forget(self, keys: Iterable[str]) -> None:
        """Have nothing recorded under these keys."""
        for key in keys:
            with suppress(OSError):
                (self.folder / f"{key}.json").unlink(missing_ok=True)

    def prune(self, cap: int) -> None:
        """Drop the oldest records over this number."""
        with suppress(OSError):
            paths = sorted(self.folder.glob("*.json"), key=lambda path: path.stat().st_mtime)
            for path in paths[: max(0, len(paths) - cap)]:
                path.unlink(missing_ok=True)


def user_records() -> Records:
    """Those of this machine's user."""
    folder = user_cache() / "canaries"
    return Records(folder, folder)


def outvoted(ours: Records, key: str, content: Mapping[str, Any], worker: int, workers: int) -> bool:
    """Whether most workers of a run, two at least, contradict a record of the cache; adds one's own voice.

    Each of them has found the same as the first of the run, or it would not have come so far.

    Workers count, not processes: a faulty device contradicts the record at every start.
    """
    ours.keep(f"against-{key}-{worker}", content)
    voices = [ours.read(f"against-{key}-{number}") for number in range(workers)]
    return sum(voice is not None for voice in voices) > max(1, workers // 2)


def remember(run: RunFolder) -> None:
    """Keep the records of a completed run for later ones."""
    ours, cached = Records(run.path / "canaries", run.tmp), user_records()
    for path in (*ours.folder.glob("weights-*.json"), *ours.folder.glob("answers-*.json")):
        content = ours.read(path.stem)
        if content is not None and cached.read(path.stem) is None:
            cached.replace(path.stem, content)
    cached.prune(CAP)
