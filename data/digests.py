"""sha256 of large files, computed once and remembered.

Hashing 15 GB of weights takes a minute, and a run's identity needs it at every start. A digest is remembered by path,
size, modification time and inode, so a file that is replaced or written to is hashed again; `audit --weights` calls
`sha256` and trusts no memory. Files that are new are hashed side by side, a processor each.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

_PIECE = 1 << 20


class Abandoned(Exception):
    """Nobody waits for the digest any more."""


def sha256(path: Path, abandoned: Event | None = None) -> str:
    """Digest of the bytes of a file, as hex. Raises Abandoned soon after `abandoned` is set."""
    state, piece = hashlib.sha256(), memoryview(bytearray(_PIECE))
    with path.open("rb", buffering=0) as stream:
        while size := stream.readinto(piece):
            if abandoned is not None and abandoned.is_set():
                raise Abandoned
            state.update(piece[:size])
    return state.hexdigest()


def remembered(files: Sequence[Path]) -> dict[str, str]:
    """File name to sha256, hashing only files that are not remembered as they are now."""
    memory = _load()
    stamps = {path: _stamp(path) for path in files}
    known = {path: memory.get(str(path.resolve())) for path in files}
    found = {p.name: str(k[-1]) for p, k in known.items() if isinstance(k, list) and k[:-1] == stamps[p]}
    unknown = [path for path in files if path.name not in found]
    if unknown:
        digests = dict(zip(unknown, _side_by_side(unknown), strict=True))
        found |= {path.name: digest for path, digest in digests.items()}
        # One that was written to meanwhile is not remembered.
        _store({str(p.resolve()): [*stamps[p], d] for p, d in digests.items() if _stamp(p) == stamps[p]})
    return found


def _side_by_side(files: Sequence[Path]) -> list[str]:
    abandoned = Event()
    with ThreadPoolExecutor(min(len(files), len(os.sched_getaffinity(0)))) as threads:
        try:
            return list(threads.map(lambda path: sha256(path, abandoned), files))
        finally:
            abandoned.set()  # an interrupt waits for the threads, but not for whole files


def _stamp(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ino]


def user_cache() -> Path:
    """The folder of this program in the user's cache, which need not exist."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(cache) / "overnight"


def _path() -> Path:
    return user_cache() / "digests.json"


def _load() -> dict[str, object]:
    try:
        memory = json.loads(_path().read_text(encoding="utf-8"))
    except (OSError, ValueError):  # no memory, or one that cannot be used: hash again
        return {}
    return memory if isinstance(memory, dict) else {}


def _store(fresh: dict[str, list[object]]) -> None:
    """Merged into what another process may have written meanwhile, and put in place by rename."""
    path = _path()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as stream:
            json.dump(_load() | fresh, stream)
        os.replace(stream.name, path)
    except OSError:  # a read-only home costs only the next start's time
        return
