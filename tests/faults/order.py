"""What the warm process is asked to do, and what it answers: one disturbed or undisturbed drive of a run."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict


class Order(BaseModel):
    """One start of `overnight infer`.

    Args:
        root: the folder that is watched; the run folder is `root`/run, the output `root`/out or `root`/out.jsonl.
        arguments: those of the command line, from `infer` on.
        worker: the function that a worker process runs.
        faults: by point, what happens there: kill (the process that calls), kill-all (with every other one), orphan (it
            is stopped and its driver killed), short (half of the write happens), or the name of an errno.
        trace: answer with every point that was passed.
        resumed: the arguments of a second start, once the first driver was killed and its workers have ended.
        cut: a point of the second start at which everything is killed.
        power: cut the power at the very end: the seed of what survives.
        plant: a bug to plant; see `plants`.
        limits: resource limits by the last part of their name, such as NOFILE.
        forked: fork the workers instead of starting interpreters.
        deaf: workers do not notice that their driver is gone, like those of a machine that was cut off.
        seconds: when everything is killed.
    """

    model_config = ConfigDict(frozen=True)

    root: str
    arguments: tuple[str, ...]
    worker: str = "tests.scale.instant_worker:main"
    faults: dict[str, str] = {}
    trace: bool = False
    resumed: tuple[str, ...] = ()
    cut: str = ""
    power: int | None = None
    plant: str = ""
    limits: dict[str, int] = {}
    environment: dict[str, str] = {}
    forked: bool = True
    deaf: bool = False
    seconds: float = 120.0

    @property
    def watched(self) -> bool:
        """Whether system calls have to be held."""
        return bool(self.faults) or self.trace or self.power is not None


class Outcome(BaseModel):
    """How a drive went.

    `status` is the driver's exit status, negative for a signal. `reached` are the faults that happened. `survivors` are
    seconds from the driver's end to that of the last worker. `told` are the shards that the driver had heard to be
    done when it ended. `stopped` are processes that were stopped. `limit` are the seconds it had. Of a drive that was
    resumed, all but `reached` tells of the second start.
    """

    status: int
    phase: Literal["driver", "all"]
    reached: tuple[str, ...] = ()
    trace: tuple[str, ...] = ()
    told: tuple[str, ...] = ()
    stopped: tuple[int, ...] = ()
    survivors: float = 0.0
    timed_out: bool = False
    limit: float
    output: str = ""
