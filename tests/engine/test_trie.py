"""The shape of the choice trie: every choice is one path, every shared prefix one node."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.trie import Trie

CHOICES = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=6).map(tuple), min_size=1, max_size=12, unique=True)


def test_prefixes_are_shared_and_a_choice_may_end_inside_another() -> None:
    trie = Trie.of([[5, 6, 7], [5, 6], [5, 8], [9]])
    assert trie.tokens == (5, 6, 7, 8, 9)
    assert trie.parents == (-1, 0, 1, 0, -1)
    assert trie.depths == (0, 1, 2, 1, 0)
    assert trie.ends == (2, 1, 3, 4)
    assert trie.height == 3
    assert trie.ancestors().astype(int).tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 0, 0, 1, 0],
        [0, 0, 0, 0, 1],
    ]


@given(CHOICES)
def test_each_path_reads_back_its_choice(choices: list[tuple[int, ...]]) -> None:
    trie = Trie.of(choices)
    tokens = np.array(trie.tokens)
    for choice, path in zip(choices, trie.paths(), strict=True):
        assert tuple(tokens[path]) == choice


@given(CHOICES)
def test_nodes_are_the_distinct_prefixes(choices: list[tuple[int, ...]]) -> None:
    trie = Trie.of(choices)
    assert len(trie) == len({choice[: end + 1] for choice in choices for end in range(len(choice))})
    assert all(parent < node for node, parent in enumerate(trie.parents))
    assert (trie.ancestors().sum(axis=1) == np.array(trie.depths) + 1).all()


def test_numpy_choices_are_accepted() -> None:
    assert Trie.of([np.array([1, 2], np.uint32), np.array([1], np.uint32)]).tokens == (1, 2)


@pytest.mark.parametrize(
    ("choices", "named"),
    [([], "at least one choice"), ([[1], []], "choice 1 has no tokens"), ([[1, 2], [3], [1, 2]], "choices 0 and 2")],
)
def test_unusable_choices_are_refused_by_name(choices: list[list[int]], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        Trie.of(choices)
