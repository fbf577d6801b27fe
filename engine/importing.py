"""Importing large packages without looking for garbage meanwhile.

A thousand modules are some hundred thousand objects that stay, and each time their number has grown by a quarter all of
them are visited in search of cycles: a fifth of the time that transformers or Prefect's server takes to import. What
was imported is kept out of later searches too.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_collections() -> Iterator[None]:
    """No search for garbage in the block; what is alive at its end is no longer searched."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if enabled:
            gc.enable()
