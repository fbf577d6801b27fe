"""Tiny random models of four architectures, written once a session, and what the generation tests share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)
from transformers.utils import logging

from engine.model import load_model

VOCABULARY = 199
CONTEXT = 256

_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}

ARCHITECTURES: dict[str, Callable[[], Any]] = {
    "qwen2": lambda: Qwen2Config(**_COMMON, tie_word_embeddings=True),
    "qwen3": lambda: Qwen3Config(**_COMMON, head_dim=24),
    "llama": lambda: LlamaConfig(**(_COMMON | {"num_key_value_heads": 4})),
    "mistral": lambda: MistralConfig(**_COMMON, sliding_window=20),
}


def randomize(model: torch.nn.Module) -> None:
    """Weights large enough for varied greedy answers; norms not one and biases not zero, so that each is seen."""
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name:
                parameter.copy_(1 + 0.2 * noise)
            elif name.endswith("bias"):
                parameter.copy_(0.3 * noise)
            else:
                parameter.copy_(noise * (2.0 / parameter.shape[-1] ** 0.5))


@pytest.fixture(scope="session")
def model_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint folder for each architecture."""
    logging.disable_progress_bar()
    folders = {}
    for name, config in ARCHITECTURES.items():
        model = AutoModelForCausalLM.from_config(config())
        randomize(model)
        folders[name] = tmp_path_factory.mktemp(name)
        model.save_pretrained(folders[name])
    return folders


@pytest.fixture(scope="session", params=list(ARCHITECTURES))
def architecture(request: pytest.FixtureRequest) -> str:
    """Each architecture's name in turn."""
    return str(request.param)


@pytest.fixture(scope="session")
def models(model_folders: dict[str, Path]) -> dict[str, PreTrainedModel]:
    """The models as the engine runs them, float32 on CPU."""
    return {
        name: load_model(folder, dtype=torch.float32, device=torch.device("cpu"))
        for name, folder in model_folders.items()
    }


@pytest.fixture(scope="session")
def references(model_folders: dict[str, Path]) -> dict[str, PreTrainedModel]:
    """The same models with transformers' own attention and cache."""
    return {
        name: AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
        for name, folder in model_folders.items()
    }
