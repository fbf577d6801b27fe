"""Scores equal transformers' own loss, for each architecture's attention and head, whatever shares the pack."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from engine.attention import attending
from engine.logprobs import token_logprobs
from engine.model import load_model
from engine.packed import PackedAttention
from engine.packing import pack
from engine.request import Completion, Request, run
from engine.score import Scorer
from engine.settings import EngineSettings

VOCABULARY = 97
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 96,
    "pad_token_id": 0,
    "initializer_range": 0.3,
}
DECODERS: dict[str, dict[str, Any]] = {
    "llama": SHAPE,
    "qwen3": SHAPE,
    "mistral": SHAPE | {"sliding_window": 7},
    "gemma3_text": SHAPE | {"sliding_window": 7, "layer_types": ["sliding_attention", "full_attention"]},
    "mixtral": SHAPE | {"num_local_experts": 3, "output_router_logits": False},
    "granite": SHAPE | {"logits_scaling": 3.0},
    "cohere": SHAPE | {"logit_scale": 0.25},
    "gpt2": {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 96},
    "opt": SHAPE | {"ffn_dim": 48, "word_embed_proj_dim": 16},
}

Pair = tuple[PreTrainedModel, PreTrainedModel]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Pair]:
    """The engine's and transformers' model of one checkpoint with random weights, norms and biases included."""
    made: dict[str, Pair] = {}

    def load(name: str) -> Pair:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            torch.manual_seed(3)
            model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **DECODERS[name]))
            for parameter in model.parameters():
                parameter.data += torch.randn_like(parameter) * 0.1
            model.save_pretrained(folder)
            ours = load_model(folder, dtype=torch.float32, device=torch.device("cpu"))
            made[name] = ours, AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
        return made[name]

    return load


def _prompts(seed: int = 0) -> list[np.ndarray]:
    """Mixed lengths, some equal, some with a long common beginning."""
    random = np.random.default_rng(seed)
    beginning = random.integers(1, VOCABULARY, 30)
    alone = [random.integers(1, VOCABULARY, length) for length in (1, 2, 5, 5, 17, 17, 17, 40, 80)]
    return alone + [np.append(beginning, random.integers(1, VOCABULARY, length)) for length in (3, 3, 9, 20)]


def _reference(model: PreTrainedModel, prompt: np.ndarray, first: int) -> tuple[float, int]:
    """Log-probability and count of the tokens from `first` on, by transformers' loss."""
    ids = torch.tensor(prompt.astype(np.int64))[None]
    labels = ids.clone()
    labels[:, :first] = -100
    count = int((labels[:, 1:] != -100).sum())
    if count == 0:
        return 0.0, 0
    with torch.no_grad():
        return -float(model(input_ids=ids, labels=labels).loss) * count, count


def _score(model: PreTrainedModel, requests: list[Request], **settings: Any) -> dict[int, Completion]:
    completions = list(run(Scorer(model, EngineSettings(**settings)), requests))
    assert len(completions) == len(requests)
    return {completion.id: completion for completion in completions}


@pytest.mark.parametrize("name", DECODERS)
def test_scores_equal_the_loss_of_transformers(pair: Callable[[str], Pair], name: str) -> None:
    ours, theirs = pair(name)
    requests = [Request(id, prompt, scored_from=id % 4) for id, prompt in enumerate(_prompts())]
    for budget in (16, 120, 8192):
        scores = _score(ours, requests, max_batch_tokens=budget)
        for request in requests:
            logprob, count = _reference(theirs, np.asarray(request.prompt), request.scored_from)
            assert scores[request.id].scored == count
            assert scores[request.id].logprob == pytest.approx(logprob, abs=1e-4, rel=1e-6)
            assert scores[request.id].prompt_tokens == len(request.prompt)


