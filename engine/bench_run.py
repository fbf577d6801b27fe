"""One run of a workload on a new engine: what it is given, the clock around it, and whether the answers are right.

Rows are handed over in the workload's order, all at once. Where lengths are hidden, each answer ends at its length as
though the model had said so; the engine cannot see it coming.
"""

from __future__ import annotations

import time
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch.profiler import ProfilerActivity, profile

from engine.generation import Generator
from engine.paged import BLOCK
from engine.request import Completion, Request, run
from engine.sequence import Sequence
from engine.stopping import Stopping
from engine.workloads import Row, WrongAnswer

_TRACED_STEPS = 30


class HiddenLengths(Stopping):
    """Ends each answer at a length that nobody else knows."""

    def __init__(self) -> None:
        super().__init__((), (), ())
        self.lengths: Seq[int] = ()
        """By request id; set before requests are added. Rows that are answered together have equal lengths."""

    def accept(self, sequence: Sequence, token: int) -> Literal["stop", "length"] | None:
        """Append `token`; "stop" where it is the answer's last."""
        reason = super().accept(sequence, token)
        return "stop" if len(sequence.tokens) == self.lengths[sequence.ids[0]] else reason


@dataclass(frozen=True, slots=True)
class Run:
    """What one run took and what the engine counted."""

    seconds: float
    statistics: dict[str, float]

    @property
    def host_share(self) -> float | None:
        """Share of the steps' time in which the device waited for the host; None where nobody measures it."""
        idle, busy = self.statistics.get("idle_s"), self.statistics.get("device_s")
        return idle / (idle + busy) if idle is not None and busy else None

    @property
    def kv_positions(self) -> int:
        """Positions that the KV cache has."""
        return int(self.statistics["kv_blocks"]) * BLOCK

    @property
    def kv_occupancy(self) -> float | None:
        """Most of the KV cache that was in use at once; None where nobody measures it."""
        peak = self.statistics.get("kv_positions_peak")
        return None if peak is None else peak / self.kv_positions


def requests(rows: Seq[Row], longest_output: int | None) -> list[Request]:
    """The rows as requests with their index as id; with `longest_output`, that is all that is told of the lengths."""
    return [
        Request(i, row.prompt, row.output if longest_output is None else longest_output) for i, row in enumerate(rows)
    ]


def measure(generator: Generator, rows: Seq[Row], work: Seq[Request]) -> Run:
    """Answer `work`, the requests of `rows`, against the clock. Raises WrongAnswer."""
    start = time.perf_counter()
    completions = list(run(generator, work))
    seconds = time.perf_counter() - start
    check_answers(rows, completions)
    return Run(seconds, generator.statistics())


def check_answers(rows: Seq[Row], completions: Seq[Completion]) -> None:
    """Raise WrongAnswer unless each row has one completion with exactly its tokens."""
    ids = sorted(completion.id for completion in completions)
    if ids != list(range(len(rows))):
        raise WrongAnswer(f"{len(rows)} rows got {len(ids)} completions, {len(set(ids))} of them different")
    for completion in completions:
        if completion.error is not None:
            raise WrongAnswer(f"row {completion.id} ended in an error: {': '.join(completion.error)}")
        tokens, wanted = len(completion.token_ids), rows[completion.id].output
        if tokens != wanted:
            raise WrongAnswer(f"row {completion.id} got {tokens} tokens instead of {wanted}")


def trace(generator: Generator, work: Seq[Request], steps: int, file: Path) -> None:
    """Write a Chrome trace of about 30 steps in the middle of a run that takes `steps` in all; the rest is not run."""
    generator.add(work)
    first = max(0, (steps - _TRACED_STEPS) // 2)
    while generator.has_work and generator.statistics()["steps"] < first:
        generator.step()
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as profiler:
        for _ in range(_TRACED_STEPS):
            if generator.has_work:
                generator.step()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    profiler.export_chrome_trace(str(file))
