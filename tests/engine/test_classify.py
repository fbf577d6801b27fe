"""Choice probabilities equal those of each choice run on its own through transformers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedModel

from engine.classify import Classifier
from engine.model import load_model
from engine.request import Completion, Request, run
from engine.settings import EngineSettings

VOCABULARY = 61
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "initializer_range": 0.3,
}
DECODERS: dict[str, dict[str, Any]] = {
    "llama": SHAPE,
    "mistral": SHAPE | {"sliding_window": 4},
    "gemma3_text": SHAPE | {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]},
    "gpt2": {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
}
# Prefixes of each other, equal first tokens, a single token, a long one, and one whose end is another's middle.
CHOICES = [[7, 8, 9], [7, 8], [7], [7, 11], [20], [21, 22, 23, 24, 25, 26], [8, 9]]
ENDS = [2, 3]

Pair = tuple[PreTrainedModel, PreTrainedModel]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Pair]:
    """The engine's and transformers' model of one checkpoint with random weights."""
    made: dict[str, Pair] = {}

    def load(name: str) -> Pair:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            torch.manual_seed(7)
            model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **DECODERS[name]))
            for parameter in model.parameters():
                parameter.data += torch.randn_like(parameter) * 0.1
            model.save_pretrained(folder)
            ours = load_model(folder, dtype=torch.float32, device=torch.device("cpu"))
            made[name] = ours, AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
        return made[name]

    return load


def _naive(model: PreTrainedModel, prompt: np.ndarray, choices: Sequence[Sequence[int]], ends: list[int]) -> np.ndarray:
    """P(choice) from one forward pass for each choice."""
    scores = []
    for choice in choices:
        ids = torch.tensor([*prompt.tolist(), *choice])[None]
        with torch.no_grad():
            logprobs = model(input_ids=ids).logits[0].double().log_softmax(-1)[len(prompt) - 1 :]
        chosen = sum(float(logprobs[place, token]) for place, token in enumerate(choice))
        scores.append(chosen + float(logprobs[-1, ends].logsumexp(0)))
    return torch.tensor(scores).softmax(0).numpy()


def _prompts(seed: int = 0) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    beginning = random.integers(1, VOCABULARY, 25)
    alone = [random.integers(1, VOCABULARY, length) for length in (1, 2, 9, 9, 30)]
    return alone + [np.append(beginning, random.integers(1, VOCABULARY, length)) for length in (4, 4, 6)]


def _classify(
    model: PreTrainedModel, prompts: Sequence[np.ndarray], choices: Sequence[Sequence[int]], **options: Any
) -> list[Completion]:
    engine = Classifier(model, EngineSettings(**options), choices=choices, end_ids=ENDS)
    completions = sorted(run(engine, [Request(id, prompt) for id, prompt in enumerate(prompts)]), key=lambda c: c.id)
    assert [completion.id for completion in completions] == list(range(len(prompts)))
    return completions


@pytest.mark.parametrize("budget", [16, 150, 8192])
@pytest.mark.parametrize("name", DECODERS)
def test_probabilities_equal_each_choice_on_its_own(pair: Callable[[str], Pair], name: str, budget: int) -> None:
    ours, theirs = pair(name)
    prompts = _prompts()
    for prompt, completion in zip(prompts, _classify(ours, prompts, CHOICES, max_batch_tokens=budget), strict=True):
        expected = _naive(theirs, prompt, CHOICES, ENDS)
        assert completion.probabilities == pytest.approx(expected.tolist(), rel=1e-4, abs=1e-7)
        assert completion.token_ids == CHOICES[int(expected.argmax())]
        assert (completion.finish_reason, completion.prompt_tokens) == ("stop", len(prompt))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.lists(st.integers(4, 6), min_size=1, max_size=4).map(tuple), min_size=1, max_size=8, unique=True),
    st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=12).map(np.array), min_size=1, max_size=6),
)
def test_any_choices_behind_any_prompts(
    pair: Callable[[str], Pair], choices: list[tuple[int, ...]], prompts: list[np.ndarray]
) -> None:
    ours, theirs = pair("llama")
    for prompt, completion in zip(prompts, _classify(ours, prompts, choices), strict=True):
        assert completion.probabilities == pytest.approx(_naive(theirs, prompt, choices, ENDS).tolist(), rel=1e-4)


def test_a_shared_instruction_is_computed_once(pair: Callable[[str], Pair]) -> None:
    ours, theirs = pair("llama")
    random = np.random.default_rng(2)
    instruction = random.integers(1, VOCABULARY, 40)
    prompts = [np.append(instruction, random.integers(1, VOCABULARY, 2 + row % 3)) for row in range(12)]
    engine = Classifier(ours, EngineSettings(), choices=CHOICES, end_ids=ENDS)
    for completion in run(engine, [Request(id, prompt) for id, prompt in enumerate(prompts)]):
        expected = _naive(theirs, prompts[completion.id], CHOICES, ENDS)
        assert completion.probabilities == pytest.approx(expected.tolist(), rel=1e-4)
    nodes = 13
    assert engine.statistics()["computed_tokens"] == sum(map(len, prompts)) - 11 * 40 + 12 * nodes


def test_one_choice_is_certain(pair: Callable[[str], Pair]) -> None:
    (completion,) = _classify(pair("llama")[0], [np.array([4, 5])], [[7, 8]])
    assert completion.probabilities == [1.0]


def test_any_of_the_end_tokens_ends_a_choice(pair: Callable[[str], Pair]) -> None:
    ours, theirs = pair("llama")
    prompt = np.array([4, 5, 6])
    for ends in ([2], [3], [2, 3], [2, 3, 2]):
        (completion,) = run(Classifier(ours, EngineSettings(), choices=CHOICES, end_ids=ends), [Request(0, prompt)])
        assert completion.probabilities == pytest.approx(
            _naive(theirs, prompt, CHOICES, sorted(set(ends))).tolist(), rel=1e-4
        )


def test_logits_that_are_not_numbers_fail_their_request_alone(pair: Callable[[str], Pair], tmp_path: Path) -> None:
    _, theirs = pair("llama")
    theirs.save_pretrained(tmp_path)
    ours = load_model(tmp_path, dtype=torch.float32, device=torch.device("cpu"))
    ours.get_input_embeddings().weight.data[50] = torch.nan
    prompts = [np.array(prompt) for prompt in ([4, 5, 6], [4, 50, 6], [8, 9, 10])]
    completions = _classify(ours, prompts, CHOICES)
    assert completions[1].error is not None
    assert completions[1].error[0] == "nan_logits"
    assert completions[1].probabilities is None
    for id in (0, 2):
        expected = _naive(theirs, prompts[id], CHOICES, ENDS)
        assert completions[id].probabilities == pytest.approx(expected.tolist(), rel=1e-4)


def test_choices_count_towards_the_learned_positions(pair: Callable[[str], Pair]) -> None:
    fits, beyond = _classify(pair("gpt2")[0], [np.full(58, 5), np.full(59, 5)], CHOICES)
    assert fits.error is None
    assert beyond.error == (
        "prompt_too_long",
        "the prompt has 59 tokens and a choice of 6; the model has 64 positions",
    )


def test_unusable_choices_and_models_are_refused(pair: Callable[[str], Pair], tmp_path: Path) -> None:
    ours, _ = pair("llama")
    options = EngineSettings()
    with pytest.raises(ValueError, match="choices 0 and 2"):
        Classifier(ours, options, choices=[[4], [5], [4]], end_ids=ENDS)
    with pytest.raises(ValueError, match="choice 1 has no tokens"):
        Classifier(ours, options, choices=[[4], []], end_ids=ENDS)
    with pytest.raises(ValueError, match="at least one choice"):
        Classifier(ours, options, choices=[], end_ids=ENDS)
    with pytest.raises(ValueError, match="eos_token_id"):
        Classifier(ours, options, choices=[[4]], end_ids=[])
    shape = {name: SHAPE[name] for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")}
    AutoModel.from_config(AutoConfig.for_model("bert", **shape)).save_pretrained(tmp_path)
    encoder = load_model(tmp_path, dtype=torch.float32, device=torch.device("cpu"), head=False)
    with pytest.raises(ValueError, match=r"BertModel.*job\.kind = embed"):
        Classifier(encoder, options, choices=[[4]], end_ids=ENDS)
