"""Importing large packages without compiling them again, and without looking for garbage meanwhile.

A thousand modules are some hundred thousand objects that stay, and each time their number has grown by a quarter all of
them are visited in search of cycles: a fifth of the time that transformers or Prefect's server takes to import. What
was imported is kept out of later searches too. Compiling their source takes two or three times as long as all the rest,
which Python saves only where it finds bytecode of an earlier time or may leave it there.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import MAGIC_NUMBER, find_spec
from pathlib import Path

_LARGE = ("torch", "transformers", "prefect")


def keep_bytecode() -> None:
    """Let Python keep bytecode in a cache of ours, if it would compile a large package and not keep the result.

    So it is in an image that was built without bytecode, or whose files were given another time since, and that sets
    PYTHONDONTWRITEBYTECODE or belongs to another user: each process would compile for about ten seconds. Bytecode that
    is in place is used where it is, and nothing is ever written beside the packages. Call it before importing them.
    """
    if sys.pycache_prefix is None and not all(_compiled(package) for package in _LARGE):
        cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        sys.pycache_prefix = os.path.join(cache, "overnight", "bytecode")
        sys.dont_write_bytecode = False


@contextmanager
def without_collections() -> Iterator[None]:
    """No search for garbage in the block; what is alive at its end is no longer searched."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


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
