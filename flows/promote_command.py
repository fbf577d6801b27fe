"""`overnight promote`: move the pointer that nightly runs follow, or show where it has been."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.cli import _exit_status, app

PointerPath = Annotated[Path, typer.Argument(metavar="POINTER", help="A link such as models/current.")]
Target = Annotated[Path | None, typer.Argument(metavar="CHECKPOINT", help="Where it is to lead: a model folder.")]
Rollback = Annotated[bool, typer.Option("--rollback", help="Lead to the checkpoint before; again: one further back.")]


@app.command()
def promote(pointer: PointerPath, checkpoint: Target = None, rollback: Rollback = False) -> None:
    """Have a named pointer lead to a checkpoint; without one, show where it leads and has led."""
    from rich.console import Console

    from data.errors import InputError
    from data.pointer import Pointer
    from tasks.pointer_screen import print_move, print_pointer

    with _exit_status():
        found = Pointer(pointer)
        if rollback and checkpoint is not None:
            raise InputError("--rollback goes to the checkpoint before: give no CHECKPOINT with it")
        if rollback:
            print_move(found, found.roll_back(), Console())
        elif checkpoint is not None:
            print_move(found, found.promote(checkpoint), Console())
        else:
            print_pointer(found, Console())
