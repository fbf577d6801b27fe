"""Tasks of lm-eval for an evaluation: each model measured in a process of its own, one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from engine.supervisor import Child
from tasks.attended import attend
from tasks.evaluation import TaskFigure, TaskScore
from tasks.evaluation_job import EvaluationJob, Name
from tasks.figures import plural
from tasks.harness_process import HarnessOrder
from tasks.likelihood import Tell, at_turn

TARGET = "tasks.harness_process:main"

Results = Mapping[str, Mapping[str, Any]]


def measure_tasks(job: EvaluationJob, tell: Tell) -> tuple[TaskScore, ...]:
    """What each metric of each task is under each model; nothing if there are no tasks.

    Waits for the device where another run has it. RunError if a process fails, with what it said last.
    """
    if not job.settings.evaluate.tasks:
        return ()
    with at_turn(job, tell):
        results = {name: _measure(job, name, tell) for name in job.models}
    return tuple(_scores(results["candidate"], results.get("reference")))


def _measure(job: EvaluationJob, name: Name, tell: Tell) -> Results:
    """The results of one model as lm-eval gives them, by task."""
    placement = job.job.placement
    tell({"event": "note", "message": f"{plural(len(job.settings.evaluate.tasks), 'task')} of lm-eval: the {name}"})
    threads = placement.threads if placement.device == "cuda" else placement.threads * placement.workers
    order = HarnessOrder(settings=job.loading(name), device=placement.device, threads=threads)
    found: dict[str, Any] = {}

    def take(message: dict[str, Any]) -> bool:
        found.update(message.get("results", {}))
        return "done" in message

    child = Child(TARGET, environment=placement.environment(0), log=job.hidden / f"harness-{name}.log", beats=True)
    try:
        child.send(order.to_message())
        attend([child], job.settings.workers.stall_timeout, take)
    finally:
        child.end()
    return found


def _scores(candidate: Results, reference: Results | None) -> Iterator[TaskScore]:
    """A metric is named like "acc,none" there, with the filter of the answers; its error like "acc_stderr,none"."""
    for task, figures in candidate.items():
        for key, value in figures.items():
            metric, _, answers = key.partition(",")
            if not answers or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            other = None if reference is None else _figure(reference[task], metric, answers)
            name = metric if answers == "none" else f"{metric} ({answers})"
            yield TaskScore(task=task, metric=name, candidate=_figure(figures, metric, answers), reference=other)


def _figure(figures: Mapping[str, Any], metric: str, answers: str) -> TaskFigure:
    error = figures.get(f"{metric}_stderr,{answers}")
    known = isinstance(error, int | float)
    return TaskFigure(value=float(figures[f"{metric},{answers}"]), error=float(error or 0) if known else None)
