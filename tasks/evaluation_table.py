"""An evaluation as lines of figures with their intervals: the same on the terminal, in Prefect and in the report."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from tasks.evaluation import Estimate, Evaluation, ModelScores, TaskFigure
from tasks.figures import plural

NORMAL = 1.96
"""Standard errors on each side that hold 95 % of a normal distribution."""


@dataclass(frozen=True)
class Style:
    """How a figure is written: its digits, and a unit behind them."""

    digits: Callable[[float], str]
    unit: str


@dataclass(frozen=True)
class Cell:
    """A figure and its interval, as text; both empty where there is no figure."""

    figure: str = ""
    interval: str = ""


@dataclass(frozen=True)
class Line:
    """A line of a table: what it is, and its cells."""

    name: str
    cells: tuple[Cell, ...]


def score_lines(evaluation: Evaluation) -> Iterator[Line]:
    """Accuracy, match, perplexity and errors: of the candidate, and of a reference with the change."""
    changes = {"accuracy": evaluation.accuracy_change, "perplexity": evaluation.perplexity_change}
    models = [model for model in (evaluation.candidate, evaluation.reference) if model is not None]
    for name, style, find in METRICS:
        estimates = [find(model) for model in models]
        if any(estimate is not None for estimate in estimates):
            cells = [cell(estimate, style) for estimate in estimates]
            change = [cell(changes.get(name), CHANGE)] if len(models) == 2 else []
            yield Line(name.capitalize(), (*cells, *change))
    cells = [Cell(f"{model.errors:,}") for model in models]
    yield Line("Errors", (*cells, *([Cell()] if len(models) == 2 else [])))


def agreement_lines(evaluation: Evaluation) -> Iterator[Line]:
    """How alike the two models are; nothing for one alone."""
    agreement = evaluation.agreement
    if agreement is None:
        return
    yield Line("Same next token", (cell(agreement.tokens, SHARE), Cell(f"of {plural(evaluation.tokens, 'position')}")))
    yield Line("Divergence", (cell(agreement.divergence, NUMBER), Cell("nats a token")))
    if agreement.answers is not None:
        yield Line("Same answer", (cell(agreement.answers, SHARE), Cell(f"of {plural(evaluation.rows, 'row')}")))


def slice_lines(evaluation: Evaluation, column: str, metrics: Sequence[str]) -> Iterator[Line]:
    """For each value of a column its rows, then for each metric the models side by side."""
    chosen = [(style, find) for name, style, find in METRICS if name in metrics]
    for part in evaluation.slices:
        if part.column == column:
            found = (cell(find(model), style) for style, find in chosen for model in part.scores)
            yield Line(part.value, (Cell(f"{part.rows:,}"), *found))


def slice_metrics(evaluation: Evaluation, column: str) -> list[str]:
    """The metrics that a column's values have."""
    models = [model for part in evaluation.slices if part.column == column for model in part.scores]
    return [name for name, _, find in METRICS if any(find(model) is not None for model in models)]


def task_lines(evaluation: Evaluation) -> Iterator[Line]:
    """Each metric of each task of lm-eval, the models side by side."""
    for score in evaluation.tasks:
        figures = [score.candidate, *([] if score.reference is None else [score.reference])]
        yield Line(f"{score.task}, {score.metric}", tuple(map(_task_cell, figures)))


def _task_cell(figure: TaskFigure) -> Cell:
    if figure.error is None:
        return Cell(_four(figure.value))
    low, high = figure.value - NORMAL * figure.error, figure.value + NORMAL * figure.error
    return Cell(_four(figure.value), f"{_four(low)} to {_four(high)}")


def slice_columns(evaluation: Evaluation) -> list[str]:
    """The columns by whose values rows are told apart, in order."""
    return list(dict.fromkeys(part.column for part in evaluation.slices))


def cell(estimate: Estimate | None, style: Style) -> Cell:
    """An estimate as text."""
    if estimate is None:
        return Cell("–")
    low, high = style.digits(estimate.low), style.digits(estimate.high)
    return Cell(f"{style.digits(estimate.value)}{style.unit}", f"{low} to {high}{style.unit}")


def _percent(value: float) -> str:
    """Says 0 or 100 only of exactly none or all."""
    percent = 100 * value
    shown = f"{percent:.1f}"
    misleads = 0 < value < 1 and shown in ("0.0", "100.0")
    return f"{min(99.99, max(0.01, percent)):.2f}" if misleads else shown


def _signed(value: float) -> str:
    return f"{100 * value:+.2f}".replace("-", "−").replace("+0.00", "0.00").replace("−0.00", "0.00")


def _four(value: float) -> str:
    """Four significant digits, without an exponent where there is room."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:#.4g}".rstrip(".") if abs(value) >= 1e-4 or not value else f"{value:.2e}"


SHARE, CHANGE, NUMBER = Style(_percent, " %"), Style(_signed, " %"), Style(_four, "")
METRICS: tuple[tuple[str, Style, Callable[[ModelScores], Estimate | None]], ...] = (
    ("accuracy", SHARE, lambda model: model.accuracy),
    ("match", SHARE, lambda model: model.match),
    ("perplexity", NUMBER, lambda model: model.perplexity),
)
