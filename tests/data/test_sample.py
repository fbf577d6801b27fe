"""The sample rows: their labels, their two formats, and that none of their wording was trained on."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from data.sample.grammar import INTENTS, PHRASES, PhraseBook, banned
from data.sample.messages import Message, messages, write

SAMPLE = Path(__file__).parents[2] / "data" / "sample"
ROWS = [json.loads(line) for line in (SAMPLE / "messages.jsonl").read_text(encoding="utf-8").splitlines()]


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9']+", text.lower())


def _runs(text: str, length: int) -> Iterator[tuple[str, ...]]:
    found = _words(text)
    return zip(*(found[start:] for start in range(length)), strict=False)


def _fragments(text: str) -> list[list[str]]:
    """A phrase as written in a file, cut at its slots."""
    return [_words(piece) for piece in re.split(r"\{\w+\}", text)]


def test_rows_carry_their_labels_and_the_answer_as_json() -> None:
    for row in ROWS:
        assert set(row) == {"id", "text", "intent", "sentiment", "expected"}
        assert row["intent"] in INTENTS
        assert row["sentiment"] in ("negative", "neutral", "positive")
        assert row["expected"] == json.dumps({"intent": row["intent"], "sentiment": row["sentiment"]})
        assert row["text"].strip()


def test_rows_are_distinct_and_balanced() -> None:
    assert len(ROWS) == len({row["id"] for row in ROWS}) == len({row["text"] for row in ROWS}) == 360
    assert set(Counter(row["intent"] for row in ROWS).values()) == {45}
    within = Counter((row["intent"], row["sentiment"]) for row in ROWS)
    assert set(within.values()) == {15, 45}  # complaints are negative and praise is positive, the others are all three


def test_parquet_equals_jsonl() -> None:
    assert pq.read_table(SAMPLE / "messages.parquet").to_pylist() == ROWS


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_generator_gives_the_stored_file_again(tmp_path: Path, suffix: str) -> None:
    again = tmp_path / f"messages{suffix}"
    write(messages("heldout", len(ROWS)), again)
    if suffix == ".jsonl":
        assert again.read_bytes() == (SAMPLE / "messages.jsonl").read_bytes()
    else:
        assert pq.read_table(again) == pq.read_table(SAMPLE / "messages.parquet")


def test_every_held_out_phrase_is_written_out_in_its_file() -> None:
    """Then the lines of the file are all that the held-out messages consist of."""
    for split in ("heldout", "dev"):
        for line in PhraseBook(split).lines():
            assert not re.search(r"[()<>|]", line), line


@pytest.fixture(scope="module")
def training() -> list[Message]:
    return list(messages("train", 12_000))


def test_training_messages_hold_no_held_out_wording(training: list[Message]) -> None:
    """No run of eight words of a sample row, and no held-out piece of six words between slots, was trained on."""
    runs_of_eight = {run for message in training for run in _runs(message.text, 8)}
    assert not [row["id"] for row in ROWS if runs_of_eight.intersection(_runs(row["text"], 8))]
    runs_of_six = {run for message in training for run in _runs(message.text, 6)}
    for path in sorted((PHRASES / "heldout").glob("*.txt")):
        if path.name == "slots.txt":
            continue
        for line in path.read_text(encoding="utf-8").splitlines():
            for fragment in _fragments(line):
                whole = set(_runs(" ".join(fragment), 6))
                assert not whole & runs_of_six, line


def test_a_training_phrase_with_held_out_wording_is_refused() -> None:
    book = PhraseBook("train", banned(("dev", "heldout")))
    assert book.refuses("Hello, how do I go about getting reimbursed for my kettle?")
    assert book.refuses("You guys rock!")  # a short phrase counts as a whole
    assert not book.refuses("How do I get my money back for the kettle?")


def test_no_draw_of_the_training_phrases_is_shared() -> None:
    shared, rng = banned(("dev", "heldout")), random.Random(3)
    book = PhraseBook("train", shared)
    for _ in range(300):
        for intent in INTENTS:
            for sentiment, lines in book.cores[intent].items():
                if lines:
                    assert not book.refuses(book.core(intent, sentiment, rng))


def test_products_and_names_of_held_out_rows_are_new() -> None:
    held_out, train = PhraseBook("heldout").slots, PhraseBook("train").slots
    for slot in ("product", "person", "city", "plan"):
        assert not set(held_out[slot]) & set(train[slot]), slot


def test_dev_shares_no_wording_with_held_out() -> None:
    book = PhraseBook("dev", banned(("heldout",)))
    assert [line for line in book.lines() if book.refuses(line)] == []
