"""The places of a run, its folder and its output: locked, and looked at for what an earlier start has left there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from data.destination import destination
from data.errors import InputError
from data.manifest import Manifest
from data.publish import finish, prepare_output, published_elsewhere
from data.run_folder import RunFolder, set_aside
from tasks.job import Job, remember_afresh, remember_day
from tasks.preflight import check_budget, check_budget_afresh


@contextmanager
def locked_places(job: Job, *, dry: bool = False) -> Iterator[tuple[RunFolder, Manifest | None]]:
    """Lock the run and its output, and look at what is there: the folder, and the result of this very run if complete.

    Nothing is set aside, and no right to replace an output given, for a job that is refused, or where only a plan is
    wanted (`dry`); its budget is the caller's affair then.

    Raises:
        InputError: the run folder belongs to another run, the output cannot be written there, or the job is over its
            budget.
        Held: another driver has the run or the output.
    """
    there = (job.run_path / "run.json").exists()
    again = job.options.fresh and there and not dry
    if again:
        check_budget_afresh(job)
        set_aside(job.run_path)
    elif there and job.settings.cache.enabled and not dry:
        _set_aside_published(job)
    folder = RunFolder.create(job.run_path, job.identity)
    if again:
        remember_afresh(folder)
    with folder.lock():
        target = destination(job.output.path, folder)
        target.preflight()
        with target.lock():
            folder.sweep()
            remember_day(job, folder)
            if not dry:
                check_budget(job, folder)
            before = prepare_output(folder, job.output, fresh=job.options.fresh)
            finished = before if before and before.complete and not job.options.retry_errors else None
            if finished is None and published_elsewhere(folder, job.output):
                raise InputError(
                    f"run {folder.id} is published already, and its result is not at {job.output_path} now: copy "
                    "it there, or compute it again with --fresh or in another --run-dir"
                )
            if finished is not None and not dry:
                finish(folder, job.output, finished)
            yield folder, finished


def _set_aside_published(job: Job) -> None:
    """Set aside a ledger whose result lies at another output: this one is published from the cached answers."""
    if published_elsewhere(RunFolder.create(job.run_path, job.identity), job.output):
        set_aside(job.run_path)
