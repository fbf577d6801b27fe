"""DuckDB for joins and sorts that do not fit in memory: bounded, spilling into the run's tmp, offline."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb

MEMORY = "256MB"


@contextmanager
def database(tmp: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """An empty in-memory database whose spill folder goes with it."""
    spill = tmp / f"spill-{secrets.token_hex(8)}"
    settings: dict[str, str | bool | int | float | list[str]] = {
        "memory_limit": MEMORY,
        "temp_directory": str(spill),
        "threads": 2,
        "autoinstall_known_extensions": False,
        "autoload_known_extensions": False,
    }
    connection = duckdb.connect(":memory:", config=settings)
    try:
        yield connection
    finally:
        connection.close()
        shutil.rmtree(spill, ignore_errors=True)
