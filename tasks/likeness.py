"""Whether two completions of one request say the same, as far as rounding lets them.

Another batch, another device of the same type or another run of the same kernels may round differently, and a greedy
choice between two tokens that are equally likely then turns. So numbers are compared within a tolerance, and tokens as
far as rounding cannot have turned several rows at once: a caller looks at how many of a handful of rows differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from engine.request import Completion

Answer = dict[str, Any]


def to_answer(completion: Completion) -> Answer:
    """What is compared of a completion, as plain JSON values."""
    return {
        "error": completion.error[0] if completion.error else None,
        "tokens": list(completion.token_ids),
        "finish_reason": completion.finish_reason,
        "probabilities": completion.probabilities,
        "logprob": completion.logprob,
        "scored": completion.scored,
        "embedding": None if completion.embedding is None else [float(x) for x in completion.embedding],
    }


def differs(ours: Answer, theirs: Mapping[str, Any], *, tokens: int, exact: bool) -> bool:
    """Whether two answers differ by more than rounding.

    Args:
        ours: an answer.
        theirs: another one to the same request.
        tokens: how many tokens of a text are compared.
        exact: whether both were computed in float32, where rounding is a matter of the sixth digit, not of the second.
    """
    if ours["error"] != theirs["error"]:
        return True
    if ours["probabilities"] is not None:
        return _far(ours["probabilities"], theirs["probabilities"], 1e-3 if exact else 0.1)
    if ours["logprob"] is not None:
        size = max(1, ours["scored"])
        return _far([ours["logprob"] / size], [theirs["logprob"] / size], 1e-3 if exact else 0.1)
    if ours["embedding"] is not None:
        return _apart(np.array(ours["embedding"]), np.array(theirs["embedding"]), 1e-4 if exact else 2e-2)
    return bool(ours["tokens"][:tokens] != theirs["tokens"][:tokens])


def _far(ours: list[float], theirs: list[float] | None, tolerance: float) -> bool:
    if theirs is None or len(ours) != len(theirs):
        return True
    return not np.allclose(ours, theirs, rtol=tolerance, atol=tolerance)


def _apart(ours: np.ndarray, theirs: np.ndarray, tolerance: float) -> bool:
    """Whether two embeddings point elsewhere, by the cosine of their angle."""
    if ours.shape != theirs.shape:
        return True
    product = float(np.linalg.norm(ours) * np.linalg.norm(theirs))
    return not abs(float(ours @ theirs) - product) <= tolerance * product  # also where one holds NaN
