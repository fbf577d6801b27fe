"""sha256 of large files, computed once and remembered.

Hashing 15 GB of weights takes a minute, and a run's identity needs it at every start. A digest is remembered by path,
size, modification time and inode, so a file that is replaced or written to is hashed again; `audit --weights` calls
`sha256` and trusts no memory.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path


def sha256(path: Path) -> str:
    """Digest of the bytes of a file, as hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def remembered(files: Sequence[Path]) -> dict[str, str]:
    """File name to sha256, hashing only files that are not remembered as they are now."""
    memory = _load()
    found: dict[str, str] = {}
    fresh: dict[str, list[object]] = {}
    for path in files:
        real = str(path.resolve())
        before = _stamp(path)
        known = memory.get(real)
        if isinstance(known, list) and known[:-1] == before:
            found[path.name] = str(known[-1])
            continue
        found[path.name] = sha256(path)
        if _stamp(path) == before:  # else it was written to meanwhile
            fresh[real] = [*before, found[path.name]]
    if fresh:
        _store(fresh)
    return found


def _stamp(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ino]


def _path() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(cache) / "overnight" / "digests.json"


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
