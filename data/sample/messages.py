"""Customer messages with an intent and a sentiment, composed from the phrases of one split.

`python -m data.sample.messages SPLIT ROWS OUTPUT [SEED]` writes them as JSON Lines or, by the name of OUTPUT, Parquet.
The same arguments give the same bytes. `heldout` and `dev` are balanced over intents and sentiments, go through the
phrases in turn, and come with few typos. `train` recombines its phrases freely and refuses every phrase that shares
wording with the other two (grammar.py says how that is measured).

A message is an optional opening, the phrase that states the intent, the sentiment (carried by that phrase or by a
clause of its own), sometimes a plain fact, and an optional closing.
"""

from __future__ import annotations

import calendar
import json
import random
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache, partial
from itertools import chain
from pathlib import Path

from data.sample.grammar import INTENTS, PhraseBook, banned
from data.sample.noise import invented, scramble, typed

SEED = 20260
CHUNK = 5_000
_SENTIMENT_OF = {"complaint": ("negative",), "praise": ("positive",)}
_DAYS = list(calendar.day_name)
_MONTHS = list(calendar.month_name)[1:]
_SLOT = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True, slots=True)
class Message:
    """One labelled message; `expected` is the JSON text that a model should answer with."""

    id: str
    text: str
    intent: str
    sentiment: str
    expected: str


def answer(intent: str, sentiment: str) -> str:
    return json.dumps({"intent": intent, "sentiment": sentiment})


class Composer:
    """Composes messages of one split from its phrase book, with its own random numbers."""

    def __init__(self, split: str, book: PhraseBook, rng: random.Random) -> None:
        self.training = split == "train"
        self.book = book
        self.rng = rng
        self._turns: dict[tuple[str, str], list[str]] = {}

    def text(self, intent: str, sentiment: str) -> str:
        """The text of a message with these labels."""
        phrases = self._body(intent, sentiment)
        if self.rng.random() < 0.45:
            phrases.insert(0, self.book.clause("opening", self.rng))
        if self.rng.random() < 0.4:
            phrases.append(self.book.clause("closing", self.rng))
        text = self._fill(" ".join(phrases))
        if self.training and self.rng.random() < 0.4:
            text = scramble(text, self.rng)
        return typed(text, self.rng, slips=0.4 if self.training else 0.2)

    def _body(self, intent: str, sentiment: str) -> list[str]:
        signed = bool(self.book.cores[intent][sentiment]) and (intent in _SENTIMENT_OF or self.rng.random() < 0.5)
        body = [self._core(intent, sentiment if signed else "neutral")]
        if self.training and self.rng.random() < 0.1:
            body.append(self._core(intent, "neutral" if intent not in _SENTIMENT_OF else sentiment))
        if sentiment != "neutral" and (not signed or self.rng.random() < 0.35):
            body.insert(self.rng.randrange(len(body) + 1), self.book.clause(sentiment, self.rng))
        if self.rng.random() < 0.3:
            body.insert(self.rng.randrange(len(body) + 1), self.book.clause("neutral", self.rng))
        return body

    def _core(self, intent: str, sentiment: str) -> str:
        if self.training:
            return self.book.core(intent, sentiment, self.rng)
        turns = self._turns.setdefault((intent, sentiment), [])
        if not turns:
            turns.extend(self.book.cores[intent][sentiment])
            self.rng.shuffle(turns)
        return turns.pop()

    def _fill(self, text: str) -> str:
        values: dict[str, str] = {}

        def value(match: re.Match[str]) -> str:
            name = match[1]
            if name in ("product", "order", "plan"):  # one message is about one thing
                return values.setdefault(name, self._value(name))
            return self._value(name)

        return _SLOT.sub(value, text)

    def _value(self, name: str) -> str:
        rng = self.rng
        if name == "amount":
            return rng.choice(("£{}.{:02d}", "${}.{:02d}", "€{}", "{} euros", "{} pounds", "${}")).format(
                rng.randint(4, 480), rng.choice((0, 50, 90, 95, 99))
            )
        if name == "date":
            day, month = rng.randint(1, 28), rng.choice(_MONTHS)
            return rng.choice(
                (f"{day} {month}", f"{month} {day}", f"the {day}th of {month}", f"{day}/{rng.randint(1, 12)}")
            )
        numbers: dict[str, Callable[[], str]] = {
            "order": lambda: rng.choice(("#{}", "{}", "ORD-{}", "A{}")).format(rng.randint(10_000, 999_999)),
            "count": lambda: rng.choice(("two", "three", "four", "five", "six", "2", "3", "4", "5", "6", "8", "10")),
            "card": lambda: f"{rng.randint(0, 9999):04d}",
            "day": lambda: rng.choice(_DAYS),
            "month": lambda: rng.choice(_MONTHS),
        }
        if name in numbers:
            return numbers[name]()
        value = rng.choice(self.book.slots[name])
        if not self.training:
            return value
        draw = rng.random()
        if draw < 0.12:
            return invented(rng).capitalize() if name != "product" else invented(rng)
        return f"{rng.choice(self.book.slots['modifier'])} {value}" if name == "product" and draw < 0.3 else value


@cache
def _book(split: str) -> PhraseBook:
    others = {"train": ("dev", "heldout"), "dev": ("heldout",), "heldout": ()}[split]
    return PhraseBook(split, banned(others))


def labels() -> list[tuple[str, str]]:
    """Labels in turn: every intent as often as every other, and so its sentiments."""
    rows = []
    for turn in range(3):
        for intent in INTENTS:
            sentiments = _SENTIMENT_OF.get(intent, ("neutral", "positive", "negative"))
            rows.append((intent, sentiments[turn % len(sentiments)]))
    return rows


def _chunk(split: str, seed: int, start: int, stop: int) -> list[Message]:
    composer = Composer(split, _book(split), random.Random(f"{split} {seed} {start}"))
    turns, rows, seen = labels(), [], set()
    for number in range(start, stop):
        intent, sentiment = turns[number % len(turns)]
        text = composer.text(intent, sentiment)
        while text in seen:
            text = composer.text(intent, sentiment)
        seen.add(text)
        rows.append(Message(f"{split}-{number:04d}", text, intent, sentiment, answer(intent, sentiment)))
    return rows


def messages(split: str, rows: int, seed: int = SEED) -> Iterator[Message]:
    """`rows` messages of a split ("train", "dev" or "heldout"), the same for the same arguments."""
    starts = range(0, rows, CHUNK)
    chunk = partial(_chunk, split, seed)
    stops = [min(rows, start + CHUNK) for start in starts]
    if len(starts) == 1:
        return iter(chunk(0, rows))
    with ProcessPoolExecutor() as pool:
        return chain.from_iterable(list(pool.map(chunk, starts, stops)))


def write(rows: Iterable[Message], output: Path) -> None:
    """Writes messages to a .jsonl or .parquet file."""
    output.parent.mkdir(parents=True, exist_ok=True)
    records = [asdict(row) for row in rows]
    if output.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(records), output)
        return
    with output.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


if __name__ == "__main__":
    if len(sys.argv) not in (4, 5) or sys.argv[1] not in ("train", "dev", "heldout"):
        raise SystemExit(
            "usage: python -m data.sample.messages train|dev|heldout ROWS OUTPUT.jsonl|OUTPUT.parquet [SEED]"
        )
    write(messages(sys.argv[1], int(sys.argv[2]), int(sys.argv[4]) if len(sys.argv) == 5 else SEED), Path(sys.argv[3]))
