"""The figures of an evaluation from what was measured of each row.

Shares of rows have Wilson's interval (Wilson 1927). Everything else is a quotient of sums over rows, whose interval is
taken from resamples of the rows (percentiles; Efron and Tibshirani 1993), the same resamples for both models, so that
their difference is paired by row. Resampling rows rather than tokens allows for tokens of one row being alike.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest

from tasks.evaluation import Agreement, Estimate, Evaluation, ModelScores, Slice
from tasks.measured import Flags, Measured

CONFIDENCE = 0.95
RESAMPLES = 2000
SLICE_VALUES = 20
"""Most values of a column that are shown, the most frequent ones."""

_BLOCK = 1 << 22  # row counts held at a time

Sums = npt.NDArray[np.float64]


def evaluation_of(measured: Measured, report: str) -> Evaluation:
    """The figures over all rows and over each slice."""
    everywhere = np.ones(measured.rows, np.bool_)
    scores = _scores(measured, everywhere)
    two = len(measured.models) == 2
    sums = _resampled(_columns(measured, measured.compared))
    return Evaluation(
        rows=measured.rows,
        tokens=int(measured.likelihoods.tokens[measured.compared].sum()),
        candidate=scores[0],
        reference=scores[1] if two else None,
        agreement=_agreement(measured, sums) if two else None,
        accuracy_change=_accuracy_change(measured) if two else None,
        perplexity_change=_estimate(sums, lambda s: np.expm1((s[:, 2] - s[:, 1]) / s[:, 0])) if two else None,
        slices=tuple(_slices(measured)),
        report=report,
        lost=int((measured.models[0].failed & ~measured.models[1].failed).sum()) if two else 0,
    )


def share(flags: Flags) -> Estimate | None:
    """The share of rows that are so, with Wilson's interval; None of no rows."""
    return share_of(int(flags.sum()), len(flags))


def share_of(count: int, rows: int) -> Estimate | None:
    """The same of a count."""
    if not rows:
        return None
    interval = binomtest(count, rows).proportion_ci(CONFIDENCE, method="wilson")
    return Estimate(value=count / rows, low=float(interval.low), high=float(interval.high))


def _scores(measured: Measured, rows: Flags) -> tuple[ModelScores, ...]:
    """Each model's figures over the rows that are chosen."""
    sums = _resampled(_columns(measured, rows & measured.compared))
    return tuple(
        ModelScores(
            name=model.name,
            path=model.path,
            rows=int(rows.sum()),
            errors=int((model.failed & rows).sum()),
            accuracy=None if model.right is None else share(model.right[rows]),
            match=None if model.matches is None else share(model.matches[rows]),
            perplexity=_perplexity(sums, number),
        )
        for number, model in enumerate(measured.models)
    )


def _perplexity(sums: Sums, number: int) -> Estimate | None:
    return _estimate(sums, lambda s: np.exp(-s[:, 1 + number] / s[:, 0]))


def _agreement(measured: Measured, sums: Sums) -> Agreement | None:
    tokens = _estimate(sums, lambda s: s[:, 3] / s[:, 0])
    divergence = _estimate(sums, lambda s: s[:, 4] / s[:, 0])
    if tokens is None or divergence is None:
        return None
    answers = None if measured.same_answer is None else share(measured.same_answer)
    return Agreement(tokens=tokens, divergence=divergence, answers=answers)


def _accuracy_change(measured: Measured) -> Estimate | None:
    """None where nothing is known to be right, or the reference has nothing right that there could be less of."""
    candidate, reference = measured.models
    if candidate.right is None or reference.right is None:
        return None
    return accuracy_change(candidate.right, reference.right)


def accuracy_change(candidate: Flags, reference: Flags) -> Estimate | None:
    """Of which rows each is right on, the relative change of their number; None if the reference is on none."""
    sums = _resampled(np.stack([candidate, reference], 1).astype(np.float64))
    return _estimate(sums, lambda s: s[:, 0] / s[:, 1] - 1)


def _slices(measured: Measured) -> list[Slice]:
    found = []
    for column, values in measured.slices.items():
        ranked = sorted(Counter(values).items(), key=lambda entry: (-entry[1], entry[0]))
        for value, count in ranked[:SLICE_VALUES]:
            rows = np.array([one == value for one in values], np.bool_)
            found.append(Slice(column=column, value=value, rows=count, scores=_scores(measured, rows)))
    return found


def _columns(measured: Measured, rows: Flags) -> Sums:
    """[rows, 5]: tokens, log-probability under candidate and reference, equal positions, divergence."""
    known = measured.likelihoods
    columns = (known.tokens, known.candidate, known.reference, known.same, known.divergence)
    return np.stack([column[rows] for column in columns], 1)


def _resampled(columns: Sums) -> Sums:
    """[1 + RESAMPLES, columns]: sums over the rows as they are, then over each resample of them."""
    rows = len(columns)
    if not rows:
        return np.zeros((0, columns.shape[1]))
    random = np.random.default_rng(0)
    parts = [columns.sum(0, keepdims=True)]
    step = max(1, _BLOCK // rows)
    for start in range(0, RESAMPLES, step):
        size = min(step, RESAMPLES - start)
        drawn = random.integers(0, rows, (size, rows)) + rows * np.arange(size)[:, None]
        times = np.bincount(drawn.ravel(), minlength=size * rows).reshape(size, rows)
        with np.errstate(invalid="ignore"):  # a divergence may be infinite, and is then no number in any sum
            parts.append(times @ columns)
    return np.concatenate(parts)


def _estimate(sums: Sums, statistic: Callable[[Sums], Sums]) -> Estimate | None:
    """A statistic of the sums with its percentile interval; None where it is no number.

    Resamples in which it is none, because they hold nothing to divide by, are left out.
    """
    if not len(sums):
        return None
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        values = statistic(sums)
    if not np.isfinite(values[0]):
        return None
    spread = values[1:][np.isfinite(values[1:])]
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(spread, [tail, 1 - tail]) if len(spread) else (values[0], values[0])
    return Estimate(value=float(values[0]), low=float(min(low, values[0])), high=float(max(high, values[0])))
