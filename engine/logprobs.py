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


class TokenRows:
    """Pairs of a row of hidden states and a token looked up there, so laid out that the head runs once a row.

    Legend of shapes: P pairs, R distinct rows of a block, p pairs of a block.
    """

    def __init__(self, rows: np.ndarray, tokens: np.ndarray, device: torch.device) -> None:
        """rows and tokens: int64 arrays [P]."""
        self._needed, places = np.unique(rows, return_inverse=True)
        self._order = np.argsort(places, kind="stable")
        self._places = places[self._order]
        arrays = (self._needed, self._places, tokens[self._order])
        self._needed_at, self._places_at, self._tokens_at = (upload(array, device) for array in arrays)

    def blocks(self, size: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """For `size` rows at a time: the rows [R]; of each pair that reads them its place in R [p] and token [p]."""
        for start in range(0, len(self._needed), size):
            low, high = np.searchsorted(self._places, (start, start + size))
            at = self._places_at[low:high] - start
            yield self._needed_at[start : start + size], at, self._tokens_at[low:high]

    def restored(self, pairs: Tensor) -> Tensor:
        """[P, ...] in the order of the pairs, from those of all blocks one behind the other."""
        back = np.empty_like(self._order)
        back[self._order] = np.arange(len(self._order))
        return pairs[upload(back, pairs.device)]


def token_logprobs(
    model: PreTrainedModel, hidden: Tensor, rows: np.ndarray, tokens: np.ndarray, block: int | None = None
) -> Tensor:
    """float32 [P]: log P(tokens[p] | hidden[rows[p]]), for hidden [T, D] and int64 arrays rows and tokens [P].

    The head runs once for each distinct row, over `block` rows at a time (by default so many that their logits stay
    within BLOCK_LOGITS).
    """
    wanted = TokenRows(rows, tokens, hidden.device)
    parts = [hidden.new_empty(0, dtype=torch.float32)]
    with head_of(model) as head:
        for rows_at, at, tokens_at in wanted.blocks(block or block_rows(model)):
            logits = head(hidden[rows_at]).float()
            parts.append(logits[at, tokens_at] - logits.logsumexp(1)[at])
    return wanted.restored(torch.cat(parts))


def block_rows(model: PreTrainedModel, logits: int = BLOCK_LOGITS) -> int:
    """Rows whose logits are about so many, and at least 16."""
    return int(max(16, logits // model.config.get_text_config().vocab_size))


@dataclass
class _TrunkOutput(ModelOutput):
    """What a trunk returns; the fields that only some heads read (router_logits, cross_attentions) are None."""

    last_hidden_state: Tensor | None = None

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


@contextmanager
def head_of(model: PreTrainedModel) -> Iterator[Callable[[Tensor], Tensor]]:
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
