"""Generation equals transformers' own generate, whatever shares the batch, and depends on nothing else."""

from __future__ import annotations

import json
from collections.abc import Sequence as Seq
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, PreTrainedModel

from engine.generation import Generator
from engine.kv_memory import layer_shapes
from engine.model import load_model
from engine.paged import BLOCK
from engine.request import Completion, Request, run
from engine.settings import EngineSettings, SamplingSettings
from tests.engine.conftest import CONTEXT, VOCABULARY

TOKEN_BYTES = [bytes([97 + i % 26]) if i % 3 else bytes([97 + i % 26, 98 + i % 7]) for i in range(VOCABULARY)]


def generator(
    model: PreTrainedModel,
    *,
    budget: int = 8192,
    stop_ids: Seq[int] = (),
    amp: bool = False,
    deterministic: bool = True,
    **sampling: object,
) -> Generator:
    return Generator(
        model,
        SamplingSettings(**({"max_tokens": 12} | sampling)),  # type: ignore[arg-type]
        EngineSettings(max_batch_tokens=budget, amp=amp, deterministic=deterministic),
        stop_ids=stop_ids,
        token_bytes=TOKEN_BYTES,
        context_length=CONTEXT,
    )


def prompts(count: int, low: int, high: int, seed: int = 0) -> list[list[int]]:
    numbers = np.random.default_rng(seed)
    return [numbers.integers(0, VOCABULARY, numbers.integers(low, high + 1)).tolist() for _ in range(count)]


def expected(reference: PreTrainedModel, prompt: Seq[int], max_tokens: int) -> list[int]:
    """transformers' greedy answer."""
    ids = torch.tensor([list(prompt)])
    out = reference.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_tokens, do_sample=False, pad_token_id=0
    )
    return list(out[0, len(prompt) :].tolist())


def answers(engine: Generator, requests: Seq[Request]) -> dict[int, Completion]:
    """Completions by id; each id exactly once."""
    done = list(run(engine, requests))
    found = {completion.id: completion for completion in done}
    assert len(found) == len(done) == len(requests)
    return found


def test_single_sequences_equal_generate(
    models: dict[str, PreTrainedModel], references: dict[str, PreTrainedModel], architecture: str
) -> None:
    engine = generator(models[architecture], max_tokens=40)
    for prompt in [[5], *prompts(3, 2, 60)]:
        done = answers(engine, [Request(0, prompt)])[0]
        assert done.token_ids == expected(references[architecture], prompt, 40)
        assert done.finish_reason == "length"
        assert done.prompt_tokens == len(prompt)


def test_the_bundled_model_answers_as_transformers_does() -> None:
    """A trained model: real stop ids, and answers of different lengths in one batch."""
    folder = Path(__file__).parents[2] / "data" / "models" / "messages-4m"
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    stop = reference.generation_config.eos_token_id
    lines = (folder.parents[1] / "sample" / "messages.jsonl").read_text().splitlines()[:40]
    texts = [tokenizer.encode(json.loads(line)["text"]).ids for line in lines]
    model = load_model(folder, dtype=torch.float32, device=torch.device("cpu"))
    engine = Generator(
        model,
        SamplingSettings(max_tokens=24),
        EngineSettings(max_batch_tokens=256),
        stop_ids=stop if isinstance(stop, list) else [stop],
        token_bytes=(),
        context_length=1024,
    )
    done = answers(engine, [Request(i, text) for i, text in enumerate(texts)])
    for i, text in enumerate(texts):
        want = expected(reference, text, 24)
        assert done[i].token_ids == [token for token in want if token != stop], i
        assert done[i].finish_reason == ("stop" if stop in want else "length")


@pytest.mark.parametrize("budget", [16, 50, 8192])
def test_mixed_batches_equal_generate(
    models: dict[str, PreTrainedModel], references: dict[str, PreTrainedModel], architecture: str, budget: int
) -> None:
    """Different lengths, shared beginnings, prompts longer than the budget, more requests than rows at 16."""
    stem = prompts(1, 70, 70, seed=9)[0]
    texts = prompts(12, 1, 40) + [stem + tail for tail in prompts(6, 1, 20, seed=1)] + [stem, stem[:64], stem[:48]]
    lengths = [1 + (7 * i) % 23 for i in range(len(texts))]
    engine = generator(models[architecture], budget=budget)
    done = answers(engine, [Request(i, np.array(t, np.uint32), lengths[i]) for i, t in enumerate(texts)])
    for i, text in enumerate(texts):
        assert done[i].token_ids == expected(references[architecture], text, lengths[i]), i
    assert engine.statistics()["shared_tokens"] >= 6 * 64


def test_one_step_ahead_gives_the_same_answers(models: dict[str, PreTrainedModel]) -> None:
    """Launching a step before reading the last one, as on CUDA, drops the overrun."""
    texts = prompts(40, 1, 50)
    engine = generator(models["qwen2"], budget=64, stop_ids=range(0, VOCABULARY, 9))
    plain = answers(engine, [Request(i, text) for i, text in enumerate(texts)])
    engine = generator(models["qwen2"], budget=64, stop_ids=range(0, VOCABULARY, 9))
    engine._ahead = 1
    ahead = answers(engine, [Request(i, text) for i, text in enumerate(texts)])
    assert ahead == plain
    assert {completion.finish_reason for completion in plain.values()} == {"stop", "length"}


