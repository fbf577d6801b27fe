"""Two models compared token by token equal what transformers' logits give, whatever shares the pack."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import kl_div
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen3Config

from engine.comparison import Compared, Comparison
from engine.model import load_model
from engine.request import Request, run
from engine.settings import EngineSettings

MODEL = Path(__file__).parents[2] / "data" / "models" / "messages-4m"
CPU = torch.device("cpu")

Pair = tuple[PreTrainedModel, PreTrainedModel]


@pytest.fixture(scope="module")
def rounded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model with the weights of its layers rounded coarsely."""
    folder = tmp_path_factory.mktemp("rounded")
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    for name, weight in model.named_parameters():
        if weight.ndim == 2 and "layers" in name:
            step = weight.data.abs().amax(1, keepdim=True) / 7
            weight.data = (weight.data / step).round() * step
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def ours(rounded: Path) -> Pair:
    """Candidate and reference as the engine runs them."""
    candidate, reference = (load_model(path, dtype=torch.float32, device=CPU) for path in (rounded, MODEL))
    return candidate, reference


@pytest.fixture(scope="module")
def theirs(rounded: Path) -> Pair:
    """The same with transformers' own attention."""
    candidate, reference = (
        AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval() for path in (rounded, MODEL)
    )
    return candidate, reference


def texts(seed: int = 0) -> list[np.ndarray]:
    """Token ids of mixed lengths, some with a long common beginning."""
    random = np.random.default_rng(seed)
    beginning = random.integers(3, 2000, 30)
    alone = [random.integers(3, 2000, length) for length in (2, 5, 5, 17, 40, 80)]
    return alone + [np.append(beginning, random.integers(3, 2000, length)) for length in (1, 3, 3, 9, 20)]


@torch.no_grad()
def directly(theirs: Pair, ids: np.ndarray, first: int) -> tuple[int, float, float, int, float]:
    """Tokens, log-probability under both, equal argmax and divergence from whole logits in float64."""
    inputs = torch.tensor(ids.astype(np.int64))[None]
    candidate, reference = (model(input_ids=inputs).logits[0, first - 1 : -1].double() for model in theirs)
    tokens = inputs[0, first:, None]
    ours, others = candidate.log_softmax(1), reference.log_softmax(1)
    return (
        len(tokens),
        ours.gather(1, tokens).sum().item(),
        others.gather(1, tokens).sum().item(),
        int((candidate.argmax(1) == reference.argmax(1)).sum()),
        kl_div(ours, others, reduction="sum", log_target=True).item(),
    )


def compare(
    ours: tuple[PreTrainedModel, PreTrainedModel | None], requests: list[Request], **settings: int
) -> list[Compared]:
    found = list(run(Comparison(*ours, EngineSettings(**settings)), requests))  # type: ignore[arg-type]
    assert all(isinstance(completion, Compared) for completion in found)
    return sorted((c for c in found if isinstance(c, Compared)), key=lambda completion: completion.id)


@pytest.mark.parametrize("budget", [60, 8192])
def test_every_figure_equals_that_of_whole_logits(ours: Pair, theirs: Pair, budget: int) -> None:
    prompts = texts()
    requests = [Request(id, prompt, scored_from=[0, 1, 2][id % 3]) for id, prompt in enumerate(prompts)]
    found = compare(ours, requests, max_batch_tokens=budget)
    assert len(found) == len(prompts)
    divergences = []
    for request, one in zip(requests, found, strict=True):
        tokens, candidate, reference, same, divergence = directly(theirs, prompts[one.id], max(1, request.scored_from))
        assert (one.scored, one.same, one.error) == (tokens, same, None)
        assert one.logprob is not None
        assert one.reference is not None
        assert math.exp(-one.logprob / tokens) == pytest.approx(math.exp(-candidate / tokens), rel=1e-4)
        assert math.exp(-one.reference / tokens) == pytest.approx(math.exp(-reference / tokens), rel=1e-4)
        assert one.divergence / tokens == pytest.approx(divergence / tokens, abs=1e-4)
        divergences.append(divergence / tokens)
    assert max(divergences) > 0.01, "the rounding is coarse enough to be seen"


def test_a_model_does_not_differ_from_itself(ours: Pair) -> None:
    again = load_model(MODEL, dtype=torch.float32, device=CPU)
    for one in compare((again, ours[1]), [Request(id, prompt) for id, prompt in enumerate(texts())]):
        assert (one.same, one.logprob) == (one.scored, one.reference)
        assert one.divergence < 1e-6 * one.scored


def test_one_model_alone_has_its_likelihood(ours: Pair, theirs: Pair) -> None:
    candidate, _ = ours
    for one in compare((candidate, None), [Request(id, prompt) for id, prompt in enumerate(texts())]):
        assert one.logprob == pytest.approx(directly(theirs, texts()[one.id], 1)[1], abs=1e-3)
        assert (one.reference, one.same, one.divergence) == (None, 0, 0.0)


def test_logits_are_held_a_block_at_a_time(ours: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    vocabulary = ours[0].config.vocab_size
    monkeypatch.setattr("engine.comparison.COMPARED_LOGITS", 16 * vocabulary)
    sizes: list[int] = []
    hook = (
        ours[1]
        .get_output_embeddings()
        .register_forward_hook(  # type: ignore[no-untyped-call]
            lambda _, __, out: sizes.append(out.numel() // vocabulary)
        )
    )
    compare(ours, [Request(id, prompt) for id, prompt in enumerate(texts())])
    hook.remove()
    assert max(sizes) == 16
    assert len(sizes) > 5


def test_a_model_without_numbers_is_named(ours: Pair, rounded: Path) -> None:
    broken = load_model(rounded, dtype=torch.float32, device=CPU)
    weight = broken.get_input_embeddings().weight.data.clone()  # the head shares it
    weight[50] = torch.nan
    broken.set_input_embeddings(torch.nn.Embedding.from_pretrained(weight))
    requests = [Request(0, [4, 5, 6]), Request(1, [4, 50, 6])]
    whole, failed = compare((broken, ours[1]), requests)
    assert (whole.error, failed.logprob) == (None, None)
    assert failed.error == ("nan_logits", "the candidate gave logits that are not numbers")
    assert failed.reference == pytest.approx(compare((ours[1], None), requests)[1].logprob or 0, abs=1e-4)


def test_other_vocabularies_are_refused(ours: Pair) -> None:
    shape = Qwen3Config(vocab_size=99, hidden_size=32, intermediate_size=48, num_hidden_layers=1, head_dim=8)
    other = AutoModelForCausalLM.from_config(shape, attn_implementation="sdpa")
    with pytest.raises(ValueError, match=r"vocabulary of .* tokens, the reference of 99"):
        Comparison(ours[0], other, EngineSettings())
