"""Packs hold each prompt once within the budget, and attention over a pack is attention over each prompt alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from engine.packed import MASK_QUERIES, PackedAttention
from engine.packing import Pack, common_beginning, pack
from engine.trie import Trie

PROMPTS = st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=24).map(np.array), min_size=1, max_size=30)
TRIE = Trie.of([[3, 4, 5], [3, 4], [3, 6], [7]])


@given(PROMPTS, st.integers(1, 90), st.booleans(), st.sampled_from([None, TRIE]))
def test_each_prompt_is_in_one_pack_and_can_be_read_back(
    prompts: list[np.ndarray], budget: int, share: bool, trie: Trie | None
) -> None:
    packs = list(pack(prompts, budget, trie=trie, share=share))
    assert sorted(index for made in packs for index in made.indices) == list(range(len(prompts)))
    for made in packs:
        assert made.tokens <= budget or len(made.prompts) == 1
        assert share or made.stem == 0
        ids, positions = made.ids(), made.positions()
        assert len(ids) == len(positions) == made.tokens
        for number, index in enumerate(made.indices):
            rows = made.rows(number)
            assert ids[rows].tolist() == prompts[index].tolist()
            assert positions[rows].tolist() == list(range(len(prompts[index])))
            assert rows[-1] >= made.stem, "the last token is never shared"
            if trie:
                assert ids[made.node_rows(number)].tolist() == list(trie.tokens)
                assert (positions[made.node_rows(number)] - len(rows)).tolist() == list(trie.depths)


@given(PROMPTS)
def test_groups_are_the_runs_of_equal_length(prompts: list[np.ndarray]) -> None:
    for made in pack(prompts, 60, share=True):
        assert sum(group.count for group in made.groups) == len(made.prompts)
        assert len({group.length for group in made.groups}) == len(made.groups)
        for group in made.groups:
            assert made.starts[group.first] == group.start
            assert set(made.bodies[group.first : group.first + group.count]) == {group.length}


def test_a_common_beginning_is_computed_once() -> None:
    instruction = np.arange(100)
    prompts = [np.append(instruction, [200 + row] * 10) for row in range(20)]
    (made,) = pack(prompts, 400, share=True)
    assert made.stem == 100
    assert made.tokens == 100 + 20 * 10
    assert len(list(pack(prompts, 400, share=False))) == 7


@given(PROMPTS)
def test_the_common_beginning_is_the_longest(prompts: list[np.ndarray]) -> None:
    length = common_beginning(prompts)
    assert len({tuple(prompt[:length]) for prompt in prompts}) == 1
    longer = {tuple(prompt[: length + 1]) for prompt in prompts}
    assert len(longer) > 1 or min(map(len, prompts)) == length


def test_a_short_common_beginning_is_not_worth_two_attention_calls() -> None:
    prompts = [np.append(np.arange(2), np.full(98, 200 + row)) for row in range(10)]
    (made,) = pack(prompts, 10_000, share=True)
    assert made.stem == 0


def _reference(made: Pack, q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool, window: int | None) -> Tensor:
    """Softmax attention with a mask over the whole pack, made token by token from each token's own sequence."""
    positions = made.positions()
    sees = np.zeros((made.tokens, made.tokens), bool)
    for number in range(len(made.prompts)):
        rows = made.rows(number)
        for row in rows[made.stem if number else 0 :]:
            sees[row, rows] = positions[rows] <= positions[row] if causal else True
        if made.trie:
            nodes = made.node_rows(number)
            sees[np.ix_(nodes, rows)] = True
            sees[np.ix_(nodes, nodes)] = made.trie.ancestors()
    if window is not None:
        sees &= np.abs(positions[:, None] - positions[None]) < window
    repeat = q.shape[0] // k.shape[0]
    weights = (q @ k.repeat_interleave(repeat, 0).transpose(1, 2)) * scale
    weights = weights.masked_fill(~torch.from_numpy(sees), -torch.inf).softmax(-1)
    return (weights @ v.repeat_interleave(repeat, 0)).transpose(0, 1)


def _compare(made: Pack, *, heads: int, key_heads: int, causal: bool, window: int | None) -> None:
    generator = torch.Generator().manual_seed(made.tokens)
    q, k, v = (
        torch.randn(made.tokens, h, 8, generator=generator).transpose(0, 1) for h in (heads, key_heads, key_heads)
    )
    backend = PackedAttention(made, torch.device("cpu"))
    out = backend.attend(0, q, k, v, scale=0.7, causal=causal, window=window)
    torch.testing.assert_close(out, _reference(made, q, k, v, 0.7, causal, window), rtol=1e-5, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(PROMPTS, st.sampled_from([None, 1, 3, 7, 1000]), st.sampled_from([None, TRIE]), st.sampled_from([1, 2, 4]))
def test_causal_attention_keeps_to_its_own_prompt(
    prompts: list[np.ndarray], window: int | None, trie: Trie | None, key_heads: int
) -> None:
    for made in pack(prompts, 120, trie=trie, share=True):
        _compare(made, heads=4, key_heads=key_heads, causal=True, window=window)


@settings(max_examples=40, deadline=None)
@given(PROMPTS, st.sampled_from([None, 1, 3, 7, 1000]))
def test_bidirectional_attention_keeps_to_its_own_prompt(prompts: list[np.ndarray], window: int | None) -> None:
    for made in pack(prompts, 120):
        _compare(made, heads=4, key_heads=4, causal=False, window=window)


@pytest.mark.parametrize(("causal", "window"), [(True, 50), (False, 50), (True, 1500), (False, 1500)])
def test_a_long_prompt_is_masked_block_by_block(causal: bool, window: int) -> None:
    (made,) = pack([np.arange(MASK_QUERIES * 2 + 77)], 1)
    _compare(made, heads=2, key_heads=2, causal=causal, window=window)


def test_a_long_body_behind_a_stem_is_masked_block_by_block() -> None:
    prompts = [np.append(np.arange(600), np.full(MASK_QUERIES + 5, row)) for row in (1, 2)]
    (made,) = pack(prompts, 10_000, share=True)
    assert made.stem == 600
    _compare(made, heads=1, key_heads=1, causal=True, window=None)


def test_shared_tokens_need_causal_attention() -> None:
    (made,) = pack([np.array([1, 2, 3]), np.array([1, 2, 4])], 100, share=True)
    assert made.stem == 2
    x = torch.zeros(1, made.tokens, 8)
    with pytest.raises(AssertionError, match="causal"):
        PackedAttention(made, torch.device("cpu")).attend(0, x, x, x, scale=1.0, causal=False, window=None)
