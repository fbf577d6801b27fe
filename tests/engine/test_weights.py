"""Reading weights: every byte against safetensors' own reader, through small staging buffers and several threads."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from engine.weights import StagedSource, Staging, checkpoint_files, open_weights, staged_sources

CPU = torch.device("cpu")


@pytest.fixture
def weights_file(tmp_path: Path) -> Path:
    generator = torch.Generator().manual_seed(3)
    dtypes = [
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.float8_e4m3fn,
        torch.float8_e5m2,
        torch.int64,
        torch.int32,
        torch.int16,
        torch.int8,
        torch.uint8,
    ]
    tensors = {str(dtype): torch.randint(-90, 90, (7, 33), generator=generator).to(dtype) for dtype in dtypes}
    tensors |= {"scalar": torch.tensor(2.5), "empty": torch.empty(0, 4), "flag": torch.tensor([True, False])}
    tensors["long"] = torch.randn(5000, generator=generator)
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    return tmp_path / "model.safetensors"


@pytest.fixture
def staged(weights_file: Path) -> Iterator[dict[str, StagedSource]]:
    """The file's tensors through four buffers of 1000 bytes, smaller than most of them."""
    descriptor = os.open(weights_file, os.O_RDONLY)
    yield staged_sources(descriptor, Staging(CPU, piece=1000, buffers=4))
    os.close(descriptor)


def test_staged_tensors_are_those_of_safetensors(weights_file: Path, staged: dict[str, StagedSource]) -> None:
    expected = load_file(weights_file)
    assert staged.keys() == expected.keys()
    with ThreadPoolExecutor(8) as threads:
        read = dict(
            zip(list(staged) * 5, threads.map(lambda source: source[...], list(staged.values()) * 5), strict=True)
        )
    for name, tensor in expected.items():
        assert read[name].dtype is tensor.dtype
        assert staged[name].get_shape() == list(tensor.shape)
        torch.testing.assert_close(read[name], tensor, rtol=0, atol=0, equal_nan=True)


def test_a_tensor_read_ahead_is_given_once(weights_file: Path, staged: dict[str, StagedSource]) -> None:
    source, expected = staged["long"], load_file(weights_file)["long"].clone()
    source.prefetch()
    os.truncate(weights_file, 2000)  # from here on reading fails
    torch.testing.assert_close(source[...], expected, rtol=0, atol=0)
    source.prefetch()  # nobody would take it
    with pytest.raises(OSError, match="bytes early"):
        source[...]


def test_mapped_tensors_outlive_the_context(weights_file: Path) -> None:
    with open_weights([weights_file], CPU) as sources:
        tensor = sources["long"][...]
        assert sources["long"].get_shape() == [5000]
    torch.testing.assert_close(tensor, load_file(weights_file)["long"], rtol=0, atol=0)


def test_transformers_loads_from_staged_sources(model_folders: dict[str, Path]) -> None:
    folder = model_folders["qwen2"]
    expected = AutoModelForCausalLM.from_pretrained(folder)
    descriptor = os.open(folder / "model.safetensors", os.O_RDONLY)
    try:
        sources = staged_sources(descriptor, Staging(CPU, piece=4096, buffers=2))
        config = AutoConfig.from_pretrained(folder)
        model = type(expected).from_pretrained(None, config=config, state_dict=sources)
    finally:
        os.close(descriptor)
    for name, parameter in expected.named_parameters():
        torch.testing.assert_close(model.get_parameter(name), parameter, rtol=0, atol=0)


def test_a_file_cut_short_is_refused_by_name(weights_file: Path) -> None:
    os.truncate(weights_file, weights_file.stat().st_size - 5)
    with pytest.raises(ValueError, match=r"model\.safetensors is not a whole"), open_weights([weights_file], CPU):
        pass


def test_a_file_that_shrinks_while_read_is_an_error(weights_file: Path, staged: dict[str, StagedSource]) -> None:
    os.truncate(weights_file, 2000)
    with pytest.raises(OSError, match="bytes early"):
        staged["long"][...]
    with pytest.raises(OSError, match="bytes early"):  # the buffer is free again
        staged["long"][...]


def test_a_dtype_without_a_torch_type_is_refused(tmp_path: Path) -> None:
    header = json.dumps({"w": {"dtype": "F4", "shape": [4], "data_offsets": [0, 2]}}).encode()
    (tmp_path / "w").write_bytes(len(header).to_bytes(8, "little") + header + b"\0\0")
    descriptor = os.open(tmp_path / "w", os.O_RDONLY)
    with pytest.raises(ValueError, match="weight w has dtype F4"):
        staged_sources(descriptor, Staging(CPU, piece=8, buffers=1))
    os.close(descriptor)


def test_files_of_a_checkpoint(tmp_path: Path, model_folders: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match=r"has no model\.safetensors"):
        checkpoint_files(str(tmp_path), local_files_only=True)
    folder = model_folders["llama"]
    assert checkpoint_files(str(folder), local_files_only=True) == [str(folder / "model.safetensors")]
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    shards = sorted(str(path) for path in tmp_path.glob("*.safetensors"))
    assert len(shards) > 2
    assert sorted(checkpoint_files(str(tmp_path), local_files_only=True)) == shards
