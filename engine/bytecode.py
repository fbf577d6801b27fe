"""Python's bytecode in a cache of ours, where Python would compile large packages anew in every process.

So it is in an image that was built without bytecode, or whose files were given another time since, and that sets
PYTHONDONTWRITEBYTECODE or belongs to another user: compiling torch and transformers takes two or three times as long as
all else that importing them does. The cache then serves every module of the process, and nothing is ever written beside
the packages. PYTHONPYCACHEPREFIX, where it is set, names another place, and this one is not used.

Bytecode is code. So the folder must be the user's own and no one else may write there, and each set of installed
packages has one for itself, since images may give the files of different versions equal times.
"""

from __future__ import annotations

import os
import stat
import sys
from hashlib import sha256
from importlib.util import MAGIC_NUMBER, find_spec
from pathlib import Path

_LARGE = ("torch", "transformers", "prefect")


def keep_bytecode() -> None:
    """Let Python keep bytecode in the cache, if it would compile a large package and not keep the result.

    Call it before they are imported.
    """
    if sys.pycache_prefix is None and not all(_compiled(package) for package in _LARGE):
        folder = _cache()
        if folder is not None:
            sys.pycache_prefix = str(folder / _installed())
            sys.dont_write_bytecode = False


def _compiled(package: str) -> bool:
    """Whether the bytecode of `package` is current, or will be after its first import. True if it is not installed."""
    spec = find_spec(package)
    if spec is None or spec.origin is None or spec.cached is None:
        return True
    if not sys.dont_write_bytecode and os.access(os.path.dirname(spec.origin), os.W_OK):
        return True
    try:
        with Path(spec.cached).open("rb") as file:
            header = file.read(16)
        modified = int(os.stat(spec.origin).st_mtime)
    except OSError:
        return False
    # PEP 552: four bytes of magic number, four of flags, which are zero where the source's time comes next.
    timed = header[4:8] == bytes(4)
    return header[:4] == MAGIC_NUMBER and (not timed or header[8:12] == (modified & 0xFFFFFFFF).to_bytes(4, "little"))


def _cache() -> Path | None:
    """The folder for bytecode, made if need be; None where it cannot be written, or others may write there too."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification has relative paths ignored.
    base = Path(home if os.path.isabs(home) else os.path.expanduser("~/.cache"))
    ours = base / "overnight"
    try:
        base.mkdir(parents=True, exist_ok=True, mode=0o700)
        for folder in (ours, ours / "bytecode"):
            folder.mkdir(exist_ok=True, mode=0o700)
        safe = base.is_absolute() and all(_private(folder) for folder in (ours, ours / "bytecode"))
    except OSError:
        return None
    return ours / "bytecode" if safe and os.access(ours / "bytecode", os.W_OK) else None


def _private(folder: Path) -> bool:
    """Whether it is a folder, no link to one, of this user, in which nobody else may write."""
    found = folder.lstat()
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o022


def _installed() -> str:
    """A digest of this Python and of the names and versions of all installed packages."""
    digest = sha256(f"{sys.version}\0{sys.prefix}".encode())
    for place in sys.path:
        try:
            names = sorted(name for name in os.listdir(place or ".") if name.endswith(".dist-info"))
        except OSError:  # a zip file, or nothing
            continue
        digest.update("\0".join([place, *names]).encode())
    return digest.hexdigest()[:16]
