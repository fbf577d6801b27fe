"""Likelihoods of the rows of an evaluation under its models, from processes that hold both, one on each device.

The processes are supervised like those of a run: silence has a bound, and they end with this one. What they do is in
tasks.likelihood_process.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from data.errors import RunError
from data.tokenizer import Ids
from engine.supervisor import Child
from tasks.attended import attend
from tasks.evaluation_job import EvaluationJob
from tasks.figures import plural, size
from tasks.likelihood_process import LikelihoodOrder
from tasks.machine import read_gpus
from tasks.placement import device_names
from tasks.turns import LOOK_SECONDS, turn_of

TARGET = "tasks.likelihood_process:main"
TOLD_SECONDS = 10.0

Tell = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Text:
    """What a row's likelihood is taken of: token ids, and the index of the first one that counts."""

    row: int
    ids: Ids
    first: int


@dataclass(frozen=True)
class Likelihoods:
    """By row, arrays [rows]: scored tokens, and over them sums in nats, NaN where a model gave no numbers.

    `same` counts the positions at which both models find one token likeliest. Rows without a text have no tokens.
    """

    tokens: npt.NDArray[np.float64]
    candidate: npt.NDArray[np.float64]
    reference: npt.NDArray[np.float64]
    same: npt.NDArray[np.float64]
    divergence: npt.NDArray[np.float64]

    @classmethod
    def empty(cls, rows: int) -> Likelihoods:
        """Of no row anything is known."""
        return cls(*(np.zeros(rows) for _ in range(5)))

    def put(self, row: int, found: Sequence[float | None]) -> None:
        """Set what was found of a row, in the order of the fields."""
        for field, value in zip(("tokens", "candidate", "reference", "same", "divergence"), found, strict=True):
            getattr(self, field)[row] = np.nan if value is None else value


def measure_likelihoods(job: EvaluationJob, texts: Sequence[Text], rows: int, tell: Tell) -> Likelihoods:
    """The likelihoods of `texts`, of which no row has two, among so many rows.

    Waits for the devices where another run has them. RunError if a process fails or both models do not fit.
    """
    found = Likelihoods.empty(rows)
    if not texts:
        return found
    with at_turn(job, tell), ExitStack() as stack:
        _Measurement(job, texts, found, tell).run(stack)
    return found


@contextmanager
def at_turn(job: EvaluationJob, tell: Tell) -> Iterator[None]:
    """Have the devices for the block, which makes way for nobody; waits where another run has them."""
    with turn_of(f"evaluation of {job.folder.name}", job.settings, device_names(job.job.placement), tell) as turn:
        while not turn.ours():
            time.sleep(LOOK_SECONDS)
        yield


class _Measurement:
    """Processes at work on texts."""

    def __init__(self, job: EvaluationJob, texts: Sequence[Text], found: Likelihoods, tell: Tell) -> None:
        self._job, self._found, self._tell = job, found, tell
        self._texts = sorted(texts, key=lambda text: -len(text.ids))  # dealt out in turn, so that shares are alike
        self._done, self._told = 0, time.monotonic()

    def run(self, stack: ExitStack) -> None:
        """Start the processes, take what they say until all are done, and end them."""
        path = self._job.hidden / "texts.parquet"
        table = {"ids": [text.ids for text in self._texts], "first": [text.first for text in self._texts]}
        pq.write_table(pa.table(table, pa.schema({"ids": pa.list_(pa.uint32()), "first": pa.int32()})), path)
        stack.callback(path.unlink, missing_ok=True)
        placement = self._job.job.placement
        on_gpus = placement.device == "cuda"
        parts = min(placement.workers, len(self._texts)) if on_gpus else 1
        threads = placement.threads if on_gpus else placement.threads * placement.workers
        self._tell_start(parts)
        children = []
        for part in range(parts):
            environment = placement.environment(part) | {
                "OMP_NUM_THREADS": f"{threads}",
                "MKL_NUM_THREADS": f"{threads}",
            }
            log = self._job.hidden / f"comparison-{part}.log"
            child = Child(TARGET, environment=environment, log=log, beats=True)
            stack.callback(child.end)
            child.send(self._order(path, part, parts, threads).to_message())
            children.append(child)
        attend(children, self._job.settings.workers.stall_timeout, self._take)

    def _order(self, path: Any, part: int, parts: int, threads: int) -> LikelihoodOrder:
        job = self._job
        return LikelihoodOrder(
            candidate=job.loading("candidate"),
            reference=None if job.reference is None else job.loading("reference"),
            device=job.job.placement.device,
            threads=threads,
            texts=path,
            part=part,
            parts=parts,
        )

    def _take(self, message: dict[str, Any]) -> bool:
        if "refused" in message:
            raise RunError(self._too_large(message["refused"]) if message["memory"] else message["refused"])
        for index, *figures in message.get("rows", ()):
            self._found.put(self._texts[index].row, figures)
            self._done += 1
        if "done" not in message and self._done and time.monotonic() - self._told >= TOLD_SECONDS:
            self._told = time.monotonic()
            self._tell({"event": "note", "message": f"Compared {self._done:,} of {plural(len(self._texts), 'row')}"})
        return "done" in message

    def _tell_start(self, parts: int) -> None:
        tokens = sum(len(text.ids) for text in self._texts)
        models = "both models" if self._job.reference else "the model"
        where = "on the CPU" if self._job.job.placement.device == "cpu" else f"on {plural(parts, 'GPU')}"
        message = f"Likelihoods of {plural(len(self._texts), 'row')}, {plural(tokens, 'token')}, under {models} {where}"
        self._tell({"event": "note", "message": message})

    def _too_large(self, reason: str) -> str:
        """What the models need, for a device that they do not fit."""
        width = 4 if self._job.settings.engine.dtype == "float32" else 2
        needs = [f"{name} {size(model.parameters * width)}" for name, model in self._job.models.items()]
        there = ""
        if self._job.job.placement.device == "cuda" and (gpus := read_gpus().devices):
            there = f" of {size(gpus[0].memory)}"
        return (
            f"the memory of one device{there} does not hold what is compared at once: {' and '.join(needs)} in "
            f"{self._job.settings.engine.dtype}, and a batch ({reason}); use a larger device, or lower "
            "engine.max_batch_tokens"
        )
