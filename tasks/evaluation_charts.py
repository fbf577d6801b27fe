"""The drawings of an evaluation's report, as SVG to be put into a page: they take colours and font from it.

matplotlib writes plain colours only; so each role has a colour that nothing else has, which becomes the page's.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from tasks.evaluation import Estimate, Evaluation, ModelScores
from tasks.evaluation_table import METRICS, slice_metrics
from tasks.figures import plural, printable

INK, LINE = "#010101", "#020202"
COLOURS = {"candidate": "#030303", "reference": "#040404"}
_ROLES = {
    INK: "currentColor",
    LINE: "var(--line)",
    COLOURS["candidate"]: "var(--candidate)",
    COLOURS["reference"]: "var(--reference)",
}
_STYLE: Any = {
    "svg.fonttype": "none",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
}
WIDTH = 7.6  # inches of 72 points
LABEL_CHARACTERS = 28
LEAST_DIVERGENCE = 1e-6
"""Nats a token below which rows are drawn as if they had this much: the axis is logarithmic."""


def scores_chart(evaluation: Evaluation) -> str:
    """Each metric with its interval, of one model or both."""
    models = [model for model in (evaluation.candidate, evaluation.reference) if model is not None]
    metrics = [(name, find) for name, _, find in METRICS if any(find(model) is not None for model in models)]
    if not metrics:
        return ""
    with _figure(WIDTH, 0.55 + 0.32 * len(models), "scores") as (figure, drawn):
        for number, (name, find) in enumerate(metrics):
            axes = figure.add_subplot(1, len(metrics), number + 1)
            for place, model in enumerate(models):
                estimate = find(model)
                if estimate is not None:
                    _whisker(axes, estimate, place, model.name, 1.0 if name == "perplexity" else 100.0)
            axes.set_ylim(len(models) - 0.5, -0.5)
            axes.set_yticks(range(len(models)), [model.name for model in models] if number == 0 else [""] * len(models))
            axes.set_title(name.capitalize() if name == "perplexity" else f"{name.capitalize()}, %", fontsize=10)
            _plain(axes)
    return drawn[0]


def slices_chart(evaluation: Evaluation, column: str) -> str:
    """Bars of the first metric that there is, by the values of a column."""
    parts = [part for part in evaluation.slices if part.column == column]
    metrics = slice_metrics(evaluation, column)
    if not metrics:
        return ""
    name, find = next((name, find) for name, _, find in METRICS if name == metrics[0])
    models = len(parts[0].scores)
    with _figure(WIDTH, 0.7 + 0.17 * (models + 0.8) * len(parts), f"slices {column}") as (figure, drawn):
        axes = figure.add_subplot()
        height = 0.8 / models
        for place, part in enumerate(parts):
            for number, model in enumerate(part.scores):
                estimate = find(model)
                if estimate is not None:
                    at = place + (number - (models - 1) / 2) * height
                    _bar(axes, estimate, at, height, model, 1.0 if name == "perplexity" else 100.0)
        labels = [_label(part.value) for part in parts]
        axes.set_yticks(range(len(parts)), labels, parse_math=False)
        axes.set_ylim(len(parts) - 0.5, -0.5)
        axes.set_xlim(left=0)
        axes.set_xlabel(name.capitalize() if name == "perplexity" else f"{name.capitalize()}, %")
        _plain(axes)
    return drawn[0]


def divergence_chart(divergences: npt.NDArray[np.float64]) -> str:
    """How many rows have which divergence, in nats a token; nothing if it is finite in none of them.

    It is infinite where the candidate gives no probability at all to a token that the reference may say.
    """
    finite = divergences[np.isfinite(divergences)]
    if not len(finite):
        return ""
    without = f"; {plural(len(divergences) - len(finite), 'row')} beyond all bounds" * (len(finite) < len(divergences))
    shown = np.maximum(finite, LEAST_DIVERGENCE)
    low, high = shown.min() / 1.1, shown.max() * 1.1
    with _figure(WIDTH, 2.2, "divergence") as (figure, drawn):
        axes = figure.add_subplot()
        edges = np.geomspace(low, high, 33).tolist()
        axes.hist(shown, edges, color=COLOURS["candidate"], edgecolor="none", rwidth=0.92)
        axes.axvline(float(np.median(shown)), color=INK, linewidth=1, linestyle=(0, (4, 3)))
        axes.set_xscale("log")
        axes.set_xticks(_ticks(low, high), minor=False)
        axes.set_xticks([], minor=True)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}"))
        axes.set_xlim(low, high)
        axes.set_xlabel(f"nats a token, logarithmic; the dashed line is the median row{without}")
        axes.set_ylabel("rows")
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        _plain(axes, "y")
    return drawn[0]


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers between two positive ones, few enough to stand side by side on a logarithmic axis."""
    if high < 3 * low:
        return [float(tick) for tick in MaxNLocator(5).tick_values(low, high) if low <= tick <= high]
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 5) if high < 1000 * low else (1,)
    return [step * 10.0**power for power in decades for step in steps if low <= step * 10.0**power <= high]


def _whisker(axes: Axes, estimate: Estimate, place: float, role: str, scale: float) -> None:
    low, value, high = (scale * number for number in (estimate.low, estimate.value, estimate.high))
    colour = COLOURS[role]
    axes.plot([low, high], [place, place], color=colour, linewidth=2, solid_capstyle="butt")
    axes.plot([value], [place], "o", color=colour, markersize=7)


def _bar(axes: Axes, estimate: Estimate, at: float, height: float, model: ModelScores, scale: float) -> None:
    low, value, high = (scale * number for number in (estimate.low, estimate.value, estimate.high))
    axes.barh(at, value, height * 0.9, color=COLOURS[model.name])
    axes.plot([low, high], [at, at], color=INK, linewidth=1)


def _label(value: str) -> str:
    text = printable(value)
    return text if len(text) <= LABEL_CHARACTERS else text[: LABEL_CHARACTERS - 1] + "…"


def _plain(axes: Axes, grid: Literal["x", "y"] = "x") -> None:
    axes.grid(axis=grid)
    axes.tick_params(length=0, pad=5)
    axes.margins(x=0.12)


@contextmanager
def _figure(width: float, height: float, name: str) -> Iterator[tuple[Figure, Sequence[str]]]:
    """A figure to draw into, and a list that holds its SVG after the block. `name` makes its ids its own."""
    drawn: list[str] = []
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a letter that its fonts lack is drawn by the page's
        figure = Figure(figsize=(width, height), layout="constrained", facecolor="none")
        yield figure, drawn
        for axes in figure.axes:
            axes.set_facecolor("none")
        stream = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(stream, format="svg", facecolor="none", metadata=nothing)
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r'<svg ([^>]*?)width="[^"]*"', r"<svg \1", text, count=1)
    text = re.sub(r'<svg ([^>]*?)height="[^"]*"', r"<svg \1", text, count=1)
    for colour, role in _ROLES.items():
        text = text.replace(colour, role)
    drawn.append(text)
