"""How a command ends when it cannot do what was asked: one line, and the exit status of its kind of error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

import typer


@contextmanager
def exit_status() -> Iterator[None]:
    """Turn the errors a user can meet into one line and the exit status of their kind."""
    from data.errors import Held, InputError, RunError
    from data.exit_status import ExitStatus

    try:
        yield
    except (InputError, RunError, Held) as error:
        fail(str(error), error.status)
    except OSError as error:
        fail(str(error), ExitStatus.FAILED)
    except KeyboardInterrupt:
        fail("interrupted", ExitStatus.INTERRUPTED)


def fail(message: str, status: int) -> NoReturn:
    """Print one line on standard error and end the command."""
    from data.errors import one_line

    with suppress(OSError):  # a terminal that was closed
        typer.echo(f"overnight: {one_line(message)}", err=True)
    raise typer.Exit(status)
