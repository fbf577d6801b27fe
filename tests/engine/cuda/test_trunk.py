"""The fused layers over a pack give the hidden states of transformers' modules over each prompt alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from engine.cuda.layers import FusedLayers
from engine.cuda.trunk import FusedTrunk
from engine.fp8 import to_fp8
from engine.int4_linear import Int4Linear
from engine.model import load_model
from engine.packing import Pack
from engine.random_model import build_random_model
from engine.trie import Trie
from engine.trunk import ModuleTrunk
from tests.engine.conftest import ARCHITECTURES

TRIE = Trie.of([[3, 4, 5], [3, 4], [7]])


def packed(*lengths: int, stem: int = 0, trie: Trie | None = None, vocabulary: int = 199) -> Pack:
    """Prompts with bodies of these lengths, longest first, behind a common beginning."""
    random = np.random.default_rng(stem)
    beginning = random.integers(1, vocabulary, stem)
    prompts = tuple(np.append(beginning, random.integers(1, vocabulary, length)) for length in lengths)
    return Pack(prompts, tuple(range(len(prompts))), stem, trie)


def load(folder: Path, device: torch.device, *, head: bool = True) -> PreTrainedModel:
    return load_model(folder, dtype=torch.float32, device=device, head=head)


def path(trie: Trie, node: int) -> list[int]:
    """The tokens from the root to a node."""
    tokens = []
    while node >= 0:
        tokens.append(trie.tokens[node])
        node = trie.parents[node]
    return tokens[::-1]


def assert_alone(pack: Pack, hidden: Tensor, reference: PreTrainedModel) -> None:
    """Each prompt, and each trie node behind it, has the states that the reference gives it by itself."""

    def states(prompt: list[int]) -> Tensor:
        with torch.inference_mode():
            alone: Tensor = reference.base_model(input_ids=torch.tensor([prompt])).last_hidden_state[0]
        return alone

    for number, prompt in enumerate(pack.prompts):
        torch.testing.assert_close(hidden[pack.rows(number)], states(prompt.tolist()), atol=2e-4, rtol=2e-4)
        for node, row in enumerate(pack.node_rows(number)):
            assert pack.trie
            longer = states([*prompt.tolist(), *path(pack.trie, node)])[-1]
            torch.testing.assert_close(hidden[row], longer, atol=2e-4, rtol=2e-4)


@torch.inference_mode()
def run(trunk: FusedTrunk | ModuleTrunk, pack: Pack) -> Tensor:
    return trunk.hidden(pack).cpu()


@pytest.mark.parametrize("head", [True, False], ids=["with head", "bare"])
def test_a_pack_with_stem_and_trie_equals_each_prompt_alone(
    model_folders: dict[str, Path],
    references: dict[str, PreTrainedModel],
    architecture: str,
    head: bool,
    device: torch.device,
) -> None:
    """Bodies of equal and unequal length; the sliding window of one architecture is shorter than the prompts."""
    pack = packed(11, 4, 4, stem=14, trie=TRIE) if head else packed(26, 4, 4, 1)
    trunk = FusedTrunk(load(model_folders[architecture], device, head=head))
    assert_alone(pack, run(trunk, pack), references[architecture])


def test_a_longer_pack_turns_further(
    model_folders: dict[str, Path], references: dict[str, PreTrainedModel], device: torch.device
) -> None:
    trunk = FusedTrunk(load(model_folders["llama"], device))
    for pack in (packed(3), packed(40, 2)):
        assert_alone(pack, run(trunk, pack), references["llama"])


@pytest.mark.parametrize("name", ["qwen2", "qwen3"])
def test_fp8_is_fused_alike(name: str, device: torch.device) -> None:
    """Rounded by the fused kernels or in the modules of FP8 layers: the same but for roundings that tip over."""
    model = build_random_model(ARCHITECTURES[name](), dtype=torch.float32, device=device)
    to_fp8(model)
    pack = packed(9, 6, stem=8, trie=TRIE)
    wanted = run(ModuleTrunk(model), pack)
    found = run(FusedTrunk(model), pack)
    # Triton's interpreter halves numbers that round up to the next power of two: one in forty.
    assert (found - wanted).norm() / wanted.norm() < (0.02 if device.type == "cuda" else 0.1)


def to_int4(model: PreTrainedModel) -> None:
    """Pack the linear layers in groups of 32, which compute in FP8 then."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is torch.nn.Linear and child is not model.get_output_embeddings():
                packed = Int4Linear.of(child, 32)
                packed.to_fp8()
                setattr(parent, name, packed)


@pytest.mark.parametrize("kind", ["float32", "fp8", "int4"])
def test_fused_twice_the_weights_are_held_once(model_folders: dict[str, Path], kind: str, device: torch.device) -> None:
    model = load(model_folders["qwen2"], device)
    if kind == "fp8":
        to_fp8(model)
    elif kind == "int4":
        to_int4(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def storages() -> set[int]:
        return {tensor.untyped_storage().data_ptr() for tensor in model.state_dict().values()}

    apart = storages()
    first = FusedLayers(model)
    fused = storages()
    assert len(fused) < len(apart)
    second = FusedLayers(model)
    assert storages() == fused
    for one, other in zip(first._layers, second._layers, strict=True):
        for part in ("qkv", "gate_up"):
            held, again = getattr(one, part)._whole, getattr(other, part)._whole
            assert {name: whole.data_ptr() for name, whole in held.items()} == {
                name: whole.data_ptr() for name, whole in again.items()
            }
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor.float(), before[name].float())
