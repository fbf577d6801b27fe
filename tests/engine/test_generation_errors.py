"""Rows that cannot be answered are errors of their own: nothing waits for them, and nothing of them reaches others."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, Phi3Config, PreTrainedModel

from engine.generation import Generator
from engine.model import load_model
from engine.request import Request
from engine.settings import EngineSettings, SamplingSettings
from tests.engine.conftest import CONTEXT, VOCABULARY
from tests.engine.test_generation import answers, expected, generator, prompts


def test_requests_that_cannot_be_answered_are_errors(
    models: dict[str, PreTrainedModel], references: dict[str, PreTrainedModel]
) -> None:
    texts: list[list[int]] = [[], [1] * CONTEXT, [VOCABULARY], [1, 2]]
    done = answers(generator(models["qwen3"]), [Request(i, text) for i, text in enumerate(texts)])
    assert [done[i].error and done[i].error[0] for i in range(4)] == [
        "blank_prompt",
        "prompt_too_long",
        "bad_prompt_ids",
        None,
    ]
    assert done[3].token_ids == expected(references["qwen3"], [1, 2], 12)


def test_little_memory_delays_but_never_blocks(
    models: dict[str, PreTrainedModel], references: dict[str, PreTrainedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Room for about two sequences: all are answered, in order; one that can never fit is an error."""
    monkeypatch.setattr("engine.execution.kv_blocks", lambda *_args, **_keywords: 6)
    texts = [*prompts(9, 20, 60), [7] * 120]
    done = answers(generator(models["mistral"]), [Request(i, text) for i, text in enumerate(texts)])
    for i, text in enumerate(texts[:-1]):
        assert done[i].token_ids == expected(references["mistral"], text, 12)
    assert done[9].error is not None
    assert done[9].error[0] == "out_of_memory"


def test_nan_is_the_error_of_its_own_row(
    model_folders: dict[str, Path], references: dict[str, PreTrainedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token whose embedding is NaN spoils its rows, not their neighbours, not those that get their blocks next."""
    monkeypatch.setattr("engine.execution.kv_blocks", lambda *_args, **_keywords: 12)
    model = load_model(model_folders["qwen3"], dtype=torch.float32, device=torch.device("cpu"))
    model.get_input_embeddings().weight[50] = float("nan")
    texts = [[t if t != 50 else 51 for t in text] for text in prompts(12, 20, 50)]
    for i in (1, 4):
        texts[i][-1] = 50
    for ahead in (0, 1):
        engine = generator(model, max_tokens=4)
        engine._ahead = ahead
        done = answers(engine, [Request(i, text) for i, text in enumerate(texts)])
        for i, text in enumerate(texts):
            if i in (1, 4):
                assert done[i].error is not None
                assert done[i].error[0] == "nan_logits"
                assert done[i].token_ids == []
            else:
                want = expected(references["qwen3"], text, 4)
                # An answer that reaches the spoiled token itself is an error as well.
                assert done[i].token_ids == want or 50 in want


def test_blocks_of_a_spoiled_row_are_not_shared(
    model_folders: dict[str, Path], references: dict[str, PreTrainedModel]
) -> None:
    """They are cleared, so a later prompt with the same beginning must compute it again."""
    model = load_model(model_folders["qwen3"], dtype=torch.float32, device=torch.device("cpu"))
    model.get_input_embeddings().weight[50] = float("nan")
    text = [value % 50 for value in prompts(1, 40, 40)[0]]
    engine = generator(model, max_tokens=1, deterministic=False)
    assert answers(engine, [Request(0, text)])[0].error is None
    assert answers(engine, [Request(0, [*text[:32], 50])])[0].error is not None
    assert answers(engine, [Request(0, [*text[:32], 1, 2])])[0].token_ids == expected(
        references["qwen3"], [*text[:32], 1, 2], 1
    )
    assert engine.statistics()["shared_tokens"] == 32


def test_rows_do_not_see_the_frequencies_of_longer_neighbours(tmp_path: Path) -> None:
    """longrope switches by the longest position of a batch: sequences are kept below the switch."""
    config = Phi3Config(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=CONTEXT,
        original_max_position_embeddings=32,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "short_factor": [1.0] * 8,
            "long_factor": [float(2 + i) for i in range(8)],
            "original_max_position_embeddings": 32,
        },
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=None,
    )
    reference = AutoModelForCausalLM.from_config(config).eval()
    for parameter in reference.parameters():
        parameter.data.normal_(0, 0.3, generator=torch.Generator().manual_seed(parameter.numel()))
    reference.save_pretrained(tmp_path)
    model = load_model(tmp_path, dtype=torch.float32, device=torch.device("cpu"))
    texts = [*prompts(5, 1, 20), [9] * 40]
    done = answers(generator(model, max_tokens=30), [Request(i, text) for i, text in enumerate(texts)])
    for i, text in enumerate(texts[:5]):
        assert done[i].token_ids == expected(reference, text, min(30, 32 - len(text)))
    assert done[5].error is not None
    assert done[5].error[0] == "prompt_too_long"


def test_stop_strings_need_the_token_table(models: dict[str, PreTrainedModel]) -> None:
    with pytest.raises(ValueError, match="stop"):
        Generator(
            models["llama"],
            SamplingSettings(stop=("x",)),
            EngineSettings(),
            stop_ids=(),
            token_bytes=(),
            context_length=CONTEXT,
        )