def test_a_shared_instruction_is_computed_once_and_changes_nothing(pair: Callable[[str], Pair]) -> None:
    ours, theirs = pair("llama")
    random = np.random.default_rng(5)
    instruction = random.integers(1, VOCABULARY, 40)
    prompts = [np.append(instruction, random.integers(1, VOCABULARY, 3 + row % 4)) for row in range(24)]
    engine = Scorer(ours, EngineSettings(max_batch_tokens=500))
    requests = [Request(id, prompt, scored_from=[0, 20, 40, 42][id % 4]) for id, prompt in enumerate(prompts)]
    for completion in run(engine, requests):
        logprob, count = _reference(theirs, prompts[completion.id], requests[completion.id].scored_from)
        assert (completion.scored, completion.logprob) == (count, pytest.approx(logprob, abs=1e-4))
    counts = engine.statistics()
    assert counts["requests"] == 24
    assert counts["prompt_tokens"] == sum(map(len, prompts))
    assert counts["packs"] == 1
    assert counts["computed_tokens"] == sum(map(len, prompts)) - 23 * 40


def test_nothing_to_score_is_zero_of_zero(pair: Callable[[str], Pair]) -> None:
    ours, _ = pair("llama")
    requests = [Request(0, [5]), Request(1, [5, 6, 7], scored_from=3), Request(2, [5, 6, 7], scored_from=9)]
    for completion in _score(ours, requests).values():
        assert (completion.logprob, completion.scored, completion.error) == (0.0, 0, None)


