"""Which precision a job is best run in, from what was measured on rows of it. Nothing here measures.

The weights as they are, `none`, are what the others are held against. Another precision is taken if it costs no more
than the limit and is faster beyond doubt: its slowest repeat beats the other's fastest by `LEAST_GAIN`. Where speed
does not tell two apart, the one that loses less is taken. What is lost is accuracy where the job knows right answers,
as the gate of `overnight quantize` sees it, else, or if `none` is right nowhere, the share of its answers that others
do not give. As in that gate the figure decides, and a note says where its interval does not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import ceil
from typing import Literal

from pydantic import BaseModel, ConfigDict

from tasks.evaluation import Estimate
from tasks.evaluation_figures import accuracy_change
from tasks.figures import duration, plural, short
from tasks.gate import too_few
from tasks.measured import Flags

Precision = Literal["none", "fp8", "int4"]

LEAST_GAIN = 0.05
"""A smaller gain is not worth another precision."""
LEAST_SECONDS = 30.0
"""A repeat that is shorter is mostly the filling and draining of batches."""
MOST_ROWS = 10_000_000


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Repeat(_Record):
    """One run over the sample: seconds from a worker that was ready to its last commit, and what it computed then."""

    seconds: float
    rows: int
    output_tokens: int

    @property
    def rate(self) -> float:
        """Rows a second."""
        return self.rows / self.seconds


class Trial(_Record):
    """A precision. `failure` says why it could not be measured; then there are no repeats.

    `set` are the settings that give it, `computed` how the worker says that it computes. `errors` counts the
    rows without an answer, `lost` those of them that `none` answers. `same` is the share of the answers of `none` that
    are its own, too (of `none` itself: of its own two last repeats); `accuracy` that of right answers. `loss` is what
    decides: of `none`, zero.
    """

    precision: Precision
    set: Mapping[str, str]
    computed: str = ""
    weight_bytes: int = 0
    errors: int = 0
    lost: int = 0
    repeats: tuple[Repeat, ...] = ()
    same: Estimate | None = None
    accuracy: Estimate | None = None
    loss: Estimate | None = None
    failure: str | None = None

    @property
    def rate(self) -> float:
        """Rows a second of the middle repeat, the slower one of two."""
        return sorted(repeat.rate for repeat in self.repeats)[(len(self.repeats) - 1) // 2]

    @property
    def output_rate(self) -> float:
        """Output tokens a second over all repeats."""
        return sum(r.output_tokens for r in self.repeats) / sum(r.seconds for r in self.repeats)

    @property
    def slowest(self) -> float:
        """Rows a second."""
        return min(repeat.rate for repeat in self.repeats)

    @property
    def fastest(self) -> float:
        """Rows a second."""
        return max(repeat.rate for repeat in self.repeats)

    @property
    def loss_value(self) -> float:
        """The loss; of `none`, and where nothing is known, zero and all."""
        return 0.0 if self.precision == "none" else 1.0 if self.loss is None else self.loss.value


class Choice(_Record):
    """What is recommended, and by which figures."""

    chosen: Precision
    reason: str
    notes: tuple[str, ...]
    by: Literal["accuracy", "answers"]
    limit: float
    rows: int
    device: str
    measured: tuple[Trial, ...]

    @property
    def best(self) -> Trial:
        """The figures of what is recommended."""
        return next(one for one in self.measured if one.precision == self.chosen)


def loss_of_answers(same: Estimate) -> Estimate:
    """The share of answers that changed."""
    return Estimate(value=1 - same.value, low=1 - same.high, high=1 - same.low)


def loss_of_accuracy(right: Flags, was_right: Flags) -> Estimate | None:
    """The share of the original's right answers by which there are fewer; less than 0 is a gain. None if it has none.

    Of each row, whether the answer is right, and whether the original's was.
    """
    change = accuracy_change(right, was_right)
    return None if change is None else Estimate(value=0.0 - change.value, low=0.0 - change.high, high=0.0 - change.low)


def choose(measured: Sequence[Trial], limit: float, rows: int, device: str) -> Choice:
    """The recommendation. `measured` begins with `none`, which has been measured; `limit` is a share."""
    original = measured[0]
    assert original.precision == "none", "what the others are held against comes first"
    assert original.repeats, "what the others are held against was measured"
    allowed = [one for one in measured if not _objection(one, original, limit)]
    best = original
    for one in sorted(allowed[1:], key=lambda one: one.loss_value):
        if _faster(one, best):
            best = one
    by: Literal["accuracy", "answers"] = "accuracy" if original.accuracy and original.accuracy.value else "answers"
    notes = [
        *_left_out(measured, original, best, limit, rows),
        *_doubts(best, limit, rows),
        *_too_short(measured, rows, device),
    ]
    return Choice(
        chosen=best.precision,
        reason=_reason(best, original, limit, by),
        notes=tuple(notes),
        by=by,
        limit=limit,
        rows=rows,
        device=device,
        measured=tuple(measured),
    )


def rows_to_settle(loss: Estimate, limit: float, rows: int) -> int | None:
    """How many rows it would take for the interval to lie on one side of the limit; None if more than `MOST_ROWS`.

    An interval narrows with the root of the number of rows.
    """
    distance = abs(loss.value - limit)
    width = loss.high - loss.value if loss.value <= limit else loss.value - loss.low
    if rows * width**2 > MOST_ROWS * distance**2:
        return None
    return max(rows, ceil(rows * (width / distance) ** 2)) if distance else rows


def _faster(one: Trial, other: Trial) -> bool:
    return one.slowest > (1 + LEAST_GAIN) * other.fastest


def _objection(one: Trial, original: Trial, limit: float) -> str | None:
    """Why a precision cannot be taken, however fast it is."""
    if one is original:
        return None
    if one.failure is not None:
        return f"it could not be measured: {one.failure}"
    if one.lost:
        return f"it fails at {plural(one.lost, 'row')} that none answers"
    if one.loss_value > limit:
        return f"it loses {_percent(one.loss_value)}, more than the limit of {_percent(limit)}"
    return None


def _left_out(measured: Sequence[Trial], original: Trial, best: Trial, limit: float, rows: int) -> Iterator[str]:
    for one in measured[1:]:
        if one is best:
            continue
        if objection := _objection(one, original, limit):
            yield f"{one.precision} is left out: {objection}"
            if one.loss is not None and one.loss.low <= limit < one.loss.value:
                yield f"{one.precision} may lose less than that: {_would_tell(one.loss, limit, rows)}"
            continue
        speeds = f"{short(one.rate)} rows a second against {short(best.rate)}"
        if _faster(best, one):
            yield f"{one.precision} is slower than {best.precision}: {speeds}"
        else:
            yield (
                f"{one.precision} is not faster than {best.precision} beyond the noise of the repeats and "
                f"{_percent(LEAST_GAIN)}: {speeds}"
            )


def _doubts(best: Trial, limit: float, rows: int) -> Iterator[str]:
    """What the number of rows leaves open."""
    if few := too_few(rows, limit):
        yield few
    elif best.loss is not None and best.loss.high > limit:
        yield f"{best.precision} may lose more than the limit: {_would_tell(best.loss, limit, rows)}"


def _would_tell(loss: Estimate, limit: float, rows: int) -> str:
    needed = rows_to_settle(loss, limit, rows)
    advice = f"some {needed:,} rows would tell" if needed else "more rows would hardly tell"
    return f"the interval on {rows:,} rows is {_percent(loss.low)} to {_percent(loss.high)}; {advice}"


def _too_short(measured: Sequence[Trial], rows: int, device: str) -> Iterator[str]:
    shortest = min(repeat.seconds for one in measured for repeat in one.repeats)
    if device != "cpu" and shortest < LEAST_SECONDS:
        needed = ceil(rows * LEAST_SECONDS / shortest)
        yield (
            f"the shortest repeat took {duration(shortest)}, much of it with batches that were not full: speeds are "
            f"those of a long job from about {needed:,} rows on ({duration(LEAST_SECONDS)})"
        )


def _reason(best: Trial, original: Trial, limit: float, by: str) -> str:
    if best is original:
        return "no other precision is faster beyond doubt and loses no more than the limit"
    what = "of the accuracy" if by == "accuracy" else "of the answers change"
    verb = "loses " if by == "accuracy" else ""
    return (
        f"{best.rate / original.rate:.2f} times as many rows a second as none; {verb}{_percent(best.loss_value)} {what}"
        f", with a limit of {_percent(limit)}"
    )


def _percent(value: float) -> str:
    return f"{100 * value:.2f} %"
