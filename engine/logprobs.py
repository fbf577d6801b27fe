"""Log-probabilities of given tokens from hidden states, with bounded memory.

The logits of a whole pack, [T, vocabulary], can be larger than the model, and only a log-sum-exp a row and the logits
of the tokens asked for are needed of them. So the head runs over blocks of rows. It is the model's own code behind its
trunk, so that logit scaling and soft-capping apply: for a block, the trunk's forward only hands over hidden states.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput

from engine.packed import upload
from engine.trunk import trunk

# Logits held at a time: 128 MB in float32.
BLOCK_LOGITS = 1 << 25


def token_logprobs(
    model: PreTrainedModel, hidden: Tensor, rows: np.ndarray, tokens: np.ndarray, block: int | None = None
) -> Tensor:
    """float32 [P]: log P(tokens[p] | hidden[rows[p]]), for hidden [T, D] and int64 arrays rows and tokens [P].

    The head runs once for each distinct row, over `block` rows at a time (by default so many that their logits stay
    within BLOCK_LOGITS).
    """
    needed, places = np.unique(rows, return_inverse=True)
    order = np.argsort(places, kind="stable")
    places = places[order]
    needed_at, places_at, tokens_at = (upload(array, hidden.device) for array in (needed, places, tokens[order]))
    block = block or max(16, BLOCK_LOGITS // model.config.get_text_config().vocab_size)
    parts = [hidden.new_empty(0, dtype=torch.float32)]
    with _head(model) as head:
        for start in range(0, len(needed), block):
            logits = head(hidden[needed_at[start : start + block]]).float()
            low, high = np.searchsorted(places, (start, start + block))
            at = places_at[low:high] - start
            parts.append(logits[at, tokens_at[low:high]] - logits.logsumexp(1)[at])
    back = np.empty_like(order)
    back[order] = np.arange(len(order))
    return torch.cat(parts)[upload(back, hidden.device)]


@dataclass
class _TrunkOutput(ModelOutput):
    """What a trunk returns; the fields that only some heads read (router_logits, cross_attentions) are None."""

    last_hidden_state: Tensor | None = None

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


@contextmanager
def _head(model: PreTrainedModel) -> Iterator[Callable[[Tensor], Tensor]]:
    """A function from hidden states [R, D] to logits [R, vocabulary]."""
    given: list[Tensor] = []

    def hand_over(*_args: Any, **_kwargs: Any) -> _TrunkOutput:
        return _TrunkOutput(last_hidden_state=given.pop()[None])

    def head(hidden: Tensor) -> Tensor:
        given.append(hidden)
        logits: Tensor = model(inputs_embeds=hidden[None], use_cache=False).logits[0]
        assert not given, f"{type(model).__name__} does not call its trunk"
        return logits

    base = trunk(model)
    assert base is not model, f"{type(model).__name__} was loaded without its head"
    # Some heads call the decoder inside the trunk (OPT) rather than the trunk.
    inner = getattr(base, "decoder", None)
    with ExitStack() as stack:
        for module in (base, inner):
            if isinstance(module, nn.Module):
                stack.enter_context(_forward_replaced(module, hand_over))
        yield head


@contextmanager
def _forward_replaced(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Let calls of `module` run `forward`; a forward set on the instance before is put back."""
    before = module.__dict__.get("forward")
    module.__dict__["forward"] = forward
    try:
        yield
    finally:
        if before is None:
            del module.__dict__["forward"]
        else:
            module.__dict__["forward"] = before
