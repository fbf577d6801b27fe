"""Conversations to train the bundled model on: read from JSON Lines, tokenized, grouped into batches.

A conversation is a fixed instruction, the message, and the expected answer with its end token, in the ChatML form of
TEMPLATE. The tokenizer is learned from the training messages. What is learned from a batch is left to
sample_training.py.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

INSTRUCTION = "Give the intent and the sentiment of the message as JSON."
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
PAD, START, END = range(3)
MESSAGE, ANSWER = 1, 2


@dataclass(frozen=True, slots=True)
class Example:
    """Token ids of one conversation; the message is ids[message], the answer with its end token ids[answer:]."""

    ids: list[int]
    message: slice
    answer: int


def read(path: Path) -> list[tuple[str, str]]:
    """(text, expected) of every line of a JSON Lines file."""
    rows = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
    return [(row["text"], row["expected"]) for row in rows]


def conversation(text: str) -> list[str]:
    """The prompt as the chat template renders it, in three pieces: before the message, the message, after it."""
    before = f"<|im_start|>system\n{INSTRUCTION}<|im_end|>\n<|im_start|>user\n"
    return [before, text, "<|im_end|>\n<|im_start|>assistant\n"]


def learn_tokenizer(rows: Sequence[tuple[str, str]], vocabulary: int) -> Tokenizer:
    """A byte-level BPE over the conversations, digits one by one; ids 0, 1, 2 are SPECIAL."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = ("\n".join(("system user assistant", INSTRUCTION, text, expected)) for text, expected in rows)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, rows: Sequence[tuple[str, str]]) -> list[Example]:
    """Rows as token ids. The pieces are encoded apart: a special token or a newline stands between any two of them."""
    before, _, after = (tokenizer.encode(piece).ids for piece in conversation(""))
    texts = tokenizer.encode_batch_fast([text for text, _ in rows])
    answers = tokenizer.encode_batch_fast([expected for _, expected in rows])
    examples = []
    for text, answer in zip(texts, answers, strict=True):
        prompt = [*before, *text.ids, *after]
        message = slice(len(before), len(before) + len(text.ids))
        examples.append(Example([*prompt, *answer.ids, END], message, len(prompt)))
    return examples


def batches(examples: Sequence[Example], size: int, rng: random.Random) -> Iterator[list[Example]]:
    """Endless batches; within a window of 32 batches examples of like length go together, to save padding."""
    window = size * 32
    while True:
        order = rng.sample(range(len(examples)), len(examples))
        for start in range(0, len(order), window):
            near = sorted(order[start : start + window], key=lambda index: len(examples[index].ids))
            groups = [near[at : at + size] for at in range(0, len(near), size)]
            rng.shuffle(groups)
            yield from ([examples[index] for index in group] for group in groups)


def collate(batch: Sequence[Example]) -> tuple[Tensor, Tensor]:
    """Token ids [B,T], padded on the right, and int64 [B,T]: MESSAGE or ANSWER where a token is part of one, else 0."""
    width = max(len(example.ids) for example in batch)
    ids_bt = torch.full((len(batch), width), PAD)
    parts_bt = torch.zeros((len(batch), width), dtype=torch.long)
    for row, example in enumerate(batch):
        ids_bt[row, : len(example.ids)] = torch.tensor(example.ids)
        parts_bt[row, example.message] = MESSAGE
        parts_bt[row, example.answer : len(example.ids)] = ANSWER
    return ids_bt, parts_bt
