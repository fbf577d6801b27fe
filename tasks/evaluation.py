"""What an evaluation found: how well a checkpoint answers, and how far it is from another one.

Every figure is an `Estimate` with its confidence interval at 95 %. How the figures come about is the business of
tasks.evaluation_figures; docs/evaluation.md says what each of them means.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Estimate(_Record):
    """A figure with its confidence interval at 95 %."""

    value: float
    low: float
    high: float


class ModelScores(_Record):
    """How one model did on some rows.

    `name` is candidate or reference; `errors` counts the rows without a result, which count as wrong. `accuracy` is the
    share of answers equal to the column `job.expected`, `match` that of answers which follow `evaluate.pattern`;
    `perplexity` is over the tokens of prompt and answer. None where there is nothing to measure it by.
    """

    name: str
    path: str
    rows: int
    errors: int
    accuracy: Estimate | None
    match: Estimate | None
    perplexity: Estimate | None


class Agreement(_Record):
    """How alike the two models are, on the same rows.

    `tokens`: share of token positions at which both find the same next token likeliest. `divergence`: mean
    Kullback-Leibler divergence of the candidate's next-token distribution from the reference's, in nats a token.
    `answers`: share of rows with the same answer; None for a kind of job without answers.
    """

    tokens: Estimate
    divergence: Estimate
    answers: Estimate | None


class Slice(_Record):
    """The rows that have one value in one column."""

    column: str
    value: str
    rows: int
    scores: tuple[ModelScores, ...]


class TaskFigure(_Record):
    """A metric of lm-eval with its standard error, where lm-eval gives one."""

    value: float
    error: float | None


class TaskScore(_Record):
    """One metric of one task of lm-eval."""

    task: str
    metric: str
    candidate: TaskFigure
    reference: TaskFigure | None


class Evaluation(_Record):
    """Everything that was measured.

    `tokens` counts the token positions that perplexity and agreement are over. The changes are candidate / reference -
    1, paired by row. `lost` counts the rows at which the candidate alone has no result. `report` is the path of the
    HTML report, `digests` the sha256 digests of each model (`Checkpoint.digests`), `ended` the time in UTC, `identity`
    a digest of what decides the figures.
    """

    rows: int
    tokens: int
    candidate: ModelScores
    reference: ModelScores | None
    agreement: Agreement | None
    accuracy_change: Estimate | None
    perplexity_change: Estimate | None
    slices: tuple[Slice, ...]
    report: str
    lost: int = 0
    tasks: tuple[TaskScore, ...] = ()
    digests: dict[str, dict[str, str]] = {}
    ended: str = ""
    identity: str = ""
