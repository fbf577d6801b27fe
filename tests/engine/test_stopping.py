"""Stop ids, stop strings across token borders, and length."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from engine.sequence import Sequence
from engine.stopping import Stopping


def feed(stopping: Stopping, tokens: list[int], max_tokens: int = 1000) -> tuple[Sequence, str | None]:
    sequence = Sequence([0], np.array([1]), max_tokens, b"")
    for token in tokens:
        reason = stopping.accept(sequence, token)
        if reason:
            return sequence, reason
    return sequence, None


def test_a_stop_id_is_not_part_of_the_answer() -> None:
    sequence, reason = feed(Stopping([9, 7], (), ()), [1, 7, 2])
    assert (sequence.tokens, reason, sequence.stop) == ([1], "stop", None)


def test_length() -> None:
    sequence, reason = feed(Stopping([], (), ()), [1, 7, 2], max_tokens=2)
    assert (sequence.tokens, reason) == ([1, 7], "length")


def test_a_stop_string_on_the_last_token_wins_over_length() -> None:
    sequence, reason = feed(Stopping([], ("b",), [b"a", b"b"]), [0, 1], max_tokens=2)
    assert (reason, sequence.stop) == ("stop", "b")


def test_the_match_that_ends_first_wins() -> None:
    table = [b"a", b"b", b"c", b"abc"]
    assert feed(Stopping([], ("abc", "b"), table), [3])[0].stop == "b"
    assert feed(Stopping([], ("abc", "bc"), table), [0, 1, 2])[0].stop in ("abc", "bc")


def test_a_character_split_over_tokens_is_matched() -> None:
    data = "é∎".encode()
    table = [bytes([byte]) for byte in data]
    sequence, reason = feed(Stopping([], ("é∎",), table), list(range(len(data))))
    assert reason == "stop"
    assert len(sequence.tokens) == len(data)


def test_ids_beyond_the_table_stand_for_no_text() -> None:
    assert feed(Stopping([], ("ab",), [b"a", b"b"]), [0, 5, 1])[1] == "stop"


@given(
    tokens=st.lists(st.integers(0, 5), max_size=40),
    stop=st.lists(st.text("abé", min_size=1, max_size=5), min_size=1, max_size=3),
)
def test_stops_exactly_where_the_whole_text_first_holds_a_stop_string(tokens: list[int], stop: list[str]) -> None:
    table = [b"a", b"b", b"ab", "é".encode(), "é".encode()[:1], "é".encode()[1:]]
    sequence, reason = feed(Stopping([], stop, table), tokens)
    text = b""
    for count, token in enumerate(tokens, 1):
        text += table[token]
        if any(data.encode() in text for data in stop):
            assert (reason, len(sequence.tokens)) == ("stop", count)
            assert sequence.stop is not None
            assert sequence.stop.encode() in text
            return
    assert reason is None
