"""Attempts at a shard: a durable record before each, and another of how it ended where somebody could tell.

A worker that dies can record nothing, and neither can a driver or a machine that dies with it. So an attempt is
recorded before it starts, and one whose end is not recorded has died. Where the driver saw its worker end it says so:
without that, the worker may have died of its driver's end, and such a death counts half. Where the driver ended the
worker itself, since the run was stopped, that is recorded too, and says nothing of the shard.

Records are `<shard>.<number>.json` and `<shard>.<number>.end.json`, numbers from 1, and never change. What follows from
them is for `data.suspect` to say.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from data.durable import write_file
from data.errors import RunError
from data.run_folder import RunFolder

End = Literal["survived", "died", "stopped"]


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt at the slots `first` to `stop` of a shard; a trial gives no answers, it only shows what survives."""

    number: int
    process: int
    first: int
    stop: int
    trial: bool
    end: End | None

    @property
    def deaths(self) -> float:
        """1 if a driver saw the worker die of it, half if it may have been the driver's end, else 0."""
        return {"died": 1.0, "survived": 0.0, "stopped": 0.0, None: 0.5}[self.end]


def record_attempt(run: RunFolder, shard: str, worker: int, slots: range = range(0), *, trial: bool = False) -> int:
    """Record durably that a worker is about to start; returns the number of this attempt, 1 first.

    slots: consecutive ones of the shard, at least where only some are tried.
    """
    record = {
        "shard": shard,
        "worker": worker,
        "process": os.getpid(),
        "first": slots.start,
        "stop": slots.stop,
        "trial": trial,
    }
    content = json.dumps(record).encode()
    number = attempts(run, shard) + 1
    while not write_file(run.tmp, _path(run, shard, number), lambda file: file.write(content)):
        number += 1
    return number


def record_end(run: RunFolder, shard: str, number: int, end: End) -> None:
    """Record durably how an attempt ended; what was recorded first counts."""
    content = json.dumps({"end": end}).encode()
    write_file(run.tmp, _end_path(run, shard, number), lambda file: file.write(content))


def record_death(run: RunFolder, shard: str, process: int, end: End = "died") -> None:
    """Record that a process died, or was stopped, while it worked on the shard, unless it had not begun."""
    known = read_attempts(run, shard)
    if known and known[-1].process == process and known[-1].end is None:
        record_end(run, shard, known[-1].number, end)


def attempts(run: RunFolder, shard: str) -> int:
    """How often a shard, or a part of it, was started."""
    number = 0
    while _path(run, shard, number + 1).exists():
        number += 1
    return number


def read_attempts(run: RunFolder, shard: str) -> list[Attempt]:
    """The attempts at a shard in their order. RunError names a damaged record."""
    found: list[Attempt] = []
    while (record := _read(_path(run, shard, len(found) + 1))) is not None:
        number = len(found) + 1
        end = _read(_end_path(run, shard, number)) or {"end": None}
        try:
            found.append(
                Attempt(number, record["process"], record["first"], record["stop"], record["trial"], end["end"])
            )
        except (KeyError, TypeError):
            raise _damaged(_path(run, shard, number)) from None
    return found


def _read(path: Path) -> dict[str, Any] | None:
    try:
        record = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError:
        raise _damaged(path) from None
    if not isinstance(record, dict):
        raise _damaged(path)
    return record


def _damaged(path: Path) -> RunError:
    return RunError(f"{path} is damaged: delete it to go on; this and later attempts at its shard then do not count")


def _path(run: RunFolder, shard: str, number: int) -> Path:
    return run.attempts / f"{shard}.{number}.json"


def _end_path(run: RunFolder, shard: str, number: int) -> Path:
    return run.attempts / f"{shard}.{number}.end.json"
