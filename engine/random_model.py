"""Models with random weights, made on the device: the speed of an architecture needs its shape, not its checkpoint.

Weights are drawn where they will be used, so a 7B model is there in under a second and nothing is read. They are small,
so that activations stay finite, but no part can hide: norm weights are near one without being one, biases are not zero.
Everything else about the model is as engine.model loads it. The answers of such a model mean nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.initialization import no_init_weights

from engine import attention
from engine.model import check_config, check_model
from engine.workloads import find_shape

_SPREAD = 0.02
_NORM_SPREAD = 0.1


def read_config(model: str) -> Any:
    """The transformers config of a named shape, a folder with a config.json, or such a file.

    Nothing is downloaded. Raises ValueError where there is no config or the engine cannot run the architecture.
    """
    shape = find_shape(model)
    if isinstance(shape, Path):
        config = AutoConfig.from_pretrained(str(shape), local_files_only=True)
    else:
        config = AutoConfig.for_model(**shape)
    check_config(config)
    return config


def build_random_model(config: Any, *, dtype: torch.dtype, device: torch.device, seed: int = 0) -> PreTrainedModel:
    """A decoder-only model of `config` in eval mode, its weights in `dtype` drawn from `seed` on `device`.

    Equal seeds give equal weights on one kind of device. Raises ValueError for an architecture the engine cannot run.
    """
    check_config(config)
    models: Any = AutoModelForCausalLM
    # Built on the device itself rather than on "meta", so that buffers which no checkpoint has are computed as usual.
    with torch.device(device), no_init_weights():
        model = models.from_config(config, dtype=dtype, attn_implementation=attention.NAME)
    assert isinstance(model, PreTrainedModel)
    check_model(model)
    model.tie_weights()  # skipped along with the initialization
    generator = torch.Generator(device).manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            one = weight.ndim == 1 and name.endswith("weight")  # a norm's
            spread = _NORM_SPREAD if one else _SPREAD
            weight.uniform_(one - spread, one + spread, generator=generator)
    model.requires_grad_(False)
    model.train(False)
    return model
