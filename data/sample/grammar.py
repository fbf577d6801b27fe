"""The phrases from which sample messages are composed, one folder of text files for each split.

A line is one phrase, or one family of phrases: `(a|b)` is a choice and may be nested, `<name>` a choice kept in
frames.txt, `{product}` a slot that the message fills. In the file of an intent a line opens with the sentiment it
carries by itself: `+`, `-`, or `=` for none.

The splits share no phrasing. `words` is what is compared: a phrase in lower case without punctuation, its slots as
markers. `banned` collects every run of SHARED_WORDS such words of a split (of a shorter phrase, the whole of it), and a
phrase book refuses to draw a phrase holding a banned run. Composition of messages is left to messages.py.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

PHRASES = Path(__file__).parent / "phrases"
INTENTS = ("account", "billing", "cancel", "complaint", "delivery", "praise", "product", "refund")
SENTIMENTS = {"=": "neutral", "+": "positive", "-": "negative"}
CLAUSES = ("positive", "negative", "neutral", "opening", "closing")
SHARED_WORDS = 5

Run = tuple[str, ...]

_CHOICE = re.compile(r"\(([^()]*)\)")
_FRAME = re.compile(r"<(\w+)>")
_WORD = re.compile(r"\{\w+\}|[a-z0-9']+")
_QUESTION = re.compile(
    r"(what|which|when|where|why|how|who|can|could|may|do|does|did|is|are|am|was|has|will|would|should)\b",
    re.IGNORECASE,
)


def words(phrase: str) -> Run:
    """The words of a phrase that are compared between splits, slots kept as markers such as {product}."""
    return tuple(_WORD.findall(phrase.lower()))


def runs(phrase: str) -> Iterator[Run]:
    """Every run of SHARED_WORDS words in a phrase, or the whole of a shorter one."""
    found = words(phrase)
    for start in range(max(1, len(found) - SHARED_WORDS + 1)):
        yield found[start : start + SHARED_WORDS]


def banned(splits: Iterable[str]) -> frozenset[Run]:
    """The word runs that no other split may use. The splits named must be written out, without choices."""
    lines = (line for split in splits for line in PhraseBook(split).lines())
    return frozenset(run for line in lines for run in runs(line))


class PhraseBook:
    """The phrases of one split, drawn at random.

    `refused` holds word runs of the other splits: a draw that holds one is thrown away and drawn again.
    """

    def __init__(self, split: str, refused: frozenset[Run] = frozenset()) -> None:
        folder = PHRASES / split
        self.refused = refused
        self.frames = _named(folder / "frames.txt", ":", "|") if (folder / "frames.txt").exists() else {}
        self.slots = _named(folder / "slots.txt", ":", "|")
        self.cores = {intent: _signed(folder / f"{intent}.txt") for intent in INTENTS}
        self.clauses = {clause: _lines(folder / f"{clause}.txt") for clause in CLAUSES}

    def lines(self) -> Iterator[str]:
        """Every line of the split as written, without its sign."""
        for by_sentiment in self.cores.values():
            for lines in by_sentiment.values():
                yield from lines
        for lines in self.clauses.values():
            yield from lines

    def core(self, intent: str, sentiment: str, rng: random.Random) -> str:
        """A phrase that states the intent and carries the sentiment ("neutral": carries none)."""
        return self._draw(self.cores[intent][sentiment], rng)

    def clause(self, kind: str, rng: random.Random) -> str:
        """A phrase of CLAUSES, which states no intent."""
        return self._draw(self.clauses[kind], rng)

    def _draw(self, lines: list[str], rng: random.Random) -> str:
        for _ in range(200):
            weights = [1 + line.count("(") for line in lines]  # a family with more choices has more to say
            phrase = self.expand(rng.choices(lines, weights)[0], rng)
            if not self.refuses(phrase):
                return phrase
        raise ValueError(f"200 draws in a row were refused, the last of them {phrase!r}; write phrases of its own")

    def refuses(self, phrase: str) -> bool:
        """Whether a phrase holds a run of words that belongs to another split."""
        found = words(phrase)
        return any(
            found[start : start + length] in self.refused
            for start in range(len(found))
            for length in range(1, min(SHARED_WORDS, len(found) - start) + 1)
        )

    def expand(self, line: str, rng: random.Random) -> str:
        """One phrase of the family that a line describes, slots still open."""
        while "(" in line:
            line = _CHOICE.sub(lambda match: rng.choice(match[1].split("|")), line)
        while "<" in line:
            line = _FRAME.sub(lambda match: rng.choice(self.frames[match[1]]), line)
        return _punctuated(line)


def _punctuated(phrase: str) -> str:
    phrase = re.sub(r"\s+([,.!?:\x27])", r"\1", re.sub(r"\s+", " ", phrase)).strip()
    phrase = phrase[:1].upper() + phrase[1:]
    if phrase[-1:] in "!?.,:":
        return phrase
    return phrase + ("?" if _QUESTION.match(phrase.rsplit(", ", 1)[-1]) or _QUESTION.match(phrase) else ".")


def _lines(path: Path) -> list[str]:
    return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _signed(path: Path) -> dict[str, list[str]]:
    signed: dict[str, list[str]] = {sentiment: [] for sentiment in SENTIMENTS.values()}
    for line in _lines(path):
        signed[SENTIMENTS[line[0]]].append(line[2:])
    return signed


def _named(path: Path, after_name: str, between: str) -> dict[str, list[str]]:
    named = (line.split(after_name, 1) for line in _lines(path))
    return {name.strip(): [value.strip() for value in values.split(between)] for name, values in named}
