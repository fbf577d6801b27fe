"""What an evaluation found of one model, or of a candidate beside a reference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class ModelScores:
    """The scores of one model over the rows that it could be asked."""

    name: str
    path: str
    rows: int
    errors: int
    accuracy: Estimate | None
    match: str
    perplexity: Estimate | None


@dataclass(frozen=True)
class Agreement:
    """How alike the two models are, whatever is right."""

    tokens: Any
    divergence: Any
    answers: Any


@dataclass(frozen=True)
class Evaluation:
    """Changes are relative: candidate / reference - 1."""

    rows: int
    tokens: int
    candidate: ModelScores
    reference: ModelScores | None
    agreement: Agreement | None
    accuracy_change: Estimate | None
    perplexity_change: Estimate | None
    slices: Any
    report: str
