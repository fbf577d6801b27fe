"""Weights read onto a GPU through the staging buffers, against the same files mapped on CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from engine import int4
from engine.model import load_model
from engine.weights import open_weights

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

MODEL = Path(__file__).parent.parent.parent / "data" / "models" / "messages-4m"
CUDA = torch.device("cuda")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_model_is_that_of_transformers(dtype: torch.dtype) -> None:
    model = load_model(MODEL, dtype=dtype, device=CUDA)
    reference = AutoModelForCausalLM.from_pretrained(MODEL, dtype=dtype, device_map={"": CUDA})
    expected = dict(reference.named_parameters()) | dict(reference.named_buffers())
    loaded = dict(model.named_parameters()) | dict(model.named_buffers())
    assert loaded.keys() == expected.keys()
    for name, tensor in expected.items():
        assert loaded[name].device == tensor.device
        torch.testing.assert_close(loaded[name], tensor, rtol=0, atol=0)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


@pytest.mark.parametrize("ahead", [False, True])
def test_tensors_longer_than_the_buffers_arrive_whole(tmp_path: Path, ahead: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    tensors = {str(n): torch.randint(0, 256, (n * 2**20 + 3,), generator=generator).byte() for n in (1, 16, 17, 300)}
    tensors["scalar"] = torch.tensor(1.5)
    save_file(tensors, tmp_path / "model.safetensors")
    with open_weights([tmp_path / "model.safetensors"], CUDA, ahead=ahead) as sources:
        read = {name: source[...] for name, source in sources.items()}
    for name, tensor in tensors.items():
        assert torch.equal(read[name].cpu(), tensor)


def test_int4_is_decoded_the_same_on_both_devices() -> None:
    weight = torch.randn(256, 512, generator=torch.Generator().manual_seed(1)).bfloat16()
    encoded = int4.encode(weight, 128)
    decoded = int4.decode(*encoded, torch.bfloat16)
    assert torch.equal(int4.decode(*(part.cuda() for part in encoded), torch.bfloat16).cpu(), decoded)
    # A GPU divides by multiplying with the inverse, so a number between two steps may go either way.
    packed, scales, zeros = int4.encode(weight.cuda(), 128)
    error = (int4.decode(packed, scales, zeros, torch.float32).cpu() - weight.float()).abs()
    step = scales.cpu().float().repeat_interleave(128, 1)
    assert (error <= 0.501 * step).all()
