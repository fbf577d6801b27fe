"""The paths of a job: what becomes of those that a user writes, and which may not lie in one another."""

from __future__ import annotations

import os
import re
from datetime import datetime
from pathlib import Path, PurePath, PurePosixPath

from data.destination import is_url
from data.errors import InputError
from tasks.settings import Settings

_FILES = (".parquet", ".jsonl")
_PLACEHOLDER = re.compile(r"\{\w*\}")


def dated(settings: Settings, started: datetime) -> Settings:
    """The settings with `{date}` and a leading `~` in the paths filled. InputError for another placeholder."""
    date = started.date().isoformat()
    fill = {"path": os.path.expanduser(settings.output.path.replace("{date}", date))}
    take = {"path": os.path.expanduser(settings.input.path.replace("{date}", date))}
    unknown = set(_PLACEHOLDER.findall(fill["path"])) - {"{run}"}
    if unknown:
        raise InputError(f"output.path {settings.output.path}: {min(unknown)} is neither {{date}} nor {{run}}")
    return settings.model_copy(
        update={"output": settings.output.model_copy(update=fill), "input": settings.input.model_copy(update=take)}
    )


def followed(output: str) -> str:
    """The place that an output names: where a link leads, which then stays and leads to the result."""
    if is_url(output) or not os.path.islink(output.rstrip("/")):
        return output
    place = os.path.realpath(output)
    if os.path.islink(place) or not os.path.isdir(os.path.dirname(place)):
        raise InputError(f"output.path {output} is a link to {os.readlink(output)}, where nothing can be put")
    if place.endswith(_FILES) != output.endswith(_FILES):
        raise InputError(f"output.path {output} is a link to {place}: one is a file by its name, and one is a folder")
    return place


def beside(output: str) -> Path:
    """The folder whose `.overnight` keeps the run: the output's parent, and of a URL the current folder."""
    return Path() if is_url(output) else Path(output).absolute().parent


def check_places(settings: Settings) -> None:
    """InputError if the output cannot be looked at, or lies in the input or around it."""
    if not is_url(settings.output.path):
        try:
            os.lstat(settings.output.path)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise InputError(f"output.path {settings.output.path} cannot be used: {error.strerror}") from error
    if is_url(settings.input.path) != is_url(settings.output.path):
        return
    source, target = (_resolved(path) for path in (settings.input.path, settings.output.path))
    if target == source or source in target.parents:
        raise InputError(f"output.path {settings.output.path} lies inside input.path {settings.input.path}")
    if target in source.parents:
        raise InputError(f"output.path {settings.output.path} holds input.path {settings.input.path}: choose another")


def check_apart(run_path: Path, output: str) -> None:
    """Publishing replaces the output as a whole, and deletes from the run folder."""
    if is_url(output):
        return
    run, target = _resolved(str(run_path)), _resolved(output)
    if run == target or target in run.parents:
        raise InputError(f"the run folder {run_path} lies inside output.path {output}: choose another --run-dir")
    if run in target.parents:
        raise InputError(f"output.path {output} lies inside the run folder {run_path}: choose another --output")


def _resolved(path: str) -> PurePath:
    # Not Path.resolve, which gives up on a link that leads to itself; the input's listing names that one.
    return PurePosixPath(path.replace("s3a://", "s3://", 1)) if is_url(path) else Path(os.path.realpath(path))
