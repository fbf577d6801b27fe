"""Warnings of data, which knows no run's events: what it logs, such as a file that it could not delete."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def data_warnings(tell: Callable[[dict[str, Any]], None]) -> Iterator[None]:
    """Tell what data warns of in the block, from whichever thread, as events; nowhere else meanwhile."""
    logger, handler = logging.getLogger("data"), _Teller(tell)
    before = logger.propagate
    logger.addHandler(handler)
    logger.propagate = False  # Prefect's handler, or Python's last resort, would show it a second time
    try:
        yield
    finally:
        logger.propagate = before
        logger.removeHandler(handler)


class _Teller(logging.Handler):
    def __init__(self, tell: Callable[[dict[str, Any]], None]) -> None:
        super().__init__(logging.WARNING)
        self._tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        """See logging.Handler."""
        self._tell({"event": "warning", "message": record.getMessage()})
