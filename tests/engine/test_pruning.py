"""2:4 sparsity: which weights go, that the pattern is in the file, and that it stays through rounding."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PhiConfig

from engine.model import load_model
from engine.pruning import MLP, mlp, prune, prune_model
from engine.quantizer import Quantizer
from engine.quantizer_report import QuantizationReport
from tests.engine.conftest import VOCABULARY

CPU = torch.device("cpu")


def quantized(folder: Path, output: Path | None = None, **settings: Any) -> QuantizationReport:
    """The report of an FP8 quantization of one of the tiny models."""
    generator = np.random.default_rng(3)
    rows = [generator.integers(0, VOCABULARY, generator.integers(5, 40)) for _ in range(12)]
    return Quantizer(folder, "fp8", 8, output=output, **({"calibration": rows, "device": CPU} | settings)).apply()


def tensors(folder: Path) -> dict[str, Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def most(weight: Tensor) -> int:
    """The most weights beside zero among four consecutive inputs of an output."""
    return int((weight.float() != 0).view(len(weight), -1, 4).sum(-1).max())


def pruned_copy(source: Path, folder: Path) -> Path:
    """The checkpoint with the lightest half of its MLP's weights set to zero, as minus zero where they were below."""
    shutil.copytree(source, folder)
    found = load_file(folder / "model.safetensors")
    for name, weight in found.items():
        if name.removesuffix(".weight").endswith(MLP):
            kept = weight.clone()
            prune(kept)
            weight.mul_((kept != 0).to(weight.dtype))
    save_file(found, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_a_light_weight_of_a_large_input_outweighs_a_heavy_one() -> None:
    weight = torch.tensor([[4.0, -3.0, 2.0, 1.0, 1.0, 2.0, -3.0, 4.0], [0.0, 0.0, 5.0, 0.1, 1.0, 1.0, 1.0, 1.0]])
    norms = torch.tensor([1.0, 1.0, 1.0, 5.0, 0.0, 2.0, 1.0, 0.0])
    plain, weighted = weight.clone(), weight.clone()
    prune(plain)
    prune(weighted, norms)
    assert plain[0].tolist() == [4, -3, 0, 0, 0, 0, -3, 4]
    assert weighted[0].tolist() == [4, 0, 0, 1, 0, 2, -3, 0]
    assert weighted[1, :4].tolist() == [0, 0, 5, torch.tensor(0.1).item()]
    assert weighted[1, 4:].tolist() == [0, 1, 1, 0]


def test_inputs_that_are_always_zero_lose_their_lightest_weights() -> None:
    weight = torch.tensor([[0.0, 2.0, 0.0, 3.0]])
    prune(weight, torch.zeros(4))
    assert weight.tolist() == [[0, 2, 0, 3]]


def test_the_file_has_the_pattern_in_the_mlp_alone(model_folders: dict[str, Path], tmp_path: Path) -> None:
    source = tmp_path / "model"
    shutil.copytree(model_folders["qwen2"], source)
    report = quantized(source, sparsity="2:4")
    assert report.output == str(tmp_path / "model-fp8-2of4")
    found = tensors(Path(report.output))
    weights = {name: weight for name, weight in found.items() if weight.dtype == torch.float8_e4m3fn}
    assert len(weights) == 3 * 7
    for name, weight in weights.items():
        pruned = name.removesuffix(".weight").endswith(MLP)
        assert most(weight) == (2 if pruned else 4), name
    original = tensors(source)["model.layers.1.mlp.up_proj.weight"]
    loaded = load_model(report.output, dtype=torch.float32, device=CPU).model.layers[1].mlp.up_proj.weight
    kept = loaded != 0
    assert kept.float().mean() == pytest.approx(0.5, abs=0.01)
    torch.testing.assert_close(loaded[kept], original[kept], rtol=0.07, atol=2e-3)


def test_errors_contain_what_pruning_does(model_folders: dict[str, Path], tmp_path: Path) -> None:
    dense = quantized(model_folders["qwen3"], tmp_path / "dense")
    pruned = quantized(model_folders["qwen3"], tmp_path / "pruned", sparsity="2:4")
    for one, other in zip(dense.layers, pruned.layers, strict=True):
        assert (other.error_after or 0) > 3 * (one.error_after or 1)


@pytest.mark.parametrize("settings", [{}, {"sparsity": "2:4"}, {"static_activations": True}])
def test_a_model_that_is_pruned_already_stays_so(
    settings: dict[str, Any], model_folders: dict[str, Path], tmp_path: Path
) -> None:
    source = pruned_copy(model_folders["llama"], tmp_path / "pruned")
    quantized(source, tmp_path / "out", **settings)
    before, after = tensors(source), tensors(tmp_path / "out")
    for layer in range(3):
        for part in MLP:
            name = f"model.layers.{layer}.{part}.weight"
            assert torch.equal(before[name] == 0, after[name].float() == 0), name


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"sparsity": "1:4"}, "sparsity = '1:4' is unknown; use none, 2:4"),
        ({"sparsity": "2:4", "calibration": ()}, "sparsity = '2:4' needs calibration rows, and there are none"),
    ],
)
def test_bad_settings_are_named(
    settings: dict[str, Any], reason: str, model_folders: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=reason):
        quantized(model_folders["qwen3"], tmp_path / "out", **settings)
    assert list(tmp_path.iterdir()) == []


def test_only_fp8_is_pruned(model_folders: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match="sparsity = '2:4' is for quant_method = 'fp8', not 'int8'"):
        Quantizer(model_folders["qwen3"], "int8", 8, sparsity="2:4")


def test_a_model_without_such_an_mlp_is_named(tmp_path: Path) -> None:
    config = PhiConfig(
        vocab_size=VOCABULARY, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "phi")
    reason = r"model\.layers\.0 of model_path .*phi has no linears mlp\.gate_proj, .*; use sparsity = 'none'"
    with pytest.raises(ValueError, match=reason):
        quantized(tmp_path / "phi", tmp_path / "out", sparsity="2:4")
    quantized(tmp_path / "phi", tmp_path / "out")
    with pytest.raises(ValueError, match=r"layer 0 of PhiForCausalLM has no linears mlp\.gate_proj"):
        prune_model(AutoModelForCausalLM.from_config(config))


def test_a_whole_model_loses_its_lightest_weights(model_folders: dict[str, Path]) -> None:
    model = load_model(model_folders["mistral"], dtype=torch.float32, device=CPU)
    wanted = model.model.layers[2].mlp.down_proj.weight.clone()
    prune(wanted)
    prune_model(model)
    assert torch.equal(model.model.layers[2].mlp.down_proj.weight, wanted)
    assert all(most(linear.weight) == 2 for layer in model.model.layers for linear in mlp(layer).values())
    assert most(model.model.layers[2].self_attn.q_proj.weight) == 4
