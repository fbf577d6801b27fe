"""The Prefect tasks of the quantize flow: make the checkpoint, publish it; and what the Prefect UI shows of both."""

from __future__ import annotations

from prefect import task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE

from tasks import quantization
from tasks.artifacts import best_effort, move_bar, start_bar
from tasks.evaluation import Evaluation
from tasks.quantization import OpenQuantization
from tasks.quantization_screen import as_markdown


@task(name="quantize", cache_policy=NO_CACHE, persist_result=False)
def make_checkpoint(work: OpenQuantization) -> None:
    """Have the layers quantized, those that are not yet; raises as `tasks.quantization.quantize`."""
    bar = start_bar("quantize-progress", f"Layers quantized for {work.job.place.path}")
    quantization.quantize(work, lambda done: move_bar(bar, 100.0 * done))


@task(name="publish", cache_policy=NO_CACHE, persist_result=False)
def publish_checkpoint(work: OpenQuantization, evaluation: Evaluation | None) -> None:
    """Judge the checkpoint and give it its name; RunError if it is refused."""
    try:
        quantization.publish(work, evaluation)
    finally:
        show_quantization(work)


def show_quantization(work: OpenQuantization) -> None:
    """The report as an artifact."""
    if work.report is not None:
        with best_effort():
            text = as_markdown(work.report)
            create_markdown_artifact(text, key="quantize-report", description=f"Quantization {work.report.output}")
