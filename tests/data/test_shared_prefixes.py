"""Shared tokens against a plain tree of the prompts."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from data.shared_prefixes import shared_tokens


@given(st.lists(st.lists(st.integers(0, 2), max_size=6), max_size=30))
def test_shared_tokens_are_those_that_a_tree_stores_once(prompts: list[list[int]]) -> None:
    nodes = {tuple(prompt[: stop + 1]) for prompt in prompts for stop in range(len(prompt))}
    total = sum(map(len, prompts))
    assert shared_tokens([np.array(prompt, np.uint32) for prompt in prompts]) == total - len(nodes)
