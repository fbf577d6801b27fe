"""The attention seam: what a backend is given, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import PreTrainedModel

from engine.attention import attending, attention_forward


class OneSequence:
    """Causal attention over one sequence that fits its window."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, tuple[int, ...], tuple[int, ...], bool, int | None]] = []

    def attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, /, *, scale: float, causal: bool, window: int | None
    ) -> Tensor:
        self.calls.append((layer, tuple(q.shape), tuple(k.shape), causal, window))
        out = scaled_dot_product_attention(q[None], k[None], v[None], is_causal=causal, scale=scale, enable_gqa=True)
        return out[0].transpose(0, 1)


def test_backend_serves_every_layer(
    models: dict[str, PreTrainedModel], references: dict[str, PreTrainedModel], architecture: str
) -> None:
    ids = torch.randint(0, 199, (1, 15), generator=torch.Generator().manual_seed(0))
    backend = OneSequence()
    with torch.inference_mode(), attending(backend):
        logits = models[architecture](input_ids=ids, use_cache=False).logits
    torch.testing.assert_close(logits, references[architecture](ids).logits, atol=2e-4, rtol=1e-4)
    assert [call[0] for call in backend.calls] == [0, 1, 2]
    assert all(call[1][:2] == (4, 15) and call[3] for call in backend.calls)
    assert {call[4] for call in backend.calls} == ({20} if architecture == "mistral" else {None})


def test_outside_of_attending_the_model_refuses_to_run(models: dict[str, PreTrainedModel]) -> None:
    with pytest.raises(RuntimeError, match="attending"):
        models["qwen2"](input_ids=torch.tensor([[1]]), use_cache=False)


@pytest.mark.parametrize("feature", ["softcap", "s_aux", "position_bias"])
def test_unknown_features_are_refused(feature: str) -> None:
    q = torch.zeros(1, 2, 3, 4)
    with pytest.raises(ValueError, match=feature):
        attention_forward(torch.nn.Linear(1, 1), q, q, q, None, **{feature: 1.0})


def test_a_mask_is_refused() -> None:
    q = torch.zeros(1, 2, 3, 4)
    with pytest.raises(ValueError, match="mask"):
        attention_forward(torch.nn.Linear(1, 1), q, q, q, torch.zeros(1, 1, 3, 3))
