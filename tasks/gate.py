"""Whether a changed model is good enough to take the place of the one it was made from.

What counts is accuracy where the job has right answers, else perplexity, each relative to the original's. The point
estimate decides; where its interval reaches beyond the limit, or the limit is within it, or there are too few rows for
the limit, the verdict says that more rows would make it certain. A figure that is no number, or a row that only the new
model fails at, is a refusal.
"""

from __future__ import annotations

import math
from typing import Literal, TypeAlias

from pydantic import BaseModel, ConfigDict

from tasks.evaluation import Estimate, Evaluation
from tasks.evaluation_table import NORMAL

Measure: TypeAlias = Literal["accuracy", "perplexity"]
Loss: TypeAlias = tuple[float, float, float]
"""A share, and the ends of its interval."""


class Verdict(BaseModel):
    """What was decided, by which figure, and why."""

    model_config = ConfigDict(frozen=True)

    accepted: bool
    measure: Measure | None
    """None if there was nothing to compare."""
    loss: float | None
    low: float | None
    high: float | None
    """The share of the accuracy that is lost, or by which perplexity grew, and its interval; less than 0 is a gain."""
    limit: float
    reason: str
    warning: str | None = None


def judge(evaluation: Evaluation, max_loss: float) -> Verdict:
    """The verdict on the candidate of an evaluation with a reference; `max_loss` as in `quantize.max_loss`."""
    assert evaluation.reference is not None, "a gate compares two models"
    found = _loss(evaluation)
    if found is None:
        why = "nothing could be compared: the original has no right answer, and neither has a perplexity"
        return Verdict(accepted=False, measure=None, loss=None, low=None, high=None, limit=max_loss, reason=why)
    measure, (loss, low, high) = found
    figures, failed, warning = _figures(evaluation, measure, found[1]), evaluation.lost, None
    accepted = not failed and all(map(math.isfinite, (loss, low, high))) and loss <= max_loss
    reason = f"{figures}; quantize.max_loss = {max_loss:g} allows {_percent(max_loss)}"
    if failed:
        reason = f"it fails at {failed:,} of {evaluation.rows:,} rows that the original answers; {figures}"
    elif accepted and measure == "accuracy" and (few := too_few(evaluation.rows, max_loss)):
        warning = f"{few}: raise evaluate.rows, or name more with --input"
    elif low <= max_loss < high:
        other = "more" if accepted else "no more"
        warning = f"the interval says that the loss may be {other} than the limit: more evaluate.rows would tell"
    return Verdict(
        accepted=accepted,
        measure=measure,
        loss=loss,
        low=low,
        high=high,
        limit=max_loss,
        reason=reason,
        warning=warning,
    )


def too_few(rows: int, limit: float) -> str | None:
    """What is to be said of so few rows that a share of them tells nothing of a limit; None if there are enough.

    Enough are as many as show that the limit is kept if nothing at all is lost: Wilson's interval of 0 of n rows ends
    at z^2 / (n + z^2).
    """
    if limit <= 0:
        return None
    needed = math.ceil(NORMAL**2 * (1 / limit - 1))
    return (
        f"{rows:,} rows are too few for a limit of {_percent(limit)}: {needed:,} at least show that it is kept"
        if rows < needed
        else None
    )


def _loss(evaluation: Evaluation) -> tuple[Measure, Loss] | None:
    """What is lost, larger is worse."""
    change = evaluation.accuracy_change
    if change is not None:
        return "accuracy", (0.0 - change.value, 0.0 - change.high, 0.0 - change.low)
    growth = evaluation.perplexity_change
    return None if growth is None else ("perplexity", (growth.value, growth.low, growth.high))


def _figures(evaluation: Evaluation, measure: Measure, loss: Loss) -> str:
    assert evaluation.reference is not None
    ours, theirs = (getattr(scores, measure) for scores in (evaluation.candidate, evaluation.reference))
    value, low, high = map(_percent, loss)
    what = "a loss" if measure == "accuracy" else "a growth"
    return (
        f"{measure} went from {_shown(theirs, measure)} to {_shown(ours, measure)}, {what} of {value} (95 % interval "
        f"{low} to {high})"
    )


def _shown(estimate: Estimate | None, measure: Measure) -> str:
    if estimate is None:
        return "unknown"
    return _percent(estimate.value) if measure == "accuracy" else f"{estimate.value:.4g}"


def _percent(value: float) -> str:
    return f"{100 * value + 0.0:.2f} %"  # no minus before a nought
