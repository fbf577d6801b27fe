"""Whole quantized checkpoints: what transformers makes of them, how small they are, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from engine.awq_search import rounded_inputs
from engine.model import load_model
from engine.quantizer import Quantizer
from engine.quantizer_report import REPORT_NAME, QuantizationReport
from engine.quantizer_schemes import scheme_of
from engine.quantizer_settings import QuantizerSettings
from tests.engine.conftest import VOCABULARY

CPU = torch.device("cpu")
IDS = torch.tensor([[5, 17, 3, 99, 42, 8, 61, 150]])
LINEARS = 3 * 7


def calibration(count: int = 12) -> list[np.ndarray]:
    """Rows of unequal lengths."""
    generator = np.random.default_rng(3)
    return [generator.integers(0, VOCABULARY, generator.integers(5, 40)) for _ in range(count)]


def quantized(folder: Path, output: Path, **settings: Any) -> QuantizationReport:
    """The report of a quantization of one of the tiny models."""
    found = {"group_size": 32, "search_steps": 4, "clip_steps": 6, "calibration": calibration(), "device": CPU}
    return Quantizer(folder, output=output, **(found | settings)).apply()


def ours(folder: Path) -> PreTrainedModel:
    """The checkpoint as this engine loads it, with transformers' attention."""
    model = load_model(folder, dtype=torch.float32, device=CPU)
    model.set_attn_implementation("eager")
    return model


