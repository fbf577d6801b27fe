"""How customers really type: slips of the finger, shorthand, all lower case, missing full stops.

Noise is applied to a whole message after its label is fixed, so it never changes a label. The training split also
loses and gains words (`scramble`), which no person does: it keeps a model from leaning on any one word.
"""

from __future__ import annotations

import random
import re

_NEIGHBOURS = dict(zip("qwertyuiopasdfghjklzxcvbnm", "wqreytuioposadfghjkxzcvbnm", strict=True))
_SHORTHAND = {
    "you": "u", "your": "ur", "please": "pls", "are": "r", "because": "cos", "thanks": "thx", "tomorrow": "tmrw",
    "message": "msg", "about": "abt", "don't": "dont", "can't": "cant", "won't": "wont", "I'm": "im", "I've": "ive",
    "haven't": "havent", "it's": "its", "didn't": "didnt", "that's": "thats", "isn't": "isnt", "doesn't": "doesnt",
}  # fmt: skip
_SYLLABLES = [consonant + vowel for consonant in "bdfklmnprstvz" for vowel in "aeio"]


def typo(word: str, rng: random.Random) -> str:
    """A word of four or more letters with one slip: two letters swapped, one lost, doubled or beside its key."""
    if len(word) < 4 or not word.isalpha():
        return word
    at = rng.randrange(1, len(word) - 1)
    slip = rng.randrange(4)
    if slip == 0:
        return word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    if slip == 1:
        return word[:at] + word[at + 1 :]
    if slip == 2:
        return word[:at] + word[at] + word[at:]
    return word[:at] + _NEIGHBOURS.get(word[at], word[at]) + word[at + 1 :]


def typed(text: str, rng: random.Random, slips: float) -> str:
    """The text as somebody in a hurry types it; `slips` is the probability that it has a few typos."""
    pieces = re.split(r"(\s+)", text)
    if rng.random() < slips:
        for _ in range(rng.choice((1, 1, 2))):
            at = rng.randrange(0, len(pieces), 2)
            pieces[at] = typo(pieces[at], rng)
    if rng.random() < 0.08:
        pieces = [_SHORTHAND.get(piece, piece) for piece in pieces]
    text = "".join(pieces)
    style = rng.random()
    if style < 0.15:
        text = text.lower()
    elif style < 0.18:
        text = text.upper()
    if rng.random() < 0.12:
        text = text.rstrip(".!?")
    if rng.random() < 0.06:
        text = re.sub(r"[.,!?']", "", text)
    return text


def scramble(text: str, rng: random.Random) -> str:
    """The text with a few words lost, doubled or replaced by words that mean nothing. For training alone."""
    kept = []
    for word in text.split(" "):
        draw = rng.random()
        if draw < 0.04:
            continue
        kept.append(invented(rng) if draw < 0.07 else word)
    return " ".join(kept) or text


def invented(rng: random.Random) -> str:
    """A pronounceable word that means nothing, so that an unknown word is nothing new to a model."""
    return "".join(rng.choices(_SYLLABLES, k=rng.choice((2, 2, 3)))) + rng.choice(("", "", "r", "n", "x", "l"))
