"""What is remembered of a run that ended well: how long its work took on this device, and how long its answers were.

Only runs that one start computed whole, with workers that lived and waited for no other run, tell rates. Answers are
counted in any case. The benchmark on a GPU tells rates too, for every model of the shape that it measured.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data.histogram import count_lengths
from data.model_shape import ModelShape
from data.shared_prefixes import shared_tokens
from engine.bench_settings import BenchSettings
from engine.workloads import VOCABULARY, Workload, find_shape
from tasks.calibration import MeasuredRun, Setup, load_calibration, store_calibration
from tasks.cost import VERSION, Precision, Terms, terms
from tasks.devices import Ceilings, gpu_ceilings
from tasks.forecast import Forecaster, Planned
from tasks.work import Outputs, Prompts, work_of

if TYPE_CHECKING:
    from tasks.run import OpenRun


def learn(run: OpenRun) -> None:
    """Remember what a run that was just published took."""
    record, calibration = run.progress.record, load_calibration()
    answers = sum(record.lengths)
    if not answers:
        return
    forecaster = Forecaster(run.job, calibration)
    if run.job.settings.job.kind == "generate":
        calibration = calibration.with_answers(forecaster.digest, record.lengths, record.tokens)
    planned, spans = Planned.of(run.windows), record.spans
    whole = not run.partial and not run.resumed_rows and not run.job.options.retry_errors
    if whole and not record.deaths and not record.waited:
        outputs = Outputs(record.lengths, record.tokens / answers)
        measured = MeasuredRun(
            version=VERSION,
            setup=forecaster.setup(forecaster.precision),
            terms=forecaster.terms(planned, forecaster.precision, len(spans), outputs),
            seconds=sum(finished - began for began, finished in spans),
            start=sum(began for began, _ in spans) / len(spans) - run.started,
            finish=None if record.publishing is None else time.monotonic() - record.publishing,
        )
        calibration = calibration.with_run(measured)
    store_calibration(calibration)


def learn_bench(settings: BenchSettings, figures: Mapping[str, Any]) -> None:
    """Remember a line of the benchmark: of a GPU, in a precision that runs are offered in, with lengths known."""
    if figures["device"] == "cpu" or figures.get("median") or settings.quant not in ("bf16", "fp8"):
        return
    if settings.lengths == "hidden" or settings.deterministic != "auto":
        return
    precision = Precision("bfloat16", "none" if settings.quant == "bf16" else "fp8", settings.kv_dtype)
    found = find_shape(settings.model)
    config = json.loads(found.read_text(encoding="utf-8")) if isinstance(found, Path) else found
    shape, device = ModelShape.of(config), str(figures["device"])
    measured = MeasuredRun(
        version=VERSION,
        setup=Setup(kind="generate", shape=shape, precision=precision, device=device, deterministic=False),
        terms=bench_terms(figures, shape, precision, gpu_ceilings(device), settings.max_batch_tokens),
        seconds=figures["s"],
    )
    store_calibration(load_calibration().with_run(measured))


def bench_terms(
    figures: Mapping[str, Any], shape: ModelShape, precision: Precision, rates: Ceilings, step_tokens: int
) -> Terms:
    """The terms of a workload of the benchmark, whose rows are made again."""
    vocabulary = shape.head_parameters // shape.hidden
    rows = Workload.parse(figures["workload"]).rows(min(VOCABULARY, vocabulary))
    distinct = {(tuple(row.prompt), row.output) for row in rows}
    ids = [np.array(prompt, np.uint32) for prompt, _ in distinct]
    outputs = [output for _, output in distinct]
    prompts = Prompts(len(ids), sum(map(len, ids)), shared_tokens(ids))
    answers = Outputs(count_lengths(outputs), float(np.mean(outputs)))
    return terms(work_of(prompts, answers, figures["rows_peak"], step_tokens), shape, precision, rates)
