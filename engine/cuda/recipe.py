"""Which forward pass a model gets: the fused one if it is the same function, else transformers' modules."""

from __future__ import annotations

from copy import deepcopy
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from engine.cuda.batch import Batch
from engine.cuda.decoder import FusedDecoder, recognise
from engine.cuda.modules import ModuleDecoder
from engine.kv_memory import layer_shapes
from engine.paged import BLOCK, PagedKV
from engine.random_model import build_random_model
from engine.settings import EngineSettings

_TOKENS = 24
_VOCABULARY = 128
# Of the difference, relative to the logits: rounding differs, structure does not.
_TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
_verdicts: dict[str, bool] = {}


class Decoder(Protocol):
    """A forward pass over the paged cache."""

    def logits(self, ids: Tensor, batch: Batch, keep: Tensor | None) -> Tensor:
        """Logits [R, V] of the packed tokens ids int64 [T]; keep: int64 [R], which of them; None for all."""


def choose(model: PreTrainedModel, settings: EngineSettings) -> bool:
    """Whether the model is run by FusedDecoder. The answer is remembered for the architecture and its sizes."""
    # Under automatic mixed precision each operation has a precision of its own.
    if settings.amp and model.dtype == torch.float32:
        return False
    if not recognise(model):
        return False
    config = model.config.to_dict()
    key = f"{type(model).__name__} {model.dtype} {sorted(config.items(), key=str)}"
    if key not in _verdicts:
        _verdicts[key] = _same(model)
    return _verdicts[key]


def decoder(model: PreTrainedModel, settings: EngineSettings, kv: PagedKV, positions: int) -> Decoder:
    """The forward pass of `choose`. positions: most positions of a sequence."""
    return FusedDecoder(model, kv, positions) if choose(model, settings) else ModuleDecoder(model, settings, kv)


@torch.inference_mode()
def _same(model: PreTrainedModel) -> bool:
    """Whether a copy of two layers with random weights gives the same logits both ways."""
    config = deepcopy(model.config)
    config.num_hidden_layers, config.vocab_size = 2, _VOCABULARY
    for name in ("layer_types", "no_rope_layers"):
        if getattr(config, name, None) is not None:
            setattr(config, name, getattr(config, name)[:2])
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        setattr(config, name, None)
    state = torch.random.get_rng_state()
    copy = build_random_model(config, dtype=model.dtype, device=model.device)
    torch.random.set_rng_state(state)
    settings = EngineSettings()
    kv = PagedKV(layer_shapes(copy, settings), 2, model.device)
    ids = torch.arange(_TOKENS, device=model.device) * 5 % _VOCABULARY
    # Both kinds of attention: the first half as a prompt, one token more as a decoding row.
    tables = torch.tensor([[1, 2]], dtype=torch.int32, device=model.device)
    half, at = _TOKENS - 1, torch.arange(_TOKENS, device=model.device)
    rows = torch.zeros(_TOKENS, dtype=torch.int64, device=model.device)
    tiles = torch.tensor([[0, i, i, 1] for i in range(half)], dtype=torch.int32, device=model.device)
    prompt = Batch(rows[:half], at[:half], tables, 0, 0, 0, tiles)
    decode = Batch(rows[half:], at[half:], tables, 1, 2 * BLOCK, 1)
    results = []
    for make in (lambda: ModuleDecoder(copy, settings, kv), lambda: FusedDecoder(copy, kv, _TOKENS)):
        try:
            forward = make()
        except ValueError:
            return False
        results.append(
            torch.cat([forward.logits(ids[:half], prompt, None), forward.logits(ids[half:], decode, None)]).float()
        )
    error = (results[0] - results[1]).norm() / results[0].norm()
    return bool(error <= _TOLERANCE[model.dtype])