def test_stop_ids_end_the_answer(models: dict[str, PreTrainedModel], references: dict[str, PreTrainedModel]) -> None:
    prompt = prompts(1, 20, 20)[0]
    full = expected(references["llama"], prompt, 12)
    at = next(i for i in range(3, 12) if full[i] not in full[:i])
    done = answers(generator(models["llama"], stop_ids=[full[at], 500]), [Request(0, prompt)])[0]
    assert done.token_ids == full[:at]
    assert (done.finish_reason, done.stop) == ("stop", None)


def test_stop_strings_match_across_tokens(
    models: dict[str, PreTrainedModel], references: dict[str, PreTrainedModel]
) -> None:
    prompt = prompts(1, 20, 20)[0]
    full = expected(references["llama"], prompt, 12)
    text = b"".join(TOKEN_BYTES[token] for token in full)
    stop = text[4:7].decode()
    done = answers(generator(models["llama"], stop=("zzzzzz", stop)), [Request(0, prompt)])[0]
    assert (done.finish_reason, done.stop) == ("stop", stop)
    kept = b"".join(TOKEN_BYTES[token] for token in done.token_ids)
    assert text.startswith(kept)
    assert stop.encode() in kept
    assert stop.encode() not in kept[: -len(TOKEN_BYTES[done.token_ids[-1]])]


def test_equal_prompts_are_folded_when_greedy(models: dict[str, PreTrainedModel]) -> None:
    requests = [Request(i, [3, 1, 4], occurrence=i) for i in range(5)] + [Request(5, [3, 1, 4], max_tokens=3)]
    engine = generator(models["qwen2"])
    done = answers(engine, requests)
    assert engine.statistics()["folded"] == 4
    assert all(done[i].token_ids == done[0].token_ids for i in range(5))
    assert done[5].token_ids == done[0].token_ids[:3]
    sampled = generator(models["qwen2"], temperature=1.0)
    done = answers(sampled, requests[:5])
    assert sampled.statistics()["folded"] == 0
    assert len({tuple(completion.token_ids) for completion in done.values()}) == 5


def test_samples_do_not_depend_on_neighbours(models: dict[str, PreTrainedModel], architecture: str) -> None:
    settings = {"temperature": 0.8, "top_p": 0.9, "top_k": 50, "repetition_penalty": 1.2, "seed": 7}
    texts = prompts(20, 1, 50)
    together = answers(
        generator(models[architecture], budget=32, **settings), [Request(i, t) for i, t in enumerate(texts)]
    )
    for i in (0, 7, 19):
        alone = answers(generator(models[architecture], **settings), [Request(0, texts[i])])[0]
        assert alone.token_ids == together[i].token_ids
    settings["seed"] = 8
    other = answers(generator(models[architecture], **settings), [Request(0, texts[0])])[0]
    assert other.token_ids != together[0].token_ids


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_nothing_of_one_shard_reaches_the_next(models: dict[str, PreTrainedModel], temperature: float) -> None:
    """The second shard shares prompts with the first, and is answered in the same steps as on a new engine."""
    stem = prompts(1, 64, 64, seed=4)[0]
    first = [Request(i, stem + text) for i, text in enumerate(prompts(9, 1, 9, seed=5))]
    second = [Request(i, stem + text) for i, text in enumerate(prompts(9, 1, 9, seed=5)[::-1])]
    fresh = generator(models["qwen2"], temperature=temperature)
    alone = list(run(fresh, second))
    used = generator(models["qwen2"], temperature=temperature)
    list(run(used, first))
    before = used.statistics()
    assert list(run(used, second)) == alone
    spent = {name: used.statistics()[name] - before[name] for name in ("steps", "computed_tokens", "shared_tokens")}
    assert spent == {name: fresh.statistics()[name] for name in spent}


def test_answers_are_clipped_to_the_context(models: dict[str, PreTrainedModel]) -> None:
    done = answers(generator(models["llama"], max_tokens=100), [Request(0, [1] * (CONTEXT - 5))])[0]
    assert (len(done.token_ids), done.finish_reason) == (5, "length")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_answers_every_request(model_folders: dict[str, Path], dtype: torch.dtype) -> None:
    model = load_model(model_folders["qwen2"], dtype=dtype, device=torch.device("cpu"))
    done = answers(generator(model, budget=40), [Request(i, text) for i, text in enumerate(prompts(8, 1, 40))])
    assert all(len(completion.token_ids) == 12 for completion in done.values())
    assert next(iter(layer_shapes(model, EngineSettings()).values())).dtype is dtype


def test_mixed_precision_keeps_kv_in_half(models: dict[str, PreTrainedModel], architecture: str) -> None:
    done = answers(
        generator(models[architecture], budget=40, amp=True),
        [Request(i, text) for i, text in enumerate(prompts(8, 1, 40))],
    )
    assert all(len(completion.token_ids) == 12 for completion in done.values())
    shapes = layer_shapes(models[architecture], EngineSettings(amp=True))
    assert {shape.dtype for shape in shapes.values()} == {torch.bfloat16}


def test_fp8_kv_is_close_to_full_precision(models: dict[str, PreTrainedModel]) -> None:
    """The first token of a prompt of one chunk does not read the cache; the later ones mostly agree."""
    requests = [Request(i, text) for i, text in enumerate(prompts(8, 4, 2 * BLOCK))]
    plain = answers(generator(models["llama"], max_tokens=2), requests)
    engine = Generator(
        models["llama"],
        SamplingSettings(max_tokens=2),
        EngineSettings(kv_dtype="fp8"),
        stop_ids=(),
        token_bytes=(),
        context_length=CONTEXT,
    )
    small = answers(engine, requests)
    assert all(small[i].token_ids[0] == plain[i].token_ids[0] for i in range(8))
    assert sum(small[i].token_ids == plain[i].token_ids for i in range(8)) >= 4
