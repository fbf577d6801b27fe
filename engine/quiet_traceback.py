"""Tracebacks that name places and types, and no values of rows.

What nobody foresaw ends in a traceback, in a worker's log or on the terminal. The messages of Python's and Arrow's
value errors quote the value they stumbled over, which may be a row's text; so of those classes only the type and the
lines are printed. The messages of all others, such as a device's, are needed to act on and hold no row.
"""

from __future__ import annotations

import sys
import threading
import traceback
from types import TracebackType

_QUOTING = (ValueError, TypeError, LookupError, AssertionError)


def print_quietly(_kind: type[BaseException], error: BaseException, _trace: TracebackType | None) -> None:
    """Print an exception and those behind it; takes what sys.excepthook is given."""
    seen: set[int] = set()
    chain: list[BaseException] = []
    last: BaseException | None = error
    while last is not None and id(last) not in seen:
        seen.add(id(last))
        chain.append(last)
        last = last.__cause__ or (None if last.__suppress_context__ else last.__context__)
    for one in reversed(chain):
        lines = "".join(traceback.format_tb(one.__traceback__))
        print(f"Traceback (most recent call last):\n{lines}{described(one)}", file=sys.stderr)
    sys.stderr.flush()


def print_threads_quietly() -> None:
    """Have the exceptions that end a thread of this process printed so too."""

    def print_one(failed: threading.ExceptHookArgs) -> None:
        if failed.exc_value is not None and not isinstance(failed.exc_value, SystemExit):
            print_quietly(failed.exc_type, failed.exc_value, failed.exc_traceback)

    threading.excepthook = print_one


def described(error: BaseException) -> str:
    """Type and message, without the message where it may quote a row."""
    name = f"{type(error).__module__}.{type(error).__qualname__}".removeprefix("builtins.")
    if isinstance(error, _QUOTING):
        return f"{name} (its message is left out: it may quote a row)"
    return f"{name}: {error}"
