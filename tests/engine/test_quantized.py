"""Quantized checkpoints, written here from the formats' definitions: the model is that of the dequantized weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from engine.fp8 import Fp8Linear
from engine.int4_linear import Int4Linear
from engine.model import load_model
from engine.precision import quantize
from engine.quantized_formats import read_format
from tests.engine.conftest import randomize
from tests.engine.test_int4 import AWQ_ORDER, pack_rows

CPU = torch.device("cpu")
GROUP = 32
IDS = torch.tensor([[5, 17, 3, 99, 42, 8]])

Tensors = dict[str, torch.Tensor]


def _grid(weight: torch.Tensor, low: int, high: int, group: int, *, symmetric: bool) -> tuple[torch.Tensor, ...]:
    """Values, zero points and float16 scales of each group of a row; the values lie in low..high."""
    grouped = weight.view(len(weight), -1, group)
    span = grouped.abs().amax(-1) * 2 if symmetric else grouped.amax(-1) - grouped.amin(-1)
    scales = (span / 15).half()
    zeros = torch.zeros_like(span) if symmetric else (low - grouped.amin(-1) / scales.float()).round().clamp(low, high)
    values = (grouped / scales.float().unsqueeze(-1) + zeros.unsqueeze(-1)).round().clamp(low, high)
    return values.view_as(weight).int(), zeros.int(), scales


def _weight(values: torch.Tensor, zeros: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    per_column = [tensor.repeat_interleave(values.shape[1] // scales.shape[1], 1).float() for tensor in (zeros, scales)]
    return (values.float() - per_column[0]) * per_column[1]


def _awq(name: str, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    values, zeros, scales = _grid(weight, 0, 15, GROUP, symmetric=False)
    tensors = {
        f"{name}.qweight": pack_rows(values.t().numpy(), AWQ_ORDER),
        f"{name}.qzeros": pack_rows(zeros.t().numpy(), AWQ_ORDER),
        f"{name}.scales": scales.t().contiguous(),
    }
    return tensors, _weight(values, zeros, scales)


def _packed(name: str, weight: torch.Tensor, *, symmetric: bool, group: int = GROUP) -> tuple[Tensors, torch.Tensor]:
    values, zeros, scales = _grid(weight, -8, 7, group, symmetric=symmetric)
    tensors = {
        f"{name}.weight_packed": pack_rows((values + 8).numpy()),
        f"{name}.weight_scale": scales,
        f"{name}.weight_shape": torch.tensor(weight.shape),
    }
    if not symmetric:
        tensors[f"{name}.weight_zero_point"] = pack_rows((zeros + 8).t().numpy()).t().contiguous()
    return tensors, _weight(values, zeros, scales)


def _float8(name: str, weight: torch.Tensor, *, channels: bool) -> tuple[Tensors, torch.Tensor]:
    scale = (weight.abs().amax(1, keepdim=True) if channels else weight.abs().amax().view(1)) / 448
    values = (weight / scale).to(torch.float8_e4m3fn)
    return {f"{name}.weight": values, f"{name}.weight_scale": scale}, values.float() * scale


def _compressed(form: str, **scheme: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": scheme, "input_activations": None, "output_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
        "quantization_status": "compressed",
    }


def _int4(**changes: Any) -> dict[str, Any]:
    scheme = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": GROUP}
    return _compressed("pack-quantized", **(scheme | changes))


AWQ = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"}
FORMATS = {
    "awq": (AWQ, _awq),
    "packed-symmetric": (_int4(), lambda name, weight: _packed(name, weight, symmetric=True)),
    "packed-channel": (
        _int4(strategy="channel", group_size=None),
        lambda name, weight: _packed(name, weight, symmetric=True, group=weight.shape[1]),
    ),
    "packed": (_int4(symmetric=False), lambda name, weight: _packed(name, weight, symmetric=False)),
    "float8-channel": (
        _compressed("float-quantized", num_bits=8, type="float", symmetric=True, strategy="channel"),
        lambda name, weight: _float8(name, weight, channels=True),
    ),
    "float8-tensor": (
        _compressed("float-quantized", num_bits=8, type="float", symmetric=True, strategy="tensor"),
        lambda name, weight: _float8(name, weight, channels=False),
    ),
}


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    config = LlamaConfig(
        vocab_size=199,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        attention_bias=True,
    )
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    randomize(model)
    return model


def _write(folder: Path, model: PreTrainedModel, format_name: str) -> PreTrainedModel:
    """Write the model with every linear but the head quantized; returns it with the weights that this amounts to."""
    quantization, quantize = FORMATS[format_name]
    reference: PreTrainedModel = AutoModelForCausalLM.from_config(model.config)
    reference.load_state_dict(model.state_dict())
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for name, module in reference.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            stored, weight = quantize(name, tensors.pop(f"{name}.weight"))
            tensors |= stored
            module.weight.data = weight
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(model.config.to_dict() | {"quantization_config": quantization}))
    return reference.eval()


@pytest.mark.parametrize("format_name", list(FORMATS))
def test_a_quantized_checkpoint_answers_as_its_dequantized_weights(
    format_name: str, model: PreTrainedModel, tmp_path: Path
) -> None:
    reference = _write(tmp_path, model, format_name)
    loaded = load_model(tmp_path, dtype=torch.float32, device=CPU)
    for name, parameter in reference.named_parameters():
        torch.testing.assert_close(loaded.get_parameter(name), parameter, rtol=1e-6, atol=1e-7)
    loaded.set_attn_implementation("eager")
    torch.testing.assert_close(
        loaded(IDS, use_cache=False).logits, reference(IDS, use_cache=False).logits, rtol=1e-4, atol=1e-4
    )
    lossy = (reference(IDS).logits - model(IDS).logits).abs().max()
    assert lossy > 0.01


@pytest.mark.parametrize("format_name", list(FORMATS))
def test_awq_takes_int4_weights_as_they_are(format_name: str, model: PreTrainedModel, tmp_path: Path) -> None:
    """Only the rounding to FP8 that they are computed in; rounding to int4 again would cost a tenth."""
    reference = _write(tmp_path, model, format_name)
    loaded = load_model(tmp_path, dtype=torch.float32, device=CPU)
    shown = quantize(loaded, "awq")
    assert shown.startswith("int4 weights," if "float" not in format_name else "weights rounded")
    for name, layer in loaded.named_modules():
        if isinstance(layer, Fp8Linear) and "float" not in format_name:
            wanted = reference.get_parameter(f"{name}.weight")
            assert (layer.weight.float() * layer.scale - wanted).norm() / wanted.norm() < 0.04


INT4 = [name for name in FORMATS if "float" not in name]
LINEARS = 2 * 7


def _int4_layers(model: torch.nn.Module) -> dict[str, Int4Linear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, Int4Linear)}


@pytest.mark.parametrize("format_name", INT4)
def test_weights_that_stay_packed_are_the_same(format_name: str, model: PreTrainedModel, tmp_path: Path) -> None:
    _write(tmp_path, model, format_name)
    wanted = load_model(tmp_path, dtype=torch.float32, device=CPU)
    loaded = load_model(tmp_path, dtype=torch.float32, device=CPU, packed=True)
    assert type(loaded) is type(wanted)
    layers = _int4_layers(loaded)
    assert len(layers) == LINEARS
    one_group = {64: 64, 96: 32}  # for the whole row, cut into such as the kernel takes
    assert all(
        layer.group == (one_group[layer.in_features] if "channel" in format_name else GROUP)
        for layer in layers.values()
    )
    for name, layer in layers.items():
        unpacked = layer.unpacked(torch.float32)
        assert torch.equal(unpacked.weight, wanted.get_parameter(f"{name}.weight"))
        assert (layer.bias is None) == (wanted.get_submodule(name).bias is None)
    ordinary = {name: tensor for name, tensor in wanted.state_dict().items() if name in loaded.state_dict()}
    assert len(ordinary) == len(wanted.state_dict()) - LINEARS
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in ordinary.items())
    assert {tensor.device.type for tensor in loaded.state_dict().values()} == {"cpu"}
    for each in (loaded, wanted):
        each.set_attn_implementation("eager")
    assert torch.equal(loaded(IDS, use_cache=False).logits, wanted(IDS, use_cache=False).logits)


@pytest.mark.parametrize("method", ["none", "fp8", "awq", "awq-dtype"])
@pytest.mark.parametrize("format_name", ["awq", "packed"])
def test_answers_do_not_depend_on_where_weights_are_unpacked(
    format_name: str, method: str, model: PreTrainedModel, tmp_path: Path
) -> None:
    _write(tmp_path, model, format_name)
    answers = []
    for fits in (True, False):
        loaded = load_model(tmp_path, dtype=torch.float32, device=CPU, packed=True)
        shown = quantize(loaded, method, lambda *_, fits=fits: fits)
        assert shown.startswith("int4 weights, computed" if fits else "int4 weights, kept in 4 bits, computed")
        assert len(_int4_layers(loaded)) == (0 if fits else LINEARS)
        loaded.set_attn_implementation("eager")
        answers.append(loaded(IDS, use_cache=False).logits)
    assert torch.equal(*answers)


def test_a_checkpoint_with_a_head_gives_packed_layers_without_one(model: PreTrainedModel, tmp_path: Path) -> None:
    _write(tmp_path, model, "awq")
    loaded = load_model(tmp_path, dtype=torch.float32, device=CPU, head=False, packed=True)
    assert len(_int4_layers(loaded)) == LINEARS
    wanted = load_model(tmp_path, dtype=torch.float32, device=CPU, head=False)
    for each in (loaded, wanted):
        each.set_attn_implementation("eager")
    found = [each(IDS, use_cache=False).last_hidden_state for each in (loaded, wanted)]
    assert torch.equal(*found)


def test_other_layers_keep_no_four_bits(model: PreTrainedModel, tmp_path: Path) -> None:
    """Eight bits have none; a head that is stored in four is an ordinary one."""
    _write(tmp_path, model, "float8-channel")
    assert not _int4_layers(load_model(tmp_path, dtype=torch.float32, device=CPU, packed=True))
    _write(tmp_path, model, "packed-symmetric")
    head, _ = _packed("lm_head", torch.randn(200, 64), symmetric=True)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"vocab_size": 200}))

    def change(tensors: Tensors) -> None:
        tensors.pop("lm_head.weight")
        tensors |= head | {"model.embed_tokens.weight": torch.randn(200, 64)}

    _rewrite(tmp_path, change)
    loaded = load_model(tmp_path, dtype=torch.float32, device=CPU, packed=True)
    assert type(loaded.lm_head) is torch.nn.Linear
    assert len(_int4_layers(loaded)) == LINEARS


def test_the_wanted_dtype_is_rounded_to_once(model: PreTrainedModel, tmp_path: Path) -> None:
    reference = _write(tmp_path, model, "packed")
    loaded = load_model(tmp_path, dtype=torch.bfloat16, device=CPU)
    for name, parameter in reference.named_parameters():
        torch.testing.assert_close(loaded.get_parameter(name), parameter.bfloat16(), rtol=0, atol=0)


def _rewrite(folder: Path, change: Any) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


NAME = "model.layers.1.mlp.up_proj"


@pytest.mark.parametrize(
    ("format_name", "change", "reason"),
    [
        ("awq", lambda tensors: tensors.pop(f"{NAME}.qzeros"), rf"{NAME}\.qzeros is missing"),
        ("awq", lambda tensors: tensors.update({f"{NAME}.scales": torch.ones(4, 96)}), rf"{NAME}\.scales has shape"),
        ("packed", lambda tensors: tensors.pop(f"{NAME}.weight_zero_point"), rf"{NAME} lacks zero points"),
        (
            "packed",
            lambda tensors: tensors.update({f"{NAME}.weight_g_idx": torch.zeros(64, dtype=torch.int32)}),
            rf"{NAME} .*activation order",
        ),
        (
            "packed",
            lambda tensors: tensors.update({f"{NAME}.weight_scale": torch.ones(96, 4)}),
            rf"{NAME} has 4 scales",
        ),
        (
            "packed",
            lambda tensors: tensors.update({f"{NAME}.weight_packed": torch.zeros(2, 96, 8, dtype=torch.int32)}),
            rf"{NAME} is quantized with 3 dimensions",
        ),
        ("float8-channel", lambda tensors: tensors.update({f"{NAME}.weight_scale": torch.ones(3, 1)}), NAME),
        ("packed-symmetric", lambda tensors: tensors.pop("model.norm.weight"), r"missing .*model\.norm\.weight"),
    ],
)
def test_damaged_checkpoints_are_refused_by_name(
    format_name: str, change: Any, reason: str, model: PreTrainedModel, tmp_path: Path
) -> None:
    _write(tmp_path, model, format_name)
    _rewrite(tmp_path, change)
    with pytest.raises(ValueError, match=reason):
        load_model(tmp_path, dtype=torch.float32, device=CPU)


@pytest.mark.parametrize(
    ("quantization", "reason"),
    [
        ({"quant_method": "gptq", "bits": 4}, "method 'gptq' is not supported; supported are awq"),
        ({"bits": 4}, "method None"),
        (AWQ | {"bits": 8}, "bits = 8"),
        (AWQ | {"version": "gemv"}, "version = 'gemv'"),
        (AWQ | {"zero_point": False}, "zero_point = False"),
        (_int4(num_bits=8), "num_bits = 8"),
        (_int4(type="float"), "type = 'float'"),
        (_int4(strategy="tensor"), "strategy = 'tensor'"),
        (_int4(actorder="group"), "actorder = 'group'"),
        (_compressed("nvfp4-pack-quantized", num_bits=4), "format 'nvfp4-pack-quantized'"),
        (_compressed("float-quantized", num_bits=8, type="float", strategy="block"), "strategy = 'block'"),
        (
            _compressed("int-quantized", num_bits=8, type="int", strategy="channel", symmetric=False),
            "symmetric = False",
        ),
        (_int4() | {"sparsity_config": {"format": "sparse-24-bitmask"}}, "stored sparse"),
        (_int4() | {"transform_config": {"config_groups": {"u": {}}}}, "transforms its activations"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(quantization: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        read_format(quantization)
