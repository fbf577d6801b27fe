"""The search against rounding to nearest and against the definitions, and the moving of scales."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GemmaConfig

from engine.awq_folds import find_folds
from engine.awq_search import InputStatistics, kept_ranges
from engine.layer_stream import LayerStream
from engine.packing import pack
from engine.quantizer_report import REPORT_NAME
from engine.quantizer_schemes import Int4
from engine.quantizer_settings import QuantizerSettings
from tests.engine.conftest import ARCHITECTURES, randomize
from tests.engine.test_quantizer import CPU, IDS, calibration, ours, quantized

ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
FOLDS = [
    ("input_layernorm", ATTENTION),
    ("self_attn.v_proj", ("self_attn.o_proj",)),
    ("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
    ("mlp.up_proj", ("mlp.down_proj",)),
]


def stream_of(folder: Path) -> LayerStream:
    """The layers of a tiny model."""
    return LayerStream(folder, [str(folder / "model.safetensors")], dtype=torch.float32, device=CPU)


def test_layers_one_by_one_are_the_model(architecture: str, model_folders: dict[str, Path]) -> None:
    stream = stream_of(model_folders[architecture])
    rows = calibration(6)
    entries = stream.enter(list(pack(rows, 64)))
    assert len(entries) > 1
    for index in range(len(stream.layers)):
        with stream.layer(index) as layer:
            for entry in entries:
                entry.hidden = stream.run(layer, index, entry)
    model = ours(model_folders[architecture])
    for entry in entries:
        for number, row in enumerate(entry.pack.prompts):
            found = model.model(torch.tensor(row)[None], use_cache=False, output_hidden_states=True)
            place = slice(entry.pack.starts[number], entry.pack.starts[number + 1])
            with torch.no_grad():
                normed = model.model.norm(entry.hidden[0, place])
            torch.testing.assert_close(normed, found.last_hidden_state[0], rtol=1e-4, atol=1e-4)
    assert all(parameter.is_meta for parameter in stream.whole.parameters())


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose norms multiply by one plus their weight."""
    folder = tmp_path_factory.mktemp("gemma")
    shape = ARCHITECTURES["qwen3"]().to_dict()
    wanted = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    config = GemmaConfig(**{key: shape[key] for key in wanted}, num_key_value_heads=2, head_dim=24)
    model = AutoModelForCausalLM.from_config(config)
    randomize(model)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("stored", "near"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-3)])
@pytest.mark.parametrize("name", [*ARCHITECTURES, "gemma"])
def test_moving_scales_changes_no_output(
    name: str, stored: torch.dtype, near: float, model_folders: dict[str, Path], gemma: Path
) -> None:
    """Beyond the rounding of biases: a norm's weight that was rounded is made up for in the linears."""
    stream = stream_of(gemma if name == "gemma" else model_folders[name])
    (entry,) = stream.enter(list(pack(calibration(3), 1000)))
    with stream.layer(0) as layer:
        wanted = stream.run(layer, 0, entry)
        folds = find_folds(layer, lambda: stream.run(layer, 0, entry), entry.hidden)
        assert [(fold.source, fold.consumers) for fold in folds] == FOLDS
        assert [fold.offset for fold in folds] == ([1, 0, 1, 0] if name == "gemma" else [0, 0, 0, 0])
        assert torch.equal(stream.run(layer, 0, entry), wanted), "trying leaves no trace"
        for fold in folds:
            inputs = layer.get_submodule(fold.consumers[0]).in_features
            channels = len(fold.narrow(torch.ones(inputs)))
            fold.apply(layer, torch.rand(channels, generator=torch.Generator().manual_seed(1)) + 0.5, stored)
        found = stream.run(layer, 0, entry)
    biased = any(key.endswith("bias") for key in layer.state_dict())
    assert (found - wanted).norm() / wanted.norm() < (near if biased else 1e-5)


def test_statistics_are_those_of_all_tokens() -> None:
    x = torch.randn(3, 5, 64)
    seen = InputStatistics(64, 32, CPU)
    seen.add(x[:1])
    seen.add(x[1:])
    flat = x.view(15, 64)
    torch.testing.assert_close(seen.mean, flat.abs().mean(0))
    assert seen.largest == flat.abs().max()
    scales = torch.rand(64) + 0.5
    seen.divide(scales)
    parts = (flat / scales).view(15, 2, 32)
    assert seen.gram is not None
    torch.testing.assert_close(seen.gram, torch.einsum("tgi,tgj->gij", parts, parts))


@pytest.mark.parametrize("symmetric", [False, True])
def test_ranges_are_the_best_of_those_tried(symmetric: bool) -> None:
    """By the definition: the group's part of the product over the tokens, one group and one share at a time."""
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(16, 64, generator=generator) ** 3
    x = torch.randn(40, 64, generator=generator)
    scheme, settings = Int4(torch.float32, 32, symmetric), QuantizerSettings(group_size=32)
    seen = InputStatistics(64, 32, CPU)
    seen.add(x)
    assert seen.gram is not None
    kept = kept_ranges("mlp.down_proj", weight, seen.gram, scheme, settings)
    assert kept is not None
    tried = [1 - step / 20 for step in range(11)]
    for row in range(16):
        for group in range(2):
            columns = slice(32 * group, 32 * group + 32)
            part = weight[row : row + 1, columns]
            errors = [
                ((scheme.rounded(part, torch.full((1, 1), share)) - part) @ x[:, columns].t()).square().sum()
                for share in tried
            ]
            assert abs(tried[int(torch.stack(errors).argmin())] - kept[row, group]) < 1e-6
    assert 0.5 <= kept.min() < kept.max() <= 1
    assert kept_ranges("self_attn.q_proj", weight, seen.gram, scheme, settings) is None


@pytest.fixture(scope="module")
def outliers(model_folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in which a few channels are twenty times as large, as those of large models are."""
    folder = tmp_path_factory.mktemp("outliers")
    tensors = load_file(model_folders["qwen3"] / "model.safetensors")
    for name, tensor in tensors.items():
        if name.endswith("layernorm.weight"):
            tensor[[3, 17, 40]] *= 20
        elif name.endswith("proj.weight") and tensor.shape[1] == 64:
            tensor *= 0.3
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_bytes((model_folders["qwen3"] / "config.json").read_bytes())
    return folder


@pytest.mark.parametrize(("method", "bits", "share"), [("awq", 4, 0.75), ("int8", 8, 0.8)])
def test_the_search_beats_rounding_to_nearest(
    method: str, bits: int, share: float, outliers: Path, tmp_path: Path
) -> None:
    report = quantized(outliers, tmp_path / "out", quant_method=method, bits=bits, search_steps=20, clip_steps=20)
    for layer in report.layers:
        assert layer.folds == 4
        assert layer.error_before is not None
        assert layer.error_after is not None
        assert layer.error_after < share * layer.error_before
    if method == "awq":
        quantized(outliers, tmp_path / "rtn", quant_method="rtn")
        exact = ours(outliers)(IDS, use_cache=False).logits
        errors = [(ours(tmp_path / name)(IDS, use_cache=False).logits - exact).norm() for name in ("out", "rtn")]
        assert errors[0] < 0.8 * errors[1]


def test_equal_calls_give_equal_bytes(outliers: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        quantized(outliers, tmp_path / name)
    files = {path.name for path in (tmp_path / "one").iterdir()} - {REPORT_NAME}  # which has seconds
    assert "config.json" in files
    for file in (tmp_path / "one" / name for name in sorted(files)):
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()
