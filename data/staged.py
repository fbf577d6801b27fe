"""An assembled result on the local disk: a folder of parts, or one file, before it was published or after."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from data.durable import digest_file
from data.manifest import content_digest


def staged_sizes(place: Path, single: str | None = None) -> dict[str, int | None]:
    """Bytes of the data files in a folder, or of the one file `place` under its name; None for what is no file."""
    if single is not None:
        return {single: _size(place)} if place.exists() else {}
    if not place.is_dir():
        return {}
    return {name: _size(place / name) for name in sorted(os.listdir(place)) if not name.startswith(("_", "."))}


def staged_digest(place: Path, single: str | None = None) -> str | None:
    """Digest of the data files, comparable with `Manifest.digest`; None if there are none, or one is no file."""
    sizes = staged_sizes(place, single)
    if not sizes or None in sizes.values():
        return None
    return content_digest({name: digest_file(place if single else place / name) for name in sizes})


def _size(path: Path) -> int | None:
    status = path.lstat()
    return status.st_size if stat.S_ISREG(status.st_mode) else None
