"""Paged attention equals plain attention over the same keys, for every layout that the kernels know."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from engine.cuda.attention import Paged, decode, prefill, queries, splits, tiling
from engine.paged import BLOCK, LayerShape, PagedKV

SCALE = 0.3
SHAPES = {"grouped": (7, 1, 16), "pairs": (4, 2, 24), "alone": (2, 2, 64)}


@dataclass
class Case:
    """Sequences of some lengths, their keys in shuffled blocks."""

    lengths: list[int]
    keys: list[Tensor]  # each [L, K, D]
    values: list[Tensor]
    paged: Paged
    tables: Tensor

    def expected(self, number: int, q: Tensor, first: int, window: int | None) -> Tensor:
        """q [N, H, D] at positions from `first`, in float64."""
        repeat = q.shape[1] // self.keys[number].shape[1]
        k = self.keys[number].double().repeat_interleave(repeat, 1)
        v = self.values[number].double().repeat_interleave(repeat, 1)
        weights = torch.einsum("nhd,lhd->hnl", q.double(), k) * SCALE
        at = first + torch.arange(len(q), device=q.device)[:, None]
        key = torch.arange(len(k), device=q.device)[None]
        seen = (key <= at) & (key > at - (window or 1 << 30))
        weights = weights.masked_fill(~seen, -torch.inf).softmax(-1)
        return torch.einsum("hnl,lhd->nhd", weights, v)


def case(lengths: list[int], heads: int, size: int, device: torch.device, dtype: torch.dtype, kv: torch.dtype) -> Case:
    random = np.random.default_rng(3)
    blocks = [-(-length // BLOCK) for length in lengths]
    order = random.permutation(sum(blocks)) + 1
    cache = PagedKV({0: LayerShape(heads, size, size, kv)}, sum(blocks), device)
    # What lies beyond the end of a sequence must not matter.
    for store in (cache.keys[0], cache.values[0]):
        store.view(torch.uint8).fill_(0x7F)
    tables = torch.zeros(len(lengths) + 2, max(blocks), dtype=torch.int32, device=device)
    made = Case(lengths, [], [], Paged(cache.keys[0], cache.values[0], cache.key_scales.get(0),
                                       cache.value_scales.get(0), heads, size), tables)  # fmt: skip
    for number, length in enumerate(lengths):
        own = torch.from_numpy(order[sum(blocks[:number]) : sum(blocks[: number + 1])]).to(device)
        tables[number + 1, : len(own)] = own.int()
        k, v = (torch.randn(length, heads, size, device=device).to(dtype) for _ in range(2))
        at = torch.arange(length, device=device)
        lines = own[at // BLOCK] * BLOCK + at % BLOCK
        cache.write(0, lines, k.transpose(0, 1), v.transpose(0, 1))
        keys, values = cache.read(0, own, torch.float32)
        made.keys.append(keys[:length])
        made.values.append(values[:length])
    return made


def tolerance(dtype: torch.dtype, kv: torch.dtype) -> float:
    """Of the dtype computed in, which is float16 for an 8-bit cache."""
    return 1e-5 if dtype == torch.float32 and kv == dtype else 4e-3 if kv.itemsize == 1 else 2e-2


# The interpreter cannot multiply bfloat16 matrices.
HALF = torch.bfloat16 if torch.cuda.is_available() else torch.float16
DTYPES = [(torch.float32, torch.float32), (HALF, HALF), (HALF, torch.float8_e4m3fn)]


@pytest.mark.parametrize(("dtype", "kv"), DTYPES)
@pytest.mark.parametrize("shape", list(SHAPES))
@pytest.mark.parametrize("window", [None, 20])
@pytest.mark.parametrize("split", [None, 64])
def test_decode(
    device: torch.device, dtype: torch.dtype, kv: torch.dtype, shape: str, window: int | None, split: int | None
) -> None:
    heads, key_heads, size = SHAPES[shape]
    made = case([1, 16, 64, 65, 130, 300], key_heads, size, device, dtype, kv)
    q = torch.randn(6, heads, size, device=device).to(dtype)
    rows = torch.arange(6, device=device) + 1
    positions = torch.tensor(made.lengths, device=device) - 1
    parts = 8 if split else 1
    out = torch.full_like(q, torch.nan)
    decode(
        q, made.paged, made.tables, rows, positions, out, scale=SCALE, window=window, split=split or 512, parts=parts
    )
    for number, length in enumerate(made.lengths):
        wanted = made.expected(number, q[number : number + 1], length - 1, window)[0]
        limit = tolerance(dtype, kv)
        torch.testing.assert_close(out[number].double(), wanted, atol=limit, rtol=limit)


@pytest.mark.parametrize(("dtype", "kv"), DTYPES)
@pytest.mark.parametrize("shape", list(SHAPES))
@pytest.mark.parametrize("window", [None, 20])
def test_prefill(device: torch.device, dtype: torch.dtype, kv: torch.dtype, shape: str, window: int | None) -> None:
    """Chunks that begin at a prompt's first token and in its middle, behind two tokens of other rows."""
    heads, key_heads, size = SHAPES[shape]
    made = case([1, 17, 150, 200], key_heads, size, device, dtype, kv)
    starts = np.array([0, 0, 70, 128])
    counts = np.array(made.lengths) - starts
    q = torch.randn(2 + int(counts.sum()), heads, size, device=device).to(dtype)
    tiles = tiling(np.arange(4) + 1, starts, counts, 2, queries(heads, key_heads, dtype))
    assert tiles[:, 3].sum() == counts.sum()
    out = torch.full_like(q, torch.nan)
    prefill(q, made.paged, made.tables, torch.from_numpy(tiles).to(device), out, scale=SCALE, window=window)
    assert out[:2].isnan().all()
    begin = 2
    for number, count in enumerate(counts.tolist()):
        own = slice(begin, begin + count)
        wanted = made.expected(number, q[own], int(starts[number]), window)
        limit = tolerance(dtype, kv)
        torch.testing.assert_close(out[own].double(), wanted, atol=limit, rtol=limit)
        begin += count


@pytest.mark.parametrize("longest", [1, 128, 129, 513, 4000])
def test_splits_cover_the_longest_sequence(longest: int) -> None:
    for sequences in (1, 64, 2000):
        keys, parts = splits(longest, sequences, 4, 132)
        assert keys * parts >= longest
        assert parts == 1 or keys * parts < 2 * (longest + keys)
