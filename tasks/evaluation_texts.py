"""The texts whose likelihood an evaluation measures: each row's prompt with an answer behind it.

The answer is the right one where the input has it (job.expected), else the reference's, or the candidate's own where
there is no reference: both models are thus held against the same tokens. For job.kind = "score" it is the scored text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from data.answer_tokens import AnswerTokens
from data.prompts import Prompts
from data.rows import Record
from data.tokenizer import Ids
from tasks.evaluation_answers import Answers, column_texts
from tasks.evaluation_job import EvaluationJob, Name
from tasks.likelihood import Text


def texts_of(
    job: EvaluationJob, records: Sequence[Record], answers: Mapping[Name, Answers]
) -> tuple[list[Text], list[bool]]:
    """The texts, and of every row whether it has no prompt. A row of less than two tokens has no text."""
    prompts = job.job.prompter.encode(records)
    if answers:
        firsts, behind = [1] * len(records), _answers(job, records, answers)
    else:
        assert prompts.scored_from is not None
        firsts, behind = [max(1, first) for first in prompts.scored_from], _none(prompts)
    context = min(checkpoint.context_length for checkpoint in job.models.values())
    texts = []
    for row, (prompt, answer) in enumerate(zip(prompts.ids, behind, strict=True)):
        ids = np.concatenate([prompt, answer])[:context]
        if row not in prompts.errors and len(ids) > firsts[row]:
            texts.append(Text(row, ids, firsts[row]))
    return texts, [row in prompts.errors for row in range(len(records))]


def _answers(job: EvaluationJob, records: Sequence[Record], answers: Mapping[Name, Answers]) -> list[Ids]:
    """The ids of the answer behind each row's prompt; none where there is no answer."""
    settings = job.settings
    said = answers["candidate" if job.reference is None else "reference"]
    texts, ended = list(said.texts), list(said.ended)
    if settings.job.expected is not None:
        for row, right in enumerate(column_texts(records, settings.job.expected)):
            if right is not None:
                texts[row], ended[row] = right, True
    if settings.sampling.stop:  # such an answer is ended by its caller, and by no token
        ended = [False] * len(ended)
    encoded = AnswerTokens(settings.job, job.job.checkpoint).encode([text or "" for text in texts], ended)
    nothing = np.empty(0, np.uint32)
    return [nothing if text is None else ids for text, ids in zip(texts, encoded, strict=True)]


def _none(prompts: Prompts) -> list[Ids]:
    return [np.empty(0, np.uint32)] * len(prompts.ids)
