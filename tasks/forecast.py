"""What a planned job will take: tokens, memory, and time on so many workers, in the job's precision or another one.

Joins what is known: the plan (exact), the answers of this job so far (else the limit of their length), the arithmetic
of tasks.cost and what runs on this machine took. Every figure can say where it comes from.
"""

from __future__ import annotations

import hashlib
import heapq
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from statistics import median_low

from data.histogram import add
from data.model_shape import ModelShape
from data.shards import Shard
from data.window import Window
from tasks.calibration import Calibration, Setup, load_calibration
from tasks.cost import Precision, Terms, fit, seconds_of, terms
from tasks.devices import ceilings, device_name
from tasks.footing import Memory, memory_of
from tasks.job import Job
from tasks.work import Outputs, Prompts, work_of

# Until a run has shown it: the imports of a worker, and the rate at which weights come from a disk.
_START_SECONDS = 7.0
_LOAD_BYTES = 2e9
_FINISH_SECONDS = 0.5
_TRUSTED = 10.0  # seconds that the arithmetic weighs beside runs, where the device's rates are known
_ROW_SECONDS = 1e-5  # of assembling the result


@dataclass(frozen=True)
class Planned:
    """The plan of a job, added up over its windows."""

    rows: int
    errors: dict[str, int]
    folded: int
    cached: int
    """Sequences that earlier runs have answered."""
    answered: int
    """Sequences that need not be computed: those, and what this run has committed."""
    input_tokens: int
    """Of all rows' prompts, folded or not."""
    shards: tuple[Shard, ...]
    """What is to be computed."""
    lengths: tuple[int, ...]
    longest: int

    @classmethod
    def of(cls, windows: Sequence[Window], done: Collection[str] = ()) -> Planned:
        """The sums over some windows. done: ids of shards that need not be computed any more."""
        errors: dict[str, int] = {}
        known = {commit.shard for window in windows for commit in window.cached}
        shards = [shard for window in windows for shard in window.shards]
        for window in windows:
            for code, count in window.errors.items():
                errors[code] = errors.get(code, 0) + count
        return cls(
            rows=sum(window.rows for window in windows),
            errors=errors,
            folded=sum(window.folded for window in windows),
            input_tokens=sum(window.input_tokens for window in windows),
            cached=sum(shard.sequences for shard in shards if shard.id in known),
            answered=sum(shard.sequences for shard in shards if shard.id in known or shard.id in done),
            shards=tuple(shard for shard in shards if shard.id not in known and shard.id not in done),
            lengths=add(window.lengths for window in windows),
            longest=max((window.longest for window in windows), default=0),
        )

    @property
    def prompts(self) -> Prompts:
        """What is computed, after folding."""
        return Prompts.together(map(prompts_of, self.shards))


def prompts_of(shard: Shard) -> Prompts:
    """The sequences of a shard."""
    return Prompts(shard.sequences, shard.input_tokens, shard.shared_tokens)


@dataclass(frozen=True)
class Rates:
    """Factors of the terms, the seconds around the work, and where they come from."""

    factors: Terms
    start: float
    finish: float
    source: str
    measured: bool


