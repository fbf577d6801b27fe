"""Attention over the paged cache equals attention over each sequence alone, in every mix of steps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from engine.paged import BLOCK, LayerShape, PagedAttention, PagedKV
from engine.sequence import Sequence
from engine.step import Chunk

CPU = torch.device("cpu")


def plain(q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None) -> Tensor:
    """q [H, T, D] are the last positions of k, v [K, S, D]; -> [T, H, D]."""
    repeat = q.shape[0] // k.shape[0]
    scores = q @ k.repeat_interleave(repeat, 0).transpose(1, 2) * scale
    at = torch.arange(k.shape[1] - q.shape[1], k.shape[1])[:, None]
    seen = torch.arange(k.shape[1]) <= at
    if window is not None:
        seen &= torch.arange(k.shape[1]) > at - window
    weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
    return (weights @ v.repeat_interleave(repeat, 0)).transpose(0, 1)


@pytest.mark.parametrize("window", [None, 1, 7, 40])
@pytest.mark.parametrize(("heads", "kv_heads", "value_size"), [(4, 2, 16), (3, 3, 16), (6, 1, 8)])
def test_equals_attention_of_each_sequence(window: int | None, heads: int, kv_heads: int, value_size: int) -> None:
    """Decoding rows of many lengths, first chunks, later chunks and chunks of one token, in one pass."""
    numbers = torch.Generator().manual_seed(0)
    layer = LayerShape(kv_heads, 16, value_size, torch.float32)
    spans = [(n - 1, n) for n in (150, 149, 90, 33, 17, 16, 3, 1)] + [(0, 5), (0, 40), (16, 61), (32, 33), (0, 1)]
    sequences, free = [], np.random.default_rng(0).permutation(np.arange(1, 101)).tolist()
    for _, stop in spans:
        blocks = [free.pop() for _ in range(-(-stop // BLOCK))]
        sequences.append(Sequence([0], np.zeros(stop, np.int64), 1, b"", blocks=blocks))
    kv = PagedKV({3: layer}, 100, CPU)
    whole = [
        (torch.randn(kv_heads, stop, 16, generator=numbers), torch.randn(kv_heads, stop, value_size, generator=numbers))
        for _, stop in spans
    ]
    at = [
        [s.blocks[p // BLOCK] * BLOCK + p % BLOCK for p in range(stop)]
        for s, (_, stop) in zip(sequences, spans, strict=True)
    ]
    for (k, v), lines, (start, _) in zip(whole, at, spans, strict=True):
        kv.write(3, torch.tensor(lines[:start], dtype=torch.int64), k[:, :start], v[:, :start])
    tables = torch.zeros(8, 12, dtype=torch.int64)
    for row, s in zip(tables, sequences[:8], strict=True):
        row[: len(s.blocks)] = torch.tensor(s.blocks)
    backend = PagedAttention(
        kv,
        tables,
        np.array([stop for _, stop in spans[:8]]),
        [Chunk(s, *span) for s, span in zip(sequences[8:], spans[8:], strict=True)],
        torch.tensor([line for lines, (start, _) in zip(at, spans, strict=True) for line in lines[start:]]),
    )
    q = torch.randn(heads, sum(stop - start for start, stop in spans), 16, generator=numbers)
    new = [torch.cat([pair[i][:, start:] for pair, (start, _) in zip(whole, spans, strict=True)], 1) for i in (0, 1)]
    out = backend.attend(3, q, *new, scale=0.3, causal=True, window=window)
    begin = 0
    for (k, v), (start, stop) in zip(whole, spans, strict=True):
        own = slice(begin, begin + stop - start)
        torch.testing.assert_close(out[own], plain(q[:, own], k, v, 0.3, window), atol=1e-5, rtol=1e-5)
        begin = own.stop


def test_a_long_chunk_is_masked_in_pieces() -> None:
    numbers = torch.Generator().manual_seed(0)
    length = 2600
    q, k, v = (torch.randn(1, length, 4, generator=numbers) for _ in range(3))
    kv = PagedKV({0: LayerShape(1, 4, 4, torch.float32)}, 200, CPU)
    sequence = Sequence([0], np.zeros(length, np.int64), 1, b"", blocks=list(range(1, 164)))
    lines = torch.arange(BLOCK, BLOCK + length)
    kv.write(0, lines[:48], k[:, :48], v[:, :48])
    backend = PagedAttention(
        kv, torch.zeros(0, 4, dtype=torch.int64), np.zeros(0, np.int64), [Chunk(sequence, 48, length)], lines[48:]
    )
    out = backend.attend(0, q[:, 48:], k[:, 48:], v[:, 48:], scale=0.5, causal=True, window=None)
    torch.testing.assert_close(out, plain(q[:, 48:], k, v, 0.5, None), atol=1e-5, rtol=1e-5)


def test_fp8_storage_keeps_positions_of_any_size() -> None:
    """Keys beyond 448 (Qwen2's reach several hundreds) and tiny ones alike: each position and head has its scale."""
    kv = PagedKV({0: LayerShape(2, 64, 64, torch.float8_e4m3fn)}, 3, CPU)
    sizes = torch.tensor([1e-3, 1.0, 300.0, 1e4, 0.0])[None, :, None]
    k, v = torch.randn(2, 5, 64) * sizes, torch.randn(2, 5, 64) * sizes
    kv.write(0, torch.arange(20, 25), k, v)
    keys, values = kv.read(0, torch.tensor([1]), torch.float32)
    for found, wanted in ((keys[4:9].transpose(0, 1), k), (values[4:9].transpose(0, 1), v)):
        error = (found - wanted).abs().amax(-1)
        assert (error <= wanted.abs().amax(-1) / 16).all()
        assert not torch.equal(found, wanted)


def test_cleared_blocks_are_zero_and_others_are_kept() -> None:
    kv = PagedKV({0: LayerShape(1, 2, 2, torch.bfloat16)}, 3, CPU)
    ones = torch.ones(1, 2 * BLOCK, 2)
    kv.write(0, torch.arange(BLOCK, 3 * BLOCK), ones * float("nan"), ones)
    kv.clear([1])
    keys, values = kv.read(0, torch.tensor([0, 1, 2]), torch.float32)
    assert torch.equal(keys[: 2 * BLOCK], torch.zeros(2 * BLOCK, 1, 2))
    assert keys[2 * BLOCK :].isnan().all()
    assert torch.equal(values[2 * BLOCK :], torch.ones(BLOCK, 1, 2))


def test_bidirectional_attention_is_refused() -> None:
    kv = PagedKV({0: LayerShape(1, 2, 2, torch.float32)}, 1, CPU)
    backend = PagedAttention(kv, torch.zeros(0, 1, dtype=torch.int64), np.zeros(0, np.int64), [], torch.tensor([]))
    q = torch.zeros(1, 0, 2)
    with pytest.raises(ValueError, match="both directions"):
        backend.attend(0, q, q, q, scale=1.0, causal=False, window=None)
