"""The bundled model and the script that trained it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from engine.sample_examples import INSTRUCTION, encode, read
from engine.sample_training import wrong

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "data" / "models" / "messages-4m"
SAMPLE = ROOT / "data" / "sample" / "messages.jsonl"


def _prompt(tokenizer: object, text: str) -> str:
    conversation = [{"role": "system", "content": INSTRUCTION}, {"role": "user", "content": text}]
    rendered = tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)  # type: ignore[attr-defined]
    assert isinstance(rendered, str)
    return rendered


def test_both_tokenizers_give_the_ids_that_were_trained_on() -> None:
    raw, automatic = Tokenizer.from_file(str(MODEL / "tokenizer.json")), AutoTokenizer.from_pretrained(MODEL)
    rows = [*read(SAMPLE), ("  £5.99 für 日本\n\n🙂 <b>", "{}")]
    for (text, _), example in zip(rows, encode(raw, rows), strict=True):
        prompt = _prompt(automatic, text)
        ids = raw.encode(prompt, add_special_tokens=False).ids
        assert ids == automatic(prompt, add_special_tokens=False)["input_ids"]
        assert raw.decode(raw.encode(text).ids) == text
        if text[:1].strip():  # leading white space would join the newline of the template
            assert ids == example.ids[: example.answer]


def test_model_answers_the_sample() -> None:
    """At least 93 % of the rows exactly, by greedy decoding in float32; the figure in docs/sample.md is higher."""
    raw = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    rows = read(SAMPLE)
    assert len(wrong(model, encode(raw, rows), torch.device("cpu"))) <= 0.07 * len(rows)


def test_generate_stops_after_the_json() -> None:
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    ids = tokenizer(_prompt(tokenizer, "What size is the kettle?"), return_tensors="pt", add_special_tokens=False)
    out = model.generate(**ids, max_new_tokens=32)[0, ids["input_ids"].shape[1] :]  # type: ignore[misc]
    assert out[-1].item() == model.generation_config.eos_token_id
    assert json.loads(str(tokenizer.decode(out, skip_special_tokens=True))) == {
        "intent": "product",
        "sentiment": "neutral",
    }


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("training")
    lines = SAMPLE.read_text(encoding="utf-8").splitlines(keepends=True)
    (folder / "train.jsonl").write_text("".join(lines[:300]), encoding="utf-8")
    (folder / "dev.jsonl").write_text("".join(lines[300:]), encoding="utf-8")
    files = [str(folder / name) for name in ("train.jsonl", "dev.jsonl", "model")]
    command = [sys.executable, "-m", "engine.sample_training", *files, "--steps", "3", "--batch", "8"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return folder / "model"


def test_training_writes_a_checkpoint_of_the_bundled_shape(trained: Path) -> None:
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        assert json.loads((trained / name).read_text()) == json.loads((MODEL / name).read_text())
    small, bundled = (AutoModelForCausalLM.from_pretrained(path).state_dict() for path in (trained, MODEL))
    assert {name: (tensor.shape, tensor.dtype) for name, tensor in small.items()} == {
        name: (tensor.shape, tensor.dtype) for name, tensor in bundled.items()
    }


def test_kernels_and_the_size_limit_are_served() -> None:
    config = json.loads((MODEL / "config.json").read_text())
    assert config["head_dim"] == 64
    assert config["hidden_size"] % 128 == config["intermediate_size"] % 128 == config["vocab_size"] % 128 == 0
    assert (MODEL / "model.safetensors").stat().st_size < 10_000_000
