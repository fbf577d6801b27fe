"""Prompt, answer and end token are the ids of the conversation as the chat template writes it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from data.answer_tokens import AnswerTokens
from data.checkpoint import Checkpoint
from data.prompts import Prompter
from data.settings import ChatMessage, JobSettings

MODEL = Path(__file__).parents[2] / "data" / "models" / "messages-4m"
CHAT = JobSettings(kind="generate", prompt=(ChatMessage(role="user", content="{{ text }}"),))
ANSWERS = ['{"intent": "refund", "sentiment": "negative"}', "It says <|im_end|> in the middle.", "ünïcode"]


def test_a_chat_answer_continues_its_prompt_as_the_template_does() -> None:
    checkpoint = Checkpoint.open(str(MODEL))
    prompts = Prompter(CHAT, "error", checkpoint, 8).encode([{"text": "Where is my parcel?"}] * 3)
    answers = AnswerTokens(CHAT, checkpoint).encode(ANSWERS, [True] * 3)
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    for prompt, ids, answer in zip(prompts.ids, answers, ANSWERS, strict=True):
        messages = [{"role": "user", "content": "Where is my parcel?"}, {"role": "assistant", "content": answer}]
        whole = tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"]
        if "<|im_end|>" not in answer:
            assert [*prompt.tolist(), *ids.tolist()] == whole[: len(prompt) + len(ids)]
        else:  # in an answer the text of a control token is text
            assert ids.tolist().count(ids[-1]) == 1


def test_an_answer_that_was_cut_has_no_end() -> None:
    whole, cut = AnswerTokens(CHAT, Checkpoint.open(str(MODEL))).encode(["yes", "yes"], [True, False])
    assert np.array_equal(whole[:-1], cut)


@pytest.mark.parametrize(("prompt", "end"), [("{{ text }}", "<|endoftext|>"), (CHAT.prompt, "<|im_end|>")])
def test_of_several_end_tokens_the_one_of_the_form_is_taken(prompt: object, end: str, tmp_path: Path) -> None:
    """As in Llama 3, whose end of text comes before the end of a turn in generation_config.json."""
    folder = tmp_path / "model"
    shutil.copytree(MODEL, folder)
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    stops = tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"])
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": stops}))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "eos_token": "<|endoftext|>"}))
    job = JobSettings.model_validate({"kind": "generate", "prompt": prompt})
    assert AnswerTokens(job, Checkpoint.open(str(folder))).end == tokenizer.convert_tokens_to_ids(end)
