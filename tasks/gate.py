"""Whether a changed model is good enough to take the place of the one it was made from.

What counts is accuracy where the job has right answers, else perplexity, each relative to the original's. The point
estimate decides; where its interval reaches beyond the limit, or the limit is within it, the verdict says that more
rows would make it certain. A figure that is no number, or a row that only the new model fails at, is a refusal.
"""

from __future__ import annotations

import math
from typing import Literal

from pydantic import BaseModel, ConfigDict

from tasks.evaluation import Estimate, Evaluation


class Verdict(BaseModel):
    """What was decided, by which figure, and why."""

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="strings")

    accepted: bool
    measure: Literal["accuracy", "perplexity"] | None
    """None if there was nothing to compare."""
    loss: float
    low: float
    high: float
    """The share of the accuracy that is lost, or by which perplexity grew, and its interval; less than 0 is a gain."""
    limit: float
    reason: str
    warning: str | None = None


def judge(evaluation: Evaluation, max_loss: float) -> Verdict:
    """The verdict on the candidate of an evaluation with a reference; `max_loss` as in `quantize.max_loss`."""
    candidate, reference = evaluation.candidate, evaluation.reference
    assert reference is not None, "a gate compares two models"
    loss = _loss(evaluation)
    if loss is None:
        reason = "nothing could be compared: no row has a right answer or a text to predict"
        return _verdict(False, None, Estimate(math.nan, math.nan, math.nan), max_loss, reason)
    measure, estimate = loss
    failed = candidate.errors - reference.errors
    figures = _figures(evaluation, measure, estimate)
    if failed > 0:
        reason = f"it fails at {failed:,} of {candidate.rows:,} rows that the original answers; {figures}"
        return _verdict(False, measure, estimate, max_loss, reason)
    if not all(map(math.isfinite, (estimate.value, estimate.low, estimate.high))):
        return _verdict(False, measure, estimate, max_loss, f"{figures}: not a number")
    accepted = estimate.value <= max_loss
    reason = f"{figures}; quantize.max_loss = {max_loss:g} allows {_percent(max_loss)}"
    warning = None
    if estimate.low <= max_loss < estimate.high:
        other = "more" if accepted else "no more"
        warning = f"the interval of the loss says that it may be {other} than the limit: more rows would tell"
    return _verdict(accepted, measure, estimate, max_loss, reason, warning)


def _loss(evaluation: Evaluation) -> tuple[Literal["accuracy", "perplexity"], Estimate] | None:
    """What is lost, larger is worse."""
    change = evaluation.accuracy_change
    if change is not None:
        return "accuracy", Estimate(-change.value, -change.high, -change.low)
    if evaluation.perplexity_change is not None:
        return "perplexity", evaluation.perplexity_change
    return None


def _figures(evaluation: Evaluation, measure: Literal["accuracy", "perplexity"], loss: Estimate) -> str:
    assert evaluation.reference is not None
    ours, theirs = (getattr(scores, measure) for scores in (evaluation.candidate, evaluation.reference))
    verb = "falls" if measure == "accuracy" else "grows"
    span = f"{_percent(loss.value)} (95 % interval {_percent(loss.low)} to {_percent(loss.high)})"
    return f"{measure} {verb} from {_shown(theirs, measure)} to {_shown(ours, measure)}, by {span}"


def _shown(estimate: Estimate | None, measure: str) -> str:
    if estimate is None:
        return "unknown"
    return _percent(estimate.value) if measure == "accuracy" else f"{estimate.value:.4g}"


def _percent(value: float) -> str:
    return f"{100 * value:.2f} %"


def _verdict(
    accepted: bool,
    measure: Literal["accuracy", "perplexity"] | None,
    loss: Estimate,
    limit: float,
    reason: str,
    warning: str | None = None,
) -> Verdict:
    return Verdict(
        accepted=accepted,
        measure=measure,
        loss=loss.value,
        low=loss.low,
        high=loss.high,
        limit=limit,
        reason=reason,
        warning=warning,
    )
