"""Which forward pass a model gets: the fused one if it is the same function, else transformers' modules.

A model that has the parts of the fused layers may still do more with them than they show, so they are tried on a copy
of two layers with random weights against transformers' own modules, as they will be used: over the paged cache, or over
a pack. The verdict is remembered, on disk too.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from engine.cuda import verdicts
from engine.cuda.attention import queries, tiling
from engine.cuda.batch import Batch
from engine.cuda.decoder import FusedDecoder
from engine.cuda.modules import ModuleDecoder
from engine.cuda.projection import LINEAR
from engine.cuda.structure import head, recognise
from engine.cuda.trunk import FusedTrunk
from engine.kv_memory import layer_shapes
from engine.packing import Pack
from engine.paged import BLOCK, PagedKV
from engine.random_model import build_random_model
from engine.settings import EngineSettings
from engine.trunk import ModuleTrunk, trunk

_LAYERS = 2
_TOKENS = 24
_VOCABULARY = 128
# Of the difference, relative to what is compared: rounding differs, structure does not.
_TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
_known: dict[str, bool] = {}


class Decoder(Protocol):
    """A forward pass over the paged cache."""

    def logits(self, ids: Tensor, batch: Batch, keep: Tensor | None) -> Tensor:
        """Logits [R, V] of the packed tokens ids int64 [T]; keep: int64 [R], which of them; None for all."""


def decoder(model: PreTrainedModel, settings: EngineSettings, kv: PagedKV, positions: int) -> Decoder:
    """The forward pass of `choose`. positions: most positions of a sequence.

    Raises ValueError where that is to be the same in any batch, and cannot.
    """
    if choose(model, settings):
        return FusedDecoder(model, kv, positions, invariant=settings.invariant, repeatable=settings.shardwise)
    if settings.invariant:
        raise ValueError(
            f"engine.deterministic = 'batch-invariant' runs fused layers on a GPU; {type(model).__name__} has others"
        )
    return ModuleDecoder(model, settings, kv)


def fused_trunk(model: PreTrainedModel, settings: EngineSettings) -> FusedTrunk | None:
    """The forward pass of `choose_trunk`; None where it is transformers' modules."""
    return FusedTrunk(model, repeatable=settings.shardwise) if choose_trunk(model, settings) else None


def choose(model: PreTrainedModel, settings: EngineSettings) -> bool:
    """Whether the model is run by FusedDecoder."""
    return isinstance(head(model), LINEAR) and _holds(_same_logits, model, settings)


def choose_trunk(model: PreTrainedModel, settings: EngineSettings) -> bool:
    """Whether the model, with a head or without, is run by FusedTrunk."""
    return _holds(_same_hidden, model, settings)


def _holds(check: Callable[[PreTrainedModel], bool], model: PreTrainedModel, settings: EngineSettings) -> bool:
    """The check's verdict, remembered for the architecture and its sizes."""
    # Under automatic mixed precision each operation has a precision of its own.
    if (settings.amp and model.dtype == torch.float32) or not recognise(model):
        return False
    name = verdicts.name_of(check.__name__, model)
    if name not in _known:
        verdict = verdicts.recall(name)
        if verdict is None:
            verdict = check(model)
            verdicts.remember(name, verdict)
        _known[name] = verdict
    return _known[name]


@torch.inference_mode()
def _same_logits(model: PreTrainedModel) -> bool:
    """Whether a copy gives the same logits over the paged cache both ways."""
    copy = _copy(model)
    if copy is None or type(copy) is not type(model):
        return False
    settings = EngineSettings()
    kv = PagedKV(layer_shapes(copy, settings), 2, model.device)
    ids = torch.arange(_TOKENS, device=model.device) * 5 % _VOCABULARY
    # Both kinds of attention: the first half as a prompt, one token more as a decoding row.
    tables = torch.tensor([[1, 2]], dtype=torch.int32, device=model.device)
    half, at = _TOKENS - 1, torch.arange(_TOKENS, device=model.device)
    rows = torch.zeros(_TOKENS, dtype=torch.int64, device=model.device)
    width = queries(copy.config.num_attention_heads, kv.layers[0].heads, model.dtype)
    zero = np.zeros(1, np.int64)
    tiles = torch.from_numpy(tiling(zero, zero, zero + half, 0, width)).to(model.device)
    prompt = Batch(rows[:half], at[:half], tables, 0, 0, 0, tiles)
    decode = Batch(rows[half:], at[half:], tables, 1, 2 * BLOCK, 1)

    def logits(forward: Decoder) -> Tensor:
        return torch.cat([forward.logits(ids[:half], prompt, None), forward.logits(ids[half:], decode, None)])

    wanted = logits(ModuleDecoder(copy, settings, kv))
    try:
        fused = FusedDecoder(copy, kv, _TOKENS)
    except ValueError:
        return False
    return _close(logits(fused), wanted)


@torch.inference_mode()
def _same_hidden(model: PreTrainedModel) -> bool:
    """Whether a copy gives the same hidden states over a pack both ways."""
    copy = _copy(model)
    if copy is None or type(trunk(copy)) is not type(trunk(model)):
        return False
    prompts = tuple(np.arange(count) * 5 % _VOCABULARY for count in (_TOKENS, _TOKENS // 2))
    pack = Pack(prompts, (0, 1), stem=0)
    wanted = ModuleTrunk(copy).hidden(pack)
    try:
        fused = FusedTrunk(copy)
    except ValueError:
        return False
    return _close(fused.hidden(pack), wanted)


def _copy(model: PreTrainedModel) -> PreTrainedModel | None:
    """A model of the same architecture with a head, two layers at most and random weights; None where there is none."""
    config = deepcopy(model.config)
    config.num_hidden_layers, config.vocab_size = min(_LAYERS, config.num_hidden_layers), _VOCABULARY
    for name in ("layer_types", "no_rope_layers"):
        if getattr(config, name, None) is not None:
            setattr(config, name, getattr(config, name)[:_LAYERS])
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        setattr(config, name, None)
    state = torch.random.get_rng_state()
    try:
        return build_random_model(config, dtype=model.dtype, device=model.device)
    except ValueError:  # transformers knows no such architecture with a head
        return None
    finally:
        torch.random.set_rng_state(state)


def _close(found: Tensor, wanted: Tensor) -> bool:
    error = (found.float() - wanted.float()).norm() / wanted.float().norm()
    return bool(error <= _TOLERANCE[wanted.dtype])
