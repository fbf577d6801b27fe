"""The steps of an evaluation that are its own: draw the rows, compare the models on them, write what was found.

What the steps pass on is small: a thousand rows by default. The answers between them are those of the infer flow.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from pydantic import ValidationError

from data.drawn_rows import DrawnRows, draw_rows
from data.durable import digest_file, move, stage
from data.errors import InputError, RunError
from tasks.evaluation import Evaluation
from tasks.evaluation_answers import read_answers
from tasks.evaluation_job import RECORD, REPORT, ROWS, EvaluationJob, names_file
from tasks.evaluation_texts import texts_of
from tasks.figures import plural
from tasks.harness import measure_tasks
from tasks.likelihood import measure_likelihoods
from tasks.live_display import Terminal, print_line
from tasks.measured import measured_of
from tasks.milestones import milestone

SEED = 0
"""Of the draw: the same in every evaluation, and in whatever else draws rows of an input."""


class Drawn:
    """The rows of an evaluation. No dataclass, or Prefect would search all of them for futures."""

    def __init__(self, rows: DrawnRows) -> None:
        self.records = rows.records


@task(name="draw", cache_policy=NO_CACHE, persist_result=False)
def draw(job: EvaluationJob) -> Drawn:
    """Draw the rows and write them into the folder. InputError if there are none, or the folder holds others."""
    settings = job.settings.evaluate
    rows = draw_rows(job.job.dataset, [settings.skip, settings.rows], SEED)[1]
    if not rows.records:
        after = f" after the first {plural(settings.skip, 'row')} of the draw" if settings.skip else ""
        raise InputError(f"input.path {job.settings.input.path} has no rows to evaluate on{after}")
    target, others = job.rows, f"output.path {job.folder} holds an evaluation on other rows: choose another folder"
    if any((job.folder / name).exists() for name in ROWS if name != target.name):
        raise InputError(others)
    staged = stage(job.hidden, rows.write, mode=0o666)
    try:
        if not target.exists():
            move(staged, target)
        elif digest_file(staged) != digest_file(target):
            raise InputError(others)
    finally:
        staged.unlink(missing_ok=True)
    _tell({"event": "note", "message": f"Drew {plural(len(rows.records), 'row')} to evaluate on"})
    return Drawn(rows)


@task(name="compare", cache_policy=NO_CACHE, persist_result=False)
def compare(job: EvaluationJob, drawn: Drawn) -> Evaluation:
    """Measure the likelihoods and write what was found, the record last. The answers are there.

    What was measured of the same models, rows and settings before is returned as it is.
    RunError where the answers are not those of the rows, or the likelihoods cannot be measured.
    """
    from tasks.evaluation_figures import evaluation_of
    from tasks.evaluation_report import report_html

    answers = {name: read_answers(job, name) for name in job.answering}
    for name, found in answers.items():
        if len(found.texts) != len(drawn.records):
            raise RunError(f"{job.answers(name)} has {len(found.texts)} rows, and {len(drawn.records)} were drawn")
    if (before := _measured_before(job)) is not None:
        _tell({"event": "note", "message": f"Measured on {before.ended}, and nothing has changed since"})
        return before
    texts, without_prompt = texts_of(job, drawn.records, answers)
    likelihoods = measure_likelihoods(job, texts, len(drawn.records), _tell)
    measured = measured_of(job, drawn.records, answers, likelihoods, without_prompt)
    evaluation = evaluation_of(measured, str(job.folder / REPORT))
    digests = {name: checkpoint.digests() for name, checkpoint in job.models.items()}
    tasks, ended = measure_tasks(job, _tell), datetime.now(UTC).isoformat(timespec="seconds")
    changes = {"tasks": tasks, "digests": digests, "ended": ended, "identity": job.identity}
    evaluation = evaluation.model_copy(update=changes)
    report = report_html(evaluation, measured, job)
    (job.folder / RECORD).unlink(missing_ok=True)  # it is not to stand beside another report
    _put(job, REPORT, report)
    _put(job, RECORD, evaluation.model_dump_json(indent=1))
    return evaluation


def _measured_before(job: EvaluationJob) -> Evaluation | None:
    """What the folder's record says, if it is of this very evaluation."""
    if any(map(names_file, job.settings.evaluate.tasks)) or not (job.folder / REPORT).is_file():
        return None
    try:
        found = Evaluation.model_validate_json((job.folder / RECORD).read_bytes())
    except (FileNotFoundError, ValidationError):
        return None
    return found if found.identity == job.identity else None


def _put(job: EvaluationJob, name: str, text: str) -> None:
    """Write a file whole, durable and in place of an earlier one."""
    move(stage(job.hidden, lambda file: file.write(text.encode()), mode=0o666), job.folder / name)


def _tell(event: dict[str, Any]) -> None:
    line = milestone(event)
    if line is not None:
        print_line(Terminal(stderr=True), *line)
