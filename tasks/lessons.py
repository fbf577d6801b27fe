"""What is remembered of a run that ended well: how long its work took on this device, and how long its answers were.

Only runs that one start computed whole, with workers that lived, tell rates. Answers are counted in any case.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tasks.calibration import MeasuredRun, load_calibration, store_calibration
from tasks.cost import VERSION
from tasks.forecast import Forecaster, Planned
from tasks.work import Outputs

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
    whole = not run.resumed_rows and not run.job.options.retry_errors
    if whole and not record.deaths:
        outputs = Outputs(record.lengths, record.tokens / answers)
        measured = MeasuredRun(
            version=VERSION,
            setup=forecaster.setup(forecaster.precision),
            terms=forecaster.terms(planned, forecaster.precision, len(spans), outputs),
            seconds=sum(finished - began for began, finished in spans),
            start=sum(began for began, _ in spans) / len(spans) - run.started,
            finish=time.monotonic() - max(finished for _, finished in spans),
        )
        calibration = calibration.with_run(measured)
    store_calibration(calibration)
