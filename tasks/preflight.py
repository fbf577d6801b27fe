"""The dry run: a job planned to its end in its run folder, and what it will take, before a device is touched.

The plan is the run's own: `overnight infer` on that run loads it and plans nothing again. Nothing is told to the run's
events, since no run has begun. Prompt files of all but the first windows are deleted again, for they can be larger than
the input; whoever runs them makes them again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console

from data.errors import RunError
from data.ledger import Ledger
from data.plan import plan_windows, rows_without_prompt
from data.run_folder import RunFolder
from data.shards import prompts_path
from data.window import Window
from tasks.budget import Predicted, budget_of
from tasks.cost import Precision
from tasks.footing import Memory
from tasks.forecast import Forecaster, Planned, Rates
from tasks.job import Job, cached_answers
from tasks.placement import has_fp8
from tasks.planner import begun, over_error_budget, plan_options

WORKERS = (1, 2, 4, 8)
WINDOWS_KEPT = 2
ROWS_SHOWN = 10


@dataclass(frozen=True)
class Offer:
    """A precision, and what the job takes in it."""

    precision: Precision
    chosen: bool
    """Whether it is the job's own."""
    memory: Memory
    rates: Rates
    seconds: dict[int, float]
    """By number of workers."""


@dataclass(frozen=True)
class PlanReport:
    """Everything that is known of a job before it runs."""

    job: Job
    planned: Planned
    error_rows: dict[str, list[int]]
    """Positions of the first rows that cannot work, by code."""
    forecaster: Forecaster
    offers: tuple[Offer, ...]
    published: bool
    windows: tuple[Window, ...]

    @property
    def tokens_out(self) -> float:
        """Predicted tokens of all computed answers."""
        return self.planned.prompts.sequences * self.forecaster.outputs.mean


def plan_report(job: Job, folder: RunFolder, *, published: bool) -> PlanReport:
    """Plan a job to its end, and predict what it takes. The run is locked by the caller."""
    windows = list(plan_all(job, folder))
    planned, forecaster = Planned.of(windows, Ledger(folder).commits().keys()), Forecaster(job)
    counts = sorted({*WORKERS, job.placement.workers})
    offers = []
    for precision in _precisions(job, forecaster.precision):
        seconds = {count: forecaster.seconds(planned, precision, count) for count in counts}
        memory, rates = forecaster.memory(planned, precision), forecaster.rates(precision)
        offers.append(Offer(precision, precision == forecaster.precision, memory, rates, seconds))
    errors = rows_without_prompt(folder, windows, ROWS_SHOWN)
    return PlanReport(job, planned, errors, forecaster, tuple(offers), published, tuple(windows))


def plan_all(job: Job, folder: RunFolder) -> Iterator[Window]:
    """Every window of a job, planned now or before; a terminal shows how far that is."""
    with Console(stderr=True).status("Planning") as status:
        options = replace(
            plan_options(job.settings),
            answers=cached_answers(job, folder),
            priority=job.priority,
            on_progress=lambda rows, _bytes: status.update(f"Planning: {rows:,} rows"),
        )
        for window in plan_windows(folder, job.dataset, job.prompter, job.run_id, options):
            yield window
            if window.index >= WINDOWS_KEPT:
                for shard in window.shards:
                    prompts_path(folder, shard.id).unlink(missing_ok=True)


@contextmanager
def scratch_folder(job: Job) -> Iterator[RunFolder]:
    """A run folder for a plan that is thrown away, beside the run's own, which is not touched."""
    job.run_path.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=job.run_path.parent, prefix=".plan-") as name:
        yield RunFolder.create(Path(name) / "run", job.identity)


def check_budget_afresh(job: Job) -> None:
    """Refuse a job that is over its budget before earlier work is set aside for it. InputError: it is."""
    if job.settings.job.budget is not None:
        with scratch_folder(job) as folder:
            check_budget(job, folder)


def check_budget(job: Job, folder: RunFolder) -> None:
    """Plan a job that has a budget, and refuse it if it is predicted to be more. A run that has begun is gone on with.

    Raises:
        InputError: it is more.
    """
    if job.settings.job.budget is not None and not begun(folder):
        refuse_over_budget(job, Planned.of(list(plan_all(job, folder))), Forecaster(job))


def refuse_too_many_errors(report: PlanReport) -> None:
    """RunError if more rows of a planned job cannot be asked than its error budget allows."""
    if not report.published and (message := over_error_budget(report.job, report.windows)) is not None:
        raise RunError(message)


def refuse_over_budget(job: Job, planned: Planned, forecaster: Forecaster) -> None:
    """InputError if a planned job is predicted to be more than its budget."""
    budget = budget_of(job.settings)
    if budget is None:
        return
    workers, rates, prompts = job.placement.workers, forecaster.rates(forecaster.precision), planned.prompts
    seconds = forecaster.seconds(planned, forecaster.precision, workers)
    predicted = Predicted(
        rows=planned.rows,
        tokens=prompts.tokens + prompts.sequences * forecaster.outputs.mean,
        seconds=seconds,
        start=rates.start + rates.finish,
        money=seconds / 3600 * workers * job.settings.workers.hourly_price,
    )
    budget.refuse(predicted, f"answers: {forecaster.outputs_source}; time: {rates.source}")


def _precisions(job: Job, own: Precision) -> list[Precision]:
    """The job's precision and, on GPUs, the other one of bf16 and FP8."""
    if job.placement.device == "cpu" or own.dtype == "float32":
        return [own]
    plain = replace(own, quantization="none")
    other = plain if own.fp8 else replace(own, quantization="fp8")
    return [own, other] if other != own and (own.fp8 or all(map(has_fp8, job.placement.gpus))) else [own]
