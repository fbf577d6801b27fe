"""The report of an evaluation: one HTML page that needs nothing else, in the colours that its reader prefers.

It holds no text of a row but the values by which rows are told apart, which are escaped as everything else is.
"""

from __future__ import annotations

from pathlib import Path

import jinja2
from markupsafe import Markup

from tasks.evaluation import Evaluation
from tasks.evaluation_charts import divergence_chart, scores_chart, slices_chart
from tasks.evaluation_figures import SLICE_VALUES
from tasks.evaluation_job import EvaluationJob
from tasks.evaluation_table import agreement_lines, score_lines, slice_columns, slice_lines, slice_metrics, task_lines
from tasks.measured import Measured

TEMPLATE = Path(__file__).with_name("evaluation.html")


def report_html(evaluation: Evaluation, measured: Measured, job: EvaluationJob) -> str:
    """The page as text."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    two = evaluation.reference is not None
    slices = [
        {
            "column": column,
            "metrics": (metrics := slice_metrics(evaluation, column)),
            "lines": list(slice_lines(evaluation, column, metrics)),
            "chart": Markup(slices_chart(evaluation, column)),
            "left_out": len(set(measured.slices[column])) - SLICE_VALUES,
        }
        for column in slice_columns(evaluation)
    ]
    settings = job.settings
    facts = {
        "input": settings.input.path,
        "rows": f"{evaluation.rows:,} of the input, drawn at random with a fixed seed"
        + (f", {settings.evaluate.skip:,} left out before them" if settings.evaluate.skip else ""),
        "kind of job": settings.job.kind,
        "right answers": settings.job.expected or "not given",
        "pattern": settings.evaluate.pattern or "not given",
        "numbers": settings.engine.dtype + (", deterministic" if settings.engine.deterministic else ""),
        "quantized at load": settings.model.quantization,
        "device": job.job.placement.device,
        "measured": evaluation.ended,
        **{f"digest of the {name}": found["model"] for name, found in evaluation.digests.items()},
    }
    divergences = measured.divergences if two else measured.divergences[:0]
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        evaluation=evaluation,
        models=["candidate", "reference"] if two else ["candidate"],
        scores=list(score_lines(evaluation)),
        agreement=list(agreement_lines(evaluation)),
        tasks=list(task_lines(evaluation)),
        slices=slices,
        scores_chart=Markup(scores_chart(evaluation)),
        divergence_chart=Markup(divergence_chart(divergences)) if len(divergences) else "",
        facts=facts,
    )
