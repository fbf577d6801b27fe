"""The evaluate flow: rows drawn, answered by each model, the models compared on them, and a report of it."""

from __future__ import annotations

from pathlib import Path

from prefect import flow
from prefect.runtime import flow_run

from flows.infer import infer
from tasks.artifacts import show_evaluation
from tasks.configuration import load_settings
from tasks.evaluation import Evaluation
from tasks.evaluation_job import CHECKED, EvaluationJob, folder_of, prepare_evaluation
from tasks.evaluation_stages import compare, draw
from tasks.settings import Settings, set_explicitly


@flow(name="evaluate", persist_result=False)
def evaluate(
    config: str = "config.toml",
    settings: Settings = Settings(),  # noqa: B008 - frozen, and Prefect makes the form from it
) -> Evaluation:
    """Measure a checkpoint on rows of a job, alone or against a reference.

    Args:
        config: path of the configuration file; empty for none.
        settings: settings that go before those of the file; what is left out is taken from there. `output.path` is the
            folder that gets evaluation.json, report.html, and the answers of each model.
    """
    job = CHECKED.get() or _prepare(config, settings)
    with folder_of(job):
        rows = draw(job)
        for name in job.answering:
            infer("", job.model_settings(name), str(job.run_path(name)))
        evaluation = compare(job, rows)
    show_evaluation(evaluation)
    return evaluation


def _prepare(config: str, settings: Settings) -> EvaluationJob:
    loaded = load_settings(Path(config) if config else None, set_explicitly(settings))
    command = f"prefect flow-run retry {flow_run.id}"
    return prepare_evaluation(loaded, flow_run.scheduled_start_time.astimezone(), command)
