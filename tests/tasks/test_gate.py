"""What the gate says of figures: at the limit, beyond it, with wide intervals, and of none."""

from __future__ import annotations

import math
from typing import Any

import pytest

from tasks.evaluation import Estimate, Evaluation, ModelScores
from tasks.gate import judge


def estimate(value: float, around: float = 0.001) -> Estimate:
    return Estimate(value=value, low=value - around, high=value + around)


def scores(name: str, accuracy: float | None = 0.9, perplexity: float | None = 3.0, errors: int = 0) -> ModelScores:
    return ModelScores(
        name=name,
        path=f"/models/{name}",
        rows=1000,
        errors=errors,
        accuracy=None if accuracy is None else estimate(accuracy),
        match=None,
        perplexity=None if perplexity is None else estimate(perplexity),
    )


def evaluation(**found: Any) -> Evaluation:
    """An evaluation in which nothing has changed but what is `found`."""
    same: dict[str, Any] = {
        "rows": 1000,
        "tokens": 9000,
        "candidate": scores("candidate"),
        "reference": scores("reference"),
        "agreement": None,
        "accuracy_change": estimate(0.0),
        "perplexity_change": estimate(0.0),
        "slices": (),
        "report": "",
    }
    return Evaluation(**(same | found))


@pytest.mark.parametrize(("change", "accepted"), [(-0.01, True), (-0.02, True), (-0.0201, False), (0.3, True)])
def test_a_fall_of_the_accuracy_up_to_the_limit_is_accepted(change: float, accepted: bool) -> None:
    verdict = judge(evaluation(accuracy_change=estimate(change, 0.0)), 0.02)
    assert (verdict.accepted, verdict.measure, verdict.warning) == (accepted, "accuracy", None)
    assert verdict.loss == pytest.approx(-change)
    assert "2.00 %" in verdict.reason


def test_accuracy_goes_before_perplexity() -> None:
    """A job with right answers is judged by them, whatever its texts have become."""
    assert judge(evaluation(perplexity_change=estimate(0.5)), 0.02).accepted
    assert not judge(evaluation(perplexity_change=estimate(0.5), accuracy_change=None), 0.02).accepted
    assert judge(evaluation(perplexity_change=estimate(-0.5), accuracy_change=None), 0.02).measure == "perplexity"


@pytest.mark.parametrize(("change", "accepted"), [(-0.01, True), (-0.03, False)])
def test_an_interval_across_the_limit_asks_for_more_rows(change: float, accepted: bool) -> None:
    verdict = judge(evaluation(accuracy_change=estimate(change, 0.015)), 0.02)
    assert verdict.accepted == accepted
    assert "more evaluate.rows" in str(verdict.warning)
    assert (verdict.low, verdict.high) == (pytest.approx(-change - 0.015), pytest.approx(-change + 0.015))


def test_rows_that_only_the_new_model_fails_at_are_a_refusal() -> None:
    """Also where the original fails at as many others."""
    failing = {"candidate": scores("candidate", errors=3), "reference": scores("reference", errors=3)}
    verdict = judge(evaluation(**failing, lost=2), 0.5)
    assert not verdict.accepted
    assert "fails at 2 of 1,000 rows" in verdict.reason
    assert judge(evaluation(**failing), 0.5).accepted


@pytest.mark.parametrize(("rows", "few"), [(8, True), (188, True), (189, False)])
def test_rows_that_are_too_few_for_the_limit_are_told(rows: int, few: bool) -> None:
    """An interval without a row that changed has no width, however few rows there are."""
    verdict = judge(evaluation(rows=rows, accuracy_change=estimate(0.0, 0.0)), 0.02)
    assert verdict.accepted
    assert ("189 at least" in str(verdict.warning)) == few


def test_no_figure_and_no_number_are_refusals() -> None:
    assert not judge(evaluation(accuracy_change=None, perplexity_change=None), 1.0).accepted
    wrong = Estimate.model_construct(value=math.nan, low=math.nan, high=math.nan)
    found = evaluation().model_copy(update={"accuracy_change": wrong})
    assert not judge(found, 1.0).accepted