def theirs(folder: Path) -> PreTrainedModel:
    """The checkpoint as transformers loads it, by way of compressed-tensors."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    return model.eval()


def same_weights(one: PreTrainedModel, other: PreTrainedModel) -> None:
    """Every parameter of the first is in the second, with the same values."""
    for name, parameter in one.named_parameters():
        torch.testing.assert_close(
            other.get_submodule(name.rpartition(".")[0]).weight
            if name.endswith("weight")
            else other.get_parameter(name),
            parameter,
            rtol=1e-6,
            atol=1e-7,
        )


def test_awq_is_loaded_alike_by_transformers_and_here(
    architecture: str, model_folders: dict[str, Path], tmp_path: Path
) -> None:
    quantized(model_folders[architecture], tmp_path / "out")
    one, other = ours(tmp_path / "out"), theirs(tmp_path / "out")
    torch.testing.assert_close(other(IDS).logits, one(IDS, use_cache=False).logits, rtol=1e-5, atol=1e-5)
    same_weights(one, other)


@pytest.mark.parametrize(
    "settings",
    [
        {"quant_method": "rtn", "symmetric": True},
        {"quant_method": "fp8", "bits": 8},
        {"quant_method": "fp8", "bits": 8, "static_activations": True},
        {"quant_method": "fp8", "bits": 8, "sparsity": "2:4"},
        {"quant_method": "int8", "bits": 8},
    ],
    ids=["rtn-symmetric", "fp8", "fp8-static", "fp8-2of4", "int8"],
)
def test_the_other_methods_are_loaded_alike(
    settings: dict[str, Any], model_folders: dict[str, Path], tmp_path: Path
) -> None:
    """Activations are rounded by transformers too, so that here they are rounded as the quantizer measures."""
    quantized(model_folders["qwen3"], tmp_path / "out", **settings)
    one, other = ours(tmp_path / "out"), theirs(tmp_path / "out")
    found = other(IDS).logits
    same_weights(one, other)
    scheme = scheme_of(QuantizerSettings.model_validate({"group_size": 32} | settings), torch.float32)
    linears = {name: m for name, m in one.named_modules() if isinstance(m, torch.nn.Linear) and name != "lm_head"}
    assert len(linears) == LINEARS
    scales = [getattr(other.get_submodule(name), "input_scale", None) for name in linears]
    assert all((scale is not None) == ("static_activations" in settings) for scale in scales)
    with rounded_inputs(list(linears.values()), scheme, static=scales):
        wanted = one(IDS, use_cache=False).logits
    # A value halfway between two levels may go either way. For int8, compressed-tensors divides a token's largest
    # magnitude by 127.5, vLLM's kernel and we by 127: two grids of equal fineness.
    assert (found - wanted).norm() / wanted.norm() < (0.06 if settings["quant_method"] == "int8" else 0.01)


def test_the_report_and_the_sizes(tmp_path: Path) -> None:
    """bfloat16 weights in groups of 128: 4 bits, a scale and a zero point a group."""
    source = tmp_path / "model"
    bundled = Path(__file__).parents[2] / "data" / "models" / "messages-4m"
    shutil.copytree(bundled, source)
    told: list[tuple[int, int]] = []
    report = Quantizer(
        source, "rtn", calibration=calibration(), device=CPU, progress=lambda layer, of: told.append((layer.layer, of))
    ).apply()
    output = tmp_path / "model-rtn-int4-g128"
    assert report.output == str(output)
    assert QuantizationReport.model_validate_json((output / REPORT_NAME).read_bytes()) == report
    assert len({path.stat().st_mode for path in output.iterdir()}) == 1, "whoever reads the config reads the weights"
    assert told == [(layer, 4) for layer in range(4)]
    assert report.linear_bytes_after <= 0.27 * report.linear_bytes_before
    before, files = load_file(source / "model.safetensors"), sorted(output.glob("*.safetensors"))
    after = {name: tensor for file in files for name, tensor in load_file(file).items()}
    assert report.bytes_before == sum(tensor.nbytes for tensor in before.values())
    assert report.bytes_after == sum(tensor.nbytes for tensor in after.values())
    assert torch.equal(after["model.embed_tokens.weight"], before["model.embed_tokens.weight"])
    assert after["model.layers.0.mlp.up_proj.weight_scale"].dtype == torch.bfloat16
    index = json.loads((output / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(after)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "README.md"):
        assert (output / name).read_bytes() == (source / name).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "model-rtn-int4-g128"]


def test_methods_that_calibrate_nothing_need_no_rows(model_folders: dict[str, Path], tmp_path: Path) -> None:
    report = quantized(model_folders["llama"], tmp_path / "out", quant_method="fp8", bits=8, calibration=())
    assert [layer.error_after for layer in report.layers] == [None] * 3
    with_rows = quantized(model_folders["llama"], tmp_path / "other", quant_method="fp8", bits=8)
    assert all(0 < (layer.error_after or 0) < 0.2 for layer in with_rows.layers)
    same_weights(ours(tmp_path / "out"), ours(tmp_path / "other"))


def test_files_in_parts_and_without_a_head(model_folders: dict[str, Path], tmp_path: Path) -> None:
    """Shards of the source are no shards of the result; a model without a head has names without a prefix."""
    whole = AutoModelForCausalLM.from_pretrained(model_folders["qwen3"])
    whole.save_pretrained(tmp_path / "parts", max_shard_size="100KB")
    whole.model.save_pretrained(tmp_path / "bare")
    for name, source in (("one", model_folders["qwen3"]), ("two", tmp_path / "parts"), ("three", tmp_path / "bare")):
        quantized(source, tmp_path / name)
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 4
    one, two, three = (
        {name: tensor for file in (tmp_path / folder).glob("*.safetensors") for name, tensor in load_file(file).items()}
        for folder in ("one", "two", "three")
    )
    assert one.keys() == two.keys() == {f"model.{name}" for name in three} | {"lm_head.weight"}
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())
    assert all(torch.equal(tensor, one[f"model.{name}"]) for name, tensor in three.items())
    load_model(tmp_path / "three", dtype=torch.float32, device=CPU, head=False)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"quant_method": "gptq"}, "quant_method = 'gptq' is unknown; use awq, rtn, fp8, int8"),
        ({"bits": 3}, "bits = 3 is not supported by quant_method = 'awq'; use bits = 4"),
        ({"quant_method": "fp8"}, "bits = 4 is not supported by quant_method = 'fp8'; use bits = 8"),
        ({"group_size": 48}, "group_size = 48 is not supported; use 128, 64 or 32"),
        ({"group_size": 64}, r"group_size = 64 does not divide the 96 inputs of model\.layers\.0\..*; use 32"),
        ({"static_activations": True}, "static_activations is for quant_method = 'fp8'"),
        ({"calibration": ()}, "'awq' needs calibration rows, and there are none"),
        ({"calibration": [np.array([1, VOCABULARY])]}, f"row 0 has token ids beyond the vocabulary of {VOCABULARY}"),
        ({"calibration": [np.array([], np.int64)]}, "row 0 is no 1-D array of token ids, or an empty one"),
        ({"calibration": [np.ones(257, np.int64)]}, "row 0 has 257 tokens, more than the model's 256"),
        ({"step": 3}, "step"),
    ],
)
def test_bad_settings_are_named(
    settings: dict[str, Any], reason: str, model_folders: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=reason):
        quantized(model_folders["qwen3"], tmp_path / "out", **settings)
    assert list(tmp_path.iterdir()) == []


def test_bad_models_are_named(model_folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no folder with a config"):
        quantized(tmp_path / "nowhere", tmp_path / "out")
    quantized(model_folders["llama"], tmp_path / "out", quant_method="rtn")
    with pytest.raises(ValueError, match="is quantized already"):
        quantized(tmp_path / "out", tmp_path / "again")
    with pytest.raises(ValueError, match="out exists already"):
        quantized(model_folders["llama"], tmp_path / "out", quant_method="rtn")
    shutil.copytree(model_folders["llama"], tmp_path / "part")
    tensors = load_file(tmp_path / "part" / "model.safetensors")
    tensors.pop("model.layers.1.mlp.up_proj.weight")
    save_file(tensors, tmp_path / "part" / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"model\.layers\.1\.mlp\.up_proj\.weight is missing"):
        quantized(tmp_path / "part", tmp_path / "new")
