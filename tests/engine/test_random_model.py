"""Random models: complete, reproducible, and refused where a checkpoint of the architecture would be."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, MambaConfig, PreTrainedModel

from engine.attention import attending
from engine.random_model import build_random_model, read_config
from engine.workloads import SHAPES
from tests.engine.conftest import ARCHITECTURES

CPU = torch.device("cpu")
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


class Mean:
    """Attention that gives each query head the mean of its values."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, /, **kind: object) -> Tensor:
        del layer, k, kind
        return v.mean(1, keepdim=True).repeat_interleave(q.shape[0] // v.shape[0], 0).expand_as(q).transpose(0, 1)


def build(name: str, seed: int = 0) -> PreTrainedModel:
    return build_random_model(ARCHITECTURES[name](), dtype=torch.float32, device=CPU, seed=seed)


def test_every_weight_is_drawn(architecture: str) -> None:
    model = build(architecture)
    for name, weight in model.named_parameters():
        assert weight.abs().max() <= 1.1, name
        assert weight.std() > 0.005, name
        if weight.ndim == 1 and name.endswith("weight"):
            assert weight.mean() == pytest.approx(1, abs=0.1), name
    ids = torch.arange(7)[None]
    with attending(Mean()), torch.inference_mode():
        logits = model(input_ids=ids, position_ids=ids, use_cache=False).logits
    assert logits.isfinite().all()
    assert logits.std() > 0
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_the_seed_decides_the_weights(architecture: str) -> None:
    first, again, other = (build(architecture, seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)


def test_buffers_are_those_of_a_model_built_as_usual() -> None:
    configs = [
        *(make() for make in ARCHITECTURES.values()),
        LlamaConfig(
            vocab_size=20, hidden_size=64, num_hidden_layers=1, num_attention_heads=2, rope_parameters=LLAMA3_ROPE
        ),
    ]
    for config in configs:
        usual = dict(AutoModelForCausalLM.from_config(config).named_buffers())
        ours = dict(build_random_model(config, dtype=torch.bfloat16, device=CPU).named_buffers())
        assert ours.keys() == usual.keys()
        assert any("inv_freq" in name for name in ours)
        assert all(torch.equal(ours[name], usual[name]) for name in ours)
        assert all(ours[name].dtype is usual[name].dtype for name in ours)


def test_tied_embeddings_are_one_tensor() -> None:
    tied, own = build("qwen2"), build("llama")
    assert tied.get_output_embeddings().weight is tied.get_input_embeddings().weight
    assert own.get_output_embeddings().weight is not own.get_input_embeddings().weight


@pytest.mark.parametrize("name", SHAPES)
def test_a_named_shape_keeps_every_entry(name: str) -> None:
    config = read_config(name)
    shape = dict(SHAPES[name])
    assert config.rope_parameters["rope_theta"] == shape.pop("rope_theta")
    assert {entry: getattr(config, entry) for entry in shape} == shape


def test_a_config_is_read_from_a_file_or_its_folder(model_folders: dict[str, Path]) -> None:
    folder = model_folders["qwen3"]
    of_folder, of_file = (read_config(str(path)).to_dict() for path in (folder, folder / "config.json"))
    assert of_folder | {"_name_or_path": ""} == of_file | {"_name_or_path": ""}
    assert of_file["head_dim"] == 24
    with pytest.raises(ValueError, match=r"'r1-8b' is none of r1-7b, qwen3-0.6b"):
        read_config("r1-8b")


def test_an_architecture_the_engine_cannot_run_is_refused() -> None:
    config = MambaConfig(hidden_size=16, state_size=4, num_hidden_layers=1, vocab_size=20)
    with pytest.raises(ValueError, match="linear_attention"):
        build_random_model(config, dtype=torch.float32, device=CPU)
