"""Loading against transformers' own from_pretrained; dtype names; what is refused, by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    BertConfig,
    Gemma2Config,
    LlamaConfig,
    MambaConfig,
    PreTrainedModel,
    Qwen3MoeConfig,
    T5Config,
    dynamic_module_utils,
)

from engine import attention
from engine.model import load_model, resolve_dtype
from tests.engine.conftest import randomize

CPU = torch.device("cpu")
BUNDLED = Path(__file__).parent.parent.parent / "data" / "models" / "messages-4m"


def assert_same_weights(model: PreTrainedModel, reference: PreTrainedModel) -> None:
    """Equal class, parameters, buffers (those not saved too) and shared parameters."""
    assert type(model) is type(reference)
    expected = dict(reference.named_parameters()) | dict(reference.named_buffers())
    loaded = dict(model.named_parameters()) | dict(model.named_buffers())
    assert loaded.keys() == expected.keys()
    for name, tensor in expected.items():
        assert loaded[name].dtype is tensor.dtype, name
        torch.testing.assert_close(loaded[name], tensor, rtol=0, atol=0, msg=name)


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("head", [True, False])
def test_weights_are_those_of_transformers(
    model_folders: dict[str, Path], architecture: str, head: bool, dtype: torch.dtype
) -> None:
    folder = model_folders[architecture]
    loader = AutoModelForCausalLM if head else AutoModel
    assert_same_weights(
        load_model(folder, dtype=dtype, device=CPU, head=head), loader.from_pretrained(folder, dtype=dtype)
    )


def test_weights_of_the_bundled_model_and_of_an_encoder(tmp_path: Path) -> None:
    bundled = load_model(BUNDLED, dtype=torch.float32, device=CPU)
    assert_same_weights(bundled, AutoModelForCausalLM.from_pretrained(BUNDLED, dtype=torch.float32))
    assert bundled.get_output_embeddings().weight is bundled.get_input_embeddings().weight

    config = BertConfig(vocab_size=20, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24)
    encoder = AutoModel.from_config(config)
    randomize(encoder)
    encoder.save_pretrained(tmp_path)
    reference = AutoModel.from_pretrained(tmp_path)
    assert_same_weights(load_model(tmp_path, dtype=torch.float32, device=CPU, head=False), reference)


def test_shards_are_joined(model_folders: dict[str, Path], tmp_path: Path) -> None:
    reference = AutoModelForCausalLM.from_pretrained(model_folders["mistral"])
    reference.save_pretrained(tmp_path, max_shard_size="100KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    assert_same_weights(load_model(tmp_path, dtype=torch.float32, device=CPU), reference)


def test_experts_stored_one_by_one_are_fused_as_transformers_does(tmp_path: Path) -> None:
    config = Qwen3MoeConfig(
        vocab_size=20,
        hidden_size=16,
        intermediate_size=24,
        moe_intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        num_experts=4,
        num_experts_per_tok=2,
    )
    model = AutoModelForCausalLM.from_config(config)
    randomize(model)
    model.save_pretrained(tmp_path)
    assert any("experts.3.up_proj" in name for name in load_file(tmp_path / "model.safetensors"))
    assert_same_weights(load_model(tmp_path, dtype=torch.float32, device=CPU), model)


def test_tensors_that_old_checkpoints_hold_are_ignored(model_folders: dict[str, Path], tmp_path: Path) -> None:
    weights = load_file(model_folders["llama"] / "model.safetensors")
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(8)
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_bytes((model_folders["llama"] / "config.json").read_bytes())
    reference = AutoModelForCausalLM.from_pretrained(model_folders["llama"])
    assert_same_weights(load_model(tmp_path, dtype=torch.float32, device=CPU), reference)


def test_a_model_with_code_of_its_own(
    model_folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    weights = load_file(model_folders["llama"] / "model.safetensors")
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    config = json.loads((model_folders["llama"] / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "own.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class Config(LlamaConfig):\n    model_type = 'own'\n"
        "class Model(LlamaForCausalLM):\n    config_class = Config\n"
    )
    model = load_model(tmp_path, dtype=torch.float32, device=CPU, trust_remote_code=True)
    assert type(model).__name__ == "Model"
    for name, tensor in weights.items():
        torch.testing.assert_close(model.get_parameter(name), tensor, rtol=0, atol=0)


def test_weights_of_another_shape_are_refused_by_name(model_folders: dict[str, Path], tmp_path: Path) -> None:
    config = json.loads((model_folders["llama"] / "config.json").read_text()) | {"vocab_size": 200}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").symlink_to(model_folders["llama"] / "model.safetensors")
    with pytest.raises(ValueError, match=r"weight lm_head\.weight has shape \[199, 64\].* \[200, 64\]"):
        load_model(tmp_path, dtype=torch.float32, device=CPU)


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