def test_the_head_runs_in_blocks_of_rows(pair: Callable[[str], Pair]) -> None:
    ours, _ = pair("llama")
    random = np.random.default_rng(1)
    (made,) = pack([random.integers(1, VOCABULARY, 50)], 100)
    rows, tokens = random.integers(0, 50, 200), random.integers(0, VOCABULARY, 200)
    sizes: list[int] = []
    hook = ours.get_output_embeddings().register_forward_hook(
        lambda _, __, out: sizes.append(out.numel() // VOCABULARY)
    )
    with torch.inference_mode(), attending(PackedAttention(made, torch.device("cpu"))):
        ids = torch.from_numpy(made.ids())[None]
        hidden = ours.base_model(input_ids=ids, use_cache=False).last_hidden_state[0]
        logprobs = ours(input_ids=ids, use_cache=False).logits[0].log_softmax(-1)
        sizes.clear()
        blocks = token_logprobs(ours, hidden, rows, tokens, block=7)
    hook.remove()
    assert max(sizes) == 7
    assert sum(sizes) == len(np.unique(rows)), "each row once"
    torch.testing.assert_close(blocks, logprobs[rows, tokens], rtol=1e-5, atol=1e-5)


def test_the_head_leaves_the_model_as_it_was(pair: Callable[[str], Pair]) -> None:
    ours, _ = pair("opt")
    _score(ours, [Request(0, [5, 6, 7])])
    assert not [name for name, module in ours.named_modules() if "forward" in vars(module)]


def test_logits_that_are_not_numbers_fail_their_request_alone(pair: Callable[[str], Pair], tmp_path: Path) -> None:
    _, theirs = pair("llama")
    theirs.save_pretrained(tmp_path)
    ours = load_model(tmp_path, dtype=torch.float32, device=torch.device("cpu"))
    ours.get_input_embeddings().weight.data[50] = torch.nan
    prompts = [[4, 5, 6, 7], [4, 50, 6, 7], [8, 9, 10, 11]]
    scores = _score(ours, [Request(id, prompt) for id, prompt in enumerate(prompts)])
    assert scores[1].error is not None
    assert scores[1].error[0] == "nan_logits"
    assert scores[1].logprob is None
    for id in (0, 2):
        expected, _ = _reference(theirs, np.array(prompts[id]), 0)
        assert scores[id].logprob == pytest.approx(expected, abs=1e-4)


def test_equal_requests_give_equal_bits(pair: Callable[[str], Pair]) -> None:
    ours, _ = pair("qwen3")
    requests = [Request(id, prompt) for id, prompt in enumerate(_prompts())]
    engine = Scorer(ours, EngineSettings(max_batch_tokens=100))
    first = {c.id: c.logprob for c in run(engine, requests)}
    list(run(engine, [Request(90, [3, 4, 5])]))
    engine.add(requests[:4])
    engine.add(requests[4:])
    again: dict[int, float | None] = {}
    while engine.has_work:
        again |= {c.id: c.logprob for c in engine.step()}
    assert again == first


def test_requests_added_during_a_run_are_answered(pair: Callable[[str], Pair]) -> None:
    ours, _ = pair("llama")
    engine = Scorer(ours, EngineSettings(max_batch_tokens=16))
    engine.add(Request(id, [1, 2, 3, 4, 5, 6, id + 1]) for id in range(6))
    answered = [completion.id for completion in engine.step() + engine.step()]
    engine.add([Request(6, [5, 6]), Request(7, [7])])
    while engine.has_work:
        answered += [completion.id for completion in engine.step()]
    assert sorted(answered) == list(range(8))
    assert engine.step() == []


def test_half_precision_and_autocast_stay_near_float32(pair: Callable[[str], Pair], tmp_path: Path) -> None:
    ours, theirs = pair("llama")
    theirs.save_pretrained(tmp_path)
    requests = [Request(id, prompt) for id, prompt in enumerate(_prompts())]
    exact = _score(ours, requests)
    bf16 = _score(load_model(tmp_path, dtype=torch.bfloat16, device=torch.device("cpu")), requests)
    fp16 = _score(load_model(tmp_path, dtype=torch.float16, device=torch.device("cpu")), requests)
    amp = _score(ours, requests, amp=True)
    for id, completion in exact.items():
        assert completion.logprob is not None
        for other, relative in ((bf16, 0.03), (fp16, 0.004), (amp, 0.03)):
            assert other[id].logprob == pytest.approx(completion.logprob, rel=relative, abs=0.1)
    assert any(amp[id].logprob != exact[id].logprob for id in exact), "autocast changes the arithmetic"


@pytest.fixture
def memory_of_30_tokens(pair: Callable[[str], Pair]) -> Iterator[PreTrainedModel]:
    """A model whose forward passes beyond 30 tokens run out of memory."""
    ours, _ = pair("llama")

    def exhaust(_module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        if kwargs["input_ids"] is not None and kwargs["input_ids"].shape[1] > 30:
            raise torch.OutOfMemoryError("no memory left")

    hook = ours.base_model.register_forward_pre_hook(exhaust, with_kwargs=True)
    yield ours
    hook.remove()


def test_a_pack_that_does_not_fit_is_halved(pair: Callable[[str], Pair], memory_of_30_tokens: PreTrainedModel) -> None:
    _, theirs = pair("llama")
    requests = [Request(id, np.full(8 if id < 8 else 20, id + 1)) for id in range(10)] + [Request(10, np.full(40, 50))]
    scores = _score(memory_of_30_tokens, requests)
    assert scores[10].error is not None
    assert scores[10].error[0] == "out_of_memory"
    for request in requests[:10]:
        expected, _ = _reference(theirs, np.asarray(request.prompt), 0)
        assert scores[request.id].logprob == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(("deterministic", "failures"), [(False, 1), (True, 2)])
def test_a_deterministic_engine_forgets_the_memory_it_met(
    memory_of_30_tokens: PreTrainedModel, deterministic: bool, failures: int
) -> None:
    engine = Scorer(memory_of_30_tokens, EngineSettings(deterministic=deterministic))
    for _ in range(2):
        assert len(list(run(engine, [Request(id, np.full(8, id + 1)) for id in range(6)]))) == 6
    assert engine.statistics()["out_of_memory"] == failures


def test_a_prompt_beyond_the_learned_positions_is_an_error(pair: Callable[[str], Pair]) -> None:
    ours, _ = pair("gpt2")
    scores = _score(ours, [Request(0, np.ones(96, np.uint32)), Request(1, np.ones(97, np.uint32))])
    assert scores[0].error is None
    assert scores[1].error is not None
    assert scores[1].error[0] == "prompt_too_long"
    assert "97 tokens" in scores[1].error[1]


def test_an_empty_prompt_is_not_accepted(pair: Callable[[str], Pair]) -> None:
    with pytest.raises(AssertionError, match="request 7 has an empty prompt"):
        Scorer(pair("llama")[0], EngineSettings()).add([Request(7, [])])