class Forecaster:
    """Predicts the cost of a job.

    Args:
        job: the checked job.
        calibration: what is remembered; read from the user's cache folder if not given.
    """

    def __init__(self, job: Job, calibration: Calibration | None = None) -> None:
        self._job = job
        self.calibration = load_calibration() if calibration is None else calibration
        config, code = job.checkpoint.config, job.settings
        packed = "quantization_config" in config  # its tensors hold several weights an element
        self.shape = ModelShape.of(config, None if packed else job.checkpoint.parameters)
        self.device = device_name(job.placement)
        self._ceilings = ceilings(job.placement)
        self.precision = Precision(code.engine.dtype, code.model.quantization, code.engine.kv_dtype)
        self.digest = question_digest(job)
        self.outputs, self.outputs_source = self._predict_outputs()

    def setup(self, precision: Precision) -> Setup:
        """What this job's rates hold for in a precision."""
        settings = self._job.settings
        deterministic = settings.engine.deterministic or False
        return Setup(
            kind=settings.job.kind,
            shape=self.shape,
            precision=precision,
            device=self.device,
            deterministic=deterministic,
        )

    def memory(self, planned: Planned, precision: Precision) -> Memory:
        """What a worker's device holds."""
        prompts = planned.prompts
        mean = prompts.tokens / max(prompts.sequences, 1) + self.outputs.mean
        longest = planned.longest + self.outputs.longest(prompts.sequences)
        return memory_of(self._job, self.shape, precision, mean, longest)

    def seconds(self, planned: Planned, precision: Precision, workers: int) -> float:
        """Seconds from the start of a run to its published result, on so many devices like this one."""
        rates = self.rates(precision)
        work = [seconds_of(part, rates.factors) for part in self._parts(planned, precision, workers, self.outputs)]
        return rates.start + _last_finish(work, workers) + rates.finish + planned.rows * _ROW_SECONDS

    def terms(self, planned: Planned, precision: Precision, workers: int, outputs: Outputs) -> Terms:
        """The terms of all workers together, with answers as they turned out."""
        parts = self._parts(planned, precision, workers, outputs)
        first, second, third, fourth = (sum(part[term] for part in parts) for term in range(4))
        return first, second, third, fourth

    def rates(self, precision: Precision) -> Rates:
        """The best that is known of a precision on this device."""
        setup = self.setup(precision)
        own = self.calibration.runs_of(setup)
        runs = own or self.calibration.runs_like(setup)
        measured = [(run.terms, run.seconds) for run in runs]
        factors: Terms = fit(measured, _TRUSTED if self._ceilings.known else 0.0) if runs else (1.0, 1.0, 1.0, 1.0)
        weights = self.shape.parameters * precision.itemsize
        starts = [run.start for run in own if run.start is not None]
        finishes = [run.finish for run in own if run.finish is not None]
        # The shortest: what made others longer (kernels to compile, cold weights, digests) is done by now.
        start = min(starts) if starts else _START_SECONDS + weights / _LOAD_BYTES
        finish = median_low(finishes) if finishes else _FINISH_SECONDS
        return Rates(factors, start, finish, self._source(len(own), len(runs)), bool(own))

    def token_seconds(self, planned: Planned) -> tuple[float, float]:
        """Seconds of a token of a prompt and of one of an answer, on average: how much either weighs."""
        if not planned.shards:
            return 1.0, 1.0
        outputs = self.outputs if self.outputs.mean else Outputs.all_of(1)
        computed = self.terms(planned, self.precision, 1, outputs)
        prefill, *decode = (x * f for x, f in zip(computed, self.rates(self.precision).factors, strict=True))
        prompts = planned.prompts
        return prefill / max(prompts.tokens, 1), sum(decode) / max(prompts.sequences * outputs.mean, 1)

    def _parts(self, planned: Planned, precision: Precision, workers: int, outputs: Outputs) -> list[Terms]:
        """The terms of what is computed together: each shard where it is alone on its device, else a worker's share."""
        step_tokens = self._job.settings.engine.max_batch_tokens
        batch = self.memory(planned, precision).batch if planned.shards else 1.0
        if self._job.settings.engine.invariant and self._job.placement.device == "cpu":
            batch = 1.0  # there, each sequence runs alone
        if self._job.settings.engine.shardwise:
            works = [work_of(prompts_of(shard), outputs, batch, step_tokens) for shard in planned.shards]
        else:
            works = [work_of(planned.prompts.part(1 / workers), outputs, batch, step_tokens)] * workers
        return [terms(work, self.shape, precision, self._ceilings) for work in works]

    def _predict_outputs(self) -> tuple[Outputs, str]:
        settings = self._job.settings
        if settings.job.kind != "generate":
            return Outputs.all_of(0), f"{settings.job.kind} gives no tokens"
        known = self.calibration.jobs.get(self.digest)
        if known is not None:
            return known.outputs, f"from {known.sequences:,} answers of this job"
        limit = settings.sampling.max_tokens
        return Outputs.all_of(limit), f"no answer of this job yet: sampling.max_tokens = {limit:,} for each, at most"

    def _source(self, own: int, runs: int) -> str:
        if own:
            return f"measured: {own} run{'s' * (own != 1)} of this model on this device"
        rates = "the usual rates of this device" if self._ceilings.known else "rates of a device like this"
        if runs:
            rates += f", corrected by {runs} other run{'s' * (runs != 1)} here"
        return f"no run of this model on this device yet: estimate from its size and {rates}"


def question_digest(job: Job) -> str:
    """What the lengths of answers depend on: the question, the sampling and the model, whatever the input."""
    parts = {name: job.identity[name] for name in ("job", "sampling", "model", "adapter")}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _last_finish(seconds: Sequence[float], workers: int) -> float:
    """When the last of some workers is done that take one part after another from a queue."""
    free = [0.0] * workers
    for part in seconds:
        heapq.heapreplace(free, free[0] + part)
    return max(free)
