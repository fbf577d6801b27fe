"""What this run's result at the output must be to be relied on, and what may not lie beside it to be replaced."""

from __future__ import annotations

from collections.abc import Collection

from data import publications
from data.destination import Destination
from data.errors import InputError, RunError
from data.manifest import Manifest
from data.published import problems_of_files
from data.run_folder import RunFolder


def verified(run: RunFolder, target: Destination, manifest: Manifest) -> Manifest:
    """The manifest that is at the target. RunError names what is wrong with the result, and the remedy."""
    refuse_others(run, target, manifest)
    if wrong := problems(run, target, manifest):
        raise RunError(f"{wrong[0]}; restore it from a copy of the result, or compute the result again with --fresh")
    return manifest


def problems(run: RunFolder, target: Destination, manifest: Manifest) -> list[str]:
    """What is wrong with the result that is there, once the name of its manifest is durable."""
    target.sync_manifest()
    return problems_of_files(target, manifest, beside=_beside(run, target))


def refuse_others(run: RunFolder, target: Destination, manifest: Manifest) -> None:
    """RunError if files that the manifest does not name lie among those that it does."""
    known = {*(file.name for file in manifest.files), *_beside(run, target)}
    if others := [name for name in target.sizes() if name not in known]:
        raise RunError(f"{target.path_of(others[0])} is not in the manifest; move it away and run again")


def refuse_foreign(target: Destination) -> None:
    """InputError if what is there would go with a result that is replaced, and is no part of any."""
    if foreign := target.foreign():
        raise InputError(
            f"{target.name} holds what is no part of a result, which --fresh does not replace either: {foreign[0]}; "
            "move it away, or choose another --output"
        )


def _beside(run: RunFolder, target: Destination) -> Collection[str]:
    """What may lie beside a result: beside a partial one parts of the complete one, which is being sent."""
    return publications.known_files(run) if target.content_named else ()
