"""Loading: dtype names, refused architectures, weights that the files lack."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Gemma2Config, LlamaConfig, MambaConfig, PreTrainedModel, T5Config

from engine import attention
from engine.model import load_model, resolve_dtype

CPU = torch.device("cpu")


def test_dtype_names() -> None:
    assert resolve_dtype("auto", CPU) is torch.float32
    assert resolve_dtype("bfloat16", CPU) is torch.bfloat16
    with pytest.raises(ValueError, match=r"float8.*bfloat16"):
        resolve_dtype("float8", CPU)


def test_loaded_model_is_ready_for_inference(models: dict[str, PreTrainedModel], architecture: str) -> None:
    model = models[architecture]
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert model.config._attn_implementation == attention.NAME


def test_without_head_the_model_ends_with_hidden_states(model_folders: dict[str, Path]) -> None:
    model = load_model(model_folders["qwen3"], dtype=torch.bfloat16, device=CPU, head=False)
    assert model.get_output_embeddings() is None
    assert model.dtype is torch.bfloat16


def test_missing_weights_are_refused(model_folders: dict[str, Path], tmp_path: Path) -> None:
    weights = load_file(model_folders["llama"] / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_bytes((model_folders["llama"] / "config.json").read_bytes())
    with pytest.raises(ValueError, match=r"layers\.1\.mlp\.up_proj"):
        load_model(tmp_path, dtype=torch.float32, device=CPU)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (T5Config(d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2, vocab_size=20), "encoder-decoder"),
        (MambaConfig(hidden_size=16, state_size=4, num_hidden_layers=1, vocab_size=20), "linear_attention"),
        (
            LlamaConfig(
                vocab_size=20,
                hidden_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                layer_types=["chunked_attention"],
            ),
            "chunked_attention",
        ),
    ],
)
def test_architectures_that_would_answer_wrongly_are_refused(config: object, reason: str, tmp_path: Path) -> None:
    config.save_pretrained(tmp_path)  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=reason):
        load_model(tmp_path, dtype=torch.float32, device=CPU)


def test_soft_capping_is_refused_by_name(tmp_path: Path) -> None:
    config = Gemma2Config(
        vocab_size=20,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    model = load_model(tmp_path, dtype=torch.float32, device=CPU)
    with pytest.raises(ValueError, match="soft-capping"):
        model(input_ids=torch.tensor([[1, 2]]), use_cache=False)
