"""Attention over the paged KV cache as two Triton kernels: one query a sequence, and chunks of prompts.

Both walk the keys of one key head in tiles with an online softmax (Dao 2023, FlashAttention-2) and serve all query
heads of that key head at once, so that a key is read once for its whole group. Decoding splits long sequences over
several programs, whose parts a third kernel merges (flash decoding). Nothing is planned on the host: programs find
their keys through block tables and positions that live on the device, so a CUDA graph can be replayed as sequences
grow. Keys beyond a sequence's end are masked out before they are used, so what the blocks hold there does not matter.

An 8-bit cache stores each position and head with a scale of its own; the kernels compute in float16 then, since Hopper
converts from 8 bits to float16 in one instruction.

Legend of shapes: T tokens, B sequences, H query heads, K key heads, G = H / K, D head size, S splits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = tl.constexpr(16)
_LOG2E = math.log2(math.e)
# Keys that one program of a decode step walks over. Fewer when there are too few sequences to fill the device.
SPLIT = 512
SPLIT_SMALL = 128


@triton.jit
def _walk(  # noqa: PLR0913
    q, acc, peak, total, k_ptr, v_ptr, ks_ptr, vs_ptr, table, head, at, first, last, window,
    KEYS: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, TILE: tl.constexpr,
    FP8: tl.constexpr, MASKED: tl.constexpr, WINDOWED: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """Attend the queries q [M, DP] at positions `at` [M] to keys [first, last); first is a multiple of TILE."""
    dims = tl.arange(0, DP)
    for start in range(first, last, TILE):
        keys = start + tl.arange(0, TILE)
        if MASKED:
            inside = keys < last
            blocks = tl.load(table + keys // BLOCK, mask=inside, other=0)
        else:
            blocks = tl.load(table + keys // BLOCK)
        lines = (blocks.to(tl.int64) * BLOCK + keys % BLOCK) * KEYS + head
        places = lines[:, None] * D + dims[None, :]
        if FP8:
            scales = (blocks.to(tl.int64) * KEYS + head) * BLOCK + keys % BLOCK
        if MASKED:
            here = inside[:, None] & (dims < D)[None, :]
            k = tl.load(k_ptr + places, mask=here, other=0.0)
        elif D == DP:
            k = tl.load(k_ptr + places)
        else:
            k = tl.load(k_ptr + places, mask=(dims < D)[None, :], other=0.0)
        if FP8:
            weights = tl.dot(q, tl.trans(k.to(q.dtype)))
            if MASKED:
                weights *= tl.load(ks_ptr + scales, mask=inside, other=0.0)[None, :]
            else:
                weights *= tl.load(ks_ptr + scales)[None, :]
        elif EXACT:
            weights = tl.dot(q, tl.trans(k), input_precision="ieee")
        else:
            weights = tl.dot(q, tl.trans(k))
        if MASKED:
            weights = tl.where((keys[None, :] <= at[:, None]) & inside[None, :], weights, float("-inf"))
        if WINDOWED:
            weights = tl.where(keys[None, :] > at[:, None] - window, weights, float("-inf"))
        higher = tl.maximum(peak, tl.max(weights, 1))
        # A query that has seen no key yet would subtract infinity from infinity.
        base = tl.where(higher == float("-inf"), 0.0, higher)
        shrink = tl.exp2(peak - base)
        weights = tl.exp2(weights - base[:, None])
        total = total * shrink + tl.sum(weights, 1)
        acc = acc * shrink[:, None]
        if MASKED:
            v = tl.load(v_ptr + places, mask=here, other=0.0)
        elif D == DP:
            v = tl.load(v_ptr + places)
        else:
            v = tl.load(v_ptr + places, mask=(dims < D)[None, :], other=0.0)
        if FP8:
            if MASKED:
                weights *= tl.load(vs_ptr + scales, mask=inside, other=0.0)[None, :]
            else:
                weights *= tl.load(vs_ptr + scales)[None, :]
            acc = tl.dot(weights.to(q.dtype), v.to(q.dtype), acc)
        elif EXACT:
            acc = tl.dot(weights, v, acc, input_precision="ieee")
        else:
            acc = tl.dot(weights.to(v.dtype), v, acc)
        peak = higher
    return acc, peak, total


@triton.jit
def _decode(  # noqa: PLR0913
    q_ptr, k_ptr, v_ptr, ks_ptr, vs_ptr, tables, rows, positions, out_ptr, part_ptr, lse_ptr,
    table_stride, window, scale,
    HEADS: tl.constexpr, KEYS: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, GP: tl.constexpr, TILE: tl.constexpr,
    SPLIT: tl.constexpr, SPLITS: tl.constexpr, FP8: tl.constexpr, WINDOWED: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """One sequence, key head and split: part [S, B, H, D] and log-sum-exp [S, B, H], or the result where S is 1."""
    number, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    batch = tl.num_programs(0)
    group: tl.constexpr = HEADS // KEYS
    length = tl.load(positions + number) + 1
    first = split * SPLIT
    last = tl.minimum(first + SPLIT, length)
    if WINDOWED:
        first = tl.maximum(first, (length - window) // TILE * TILE)
    members = tl.arange(0, GP)
    dims = tl.arange(0, DP)
    heads = head * group + members
    seen = (members < group)[:, None] & (dims < D)[None, :]
    peak = tl.full([GP], float("-inf"), tl.float32)
    total = tl.zeros([GP], tl.float32)
    acc = tl.zeros([GP, DP], tl.float32)
    if first < last:
        q = tl.load(q_ptr + (number * HEADS + heads)[:, None] * D + dims[None, :], mask=seen, other=0.0)
        q = (q.to(tl.float32) * scale).to(tl.float16 if FP8 else q_ptr.dtype.element_ty)
        table = tables + tl.load(rows + number) * table_stride
        at = tl.zeros([GP], tl.int32) + (length - 1).to(tl.int32)
        # The last tile alone may reach beyond the end.
        whole = first + (last - first) // TILE * TILE
        acc, peak, total = _walk(
            q, acc, peak, total, k_ptr, v_ptr, ks_ptr, vs_ptr, table, head, at, first, whole, window,
            KEYS, D, DP, TILE, FP8, False, WINDOWED, EXACT,
        )  # fmt: skip
        acc, peak, total = _walk(
            q, acc, peak, total, k_ptr, v_ptr, ks_ptr, vs_ptr, table, head, at, whole, last, window,
            KEYS, D, DP, TILE, FP8, True, WINDOWED, EXACT,
        )  # fmt: skip
        acc = acc / tl.where(total == 0, 1.0, total)[:, None]
    if SPLITS == 1:
        place = out_ptr + (number * HEADS + heads)[:, None] * D + dims[None, :]
        tl.store(place, acc.to(out_ptr.dtype.element_ty), mask=seen)
    else:
        index = (split * batch + number) * HEADS + heads
        lse = tl.where(total == 0, float("-inf"), peak + tl.log2(total))
        tl.store(lse_ptr + index, lse, mask=members < group)
        if first < last:
            tl.store(part_ptr + index[:, None] * D + dims[None, :], acc, mask=seen)


@triton.jit
def _merge(part_ptr, lse_ptr, out_ptr, count, D: tl.constexpr, DP: tl.constexpr, SPLITS: tl.constexpr):
    """Merge the parts of one sequence and head, weighted by their log-sum-exp. count: B H."""
    number = tl.program_id(0)
    dims = tl.arange(0, DP)
    peak = float("-inf")
    for split in range(SPLITS):
        peak = tl.maximum(peak, tl.load(lse_ptr + split * count + number))
    total = 0.0
    acc = tl.zeros([DP], tl.float32)
    for split in range(SPLITS):
        lse = tl.load(lse_ptr + split * count + number)
        if lse > float("-inf"):
            weight = tl.exp2(lse - peak)
            total += weight
            part = tl.load(part_ptr + (split * count + number).to(tl.int64) * D + dims, mask=dims < D, other=0.0)
            acc += weight * part
    tl.store(out_ptr + number * D + dims, (acc / total).to(out_ptr.dtype.element_ty), mask=dims < D)


@triton.jit
def _prefill(  # noqa: PLR0913
    q_ptr, k_ptr, v_ptr, ks_ptr, vs_ptr, tables, tiles, out_ptr, table_stride, window, scale,
    HEADS: tl.constexpr, KEYS: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, GP: tl.constexpr, QUERIES: tl.constexpr,
    TILE: tl.constexpr, FP8: tl.constexpr, WINDOWED: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """Up to QUERIES consecutive queries of one prompt, all heads of one key head. tiles: int32 [N, 4], see tiling."""
    tile, head = tl.program_id(0), tl.program_id(1)
    group: tl.constexpr = HEADS // KEYS
    row = tl.load(tiles + tile * 4).to(tl.int64)
    begin = tl.load(tiles + tile * 4 + 1)
    position = tl.load(tiles + tile * 4 + 2)
    count = tl.load(tiles + tile * 4 + 3)
    lines = tl.arange(0, QUERIES * GP)
    query, member = lines // GP, lines % GP
    dims = tl.arange(0, DP)
    seen = ((query < count) & (member < group))[:, None] & (dims < D)[None, :]
    places = ((begin + query).to(tl.int64) * HEADS + head * group + member)[:, None] * D + dims[None, :]
    q = tl.load(q_ptr + places, mask=seen, other=0.0)
    q = (q.to(tl.float32) * scale).to(tl.float16 if FP8 else q_ptr.dtype.element_ty)
    at = position + query
    last = position + count
    first = 0
    if WINDOWED:
        first = tl.maximum(position - window + 1, 0) // TILE * TILE
    # Up to here every query sees every key, unless a window ends before it.
    whole = tl.maximum((position + 1) // TILE * TILE, first)
    peak = tl.full([QUERIES * GP], float("-inf"), tl.float32)
    total = tl.zeros([QUERIES * GP], tl.float32)
    acc = tl.zeros([QUERIES * GP, DP], tl.float32)
    table = tables + row * table_stride
    acc, peak, total = _walk(
        q, acc, peak, total, k_ptr, v_ptr, ks_ptr, vs_ptr, table, head, at, first, whole, window,
        KEYS, D, DP, TILE, FP8, False, WINDOWED, EXACT,
    )  # fmt: skip
    acc, peak, total = _walk(
        q, acc, peak, total, k_ptr, v_ptr, ks_ptr, vs_ptr, table, head, at, whole, last, window,
        KEYS, D, DP, TILE, FP8, True, WINDOWED, EXACT,
    )  # fmt: skip
    acc = acc / tl.where(total == 0, 1.0, total)[:, None]
    tl.store(out_ptr + places, acc.to(out_ptr.dtype.element_ty), mask=seen)


@dataclass(frozen=True)
class Paged:
    """Where the keys and values of one layer lie. Scales are those of an 8-bit cache, else None."""

    keys: Tensor
    """[lines, K * D]."""
    values: Tensor
    key_scales: Tensor | None
    value_scales: Tensor | None
    heads: int
    """K."""
    size: int
    """D."""


def splits(longest: int, sequences: int, key_heads: int, processors: int) -> tuple[int, int]:
    """Keys of one split, and the power of two of splits that covers `longest` keys."""
    keys = SPLIT if sequences * key_heads >= 4 * processors else SPLIT_SMALL
    return keys, triton.next_power_of_2(max(1, -(-longest // keys)))


def decode(
    q: Tensor, paged: Paged, tables: Tensor, rows: Tensor, positions: Tensor, out: Tensor,
    *, scale: float, window: int | None, split: int, parts: int,
) -> None:  # fmt: skip
    """Attend one query a sequence, all keys up to its own position, into `out` [B, H, D].

    q: [B, H, D]; tables: int32 [rows, blocks], the blocks of each row; rows: int64 [B], each sequence's row;
    positions: int64 [B]; window: keys less than that many positions away. `split` and `parts`: of `splits`.
    """
    count, heads, size = q.shape
    scales = (paged.key_scales, paged.value_scales) if paged.key_scales is not None else (paged.keys, paged.values)
    part = lse = out
    if parts > 1:
        part = torch.empty(parts, count, heads, size, dtype=torch.float32, device=q.device)
        lse = torch.empty(parts, count, heads, dtype=torch.float32, device=q.device)
    padded = triton.next_power_of_2(size)
    _decode[(count, paged.heads, parts)](
        q, paged.keys, paged.values, *scales, tables, rows, positions, out, part, lse,
        tables.stride(0), window or 0, scale * _LOG2E,
        HEADS=heads, KEYS=paged.heads, D=size, DP=padded, GP=max(16, triton.next_power_of_2(heads // paged.heads)),
        TILE=_tile(q, padded, 64), SPLIT=split, SPLITS=parts, FP8=paged.key_scales is not None,
        WINDOWED=window is not None, EXACT=q.dtype == torch.float32, num_warps=4, num_stages=3,
    )  # fmt: skip
    if parts > 1:
        _merge[(count * heads,)](part, lse, out, count * heads, D=size, DP=padded, SPLITS=parts, num_warps=1)


def queries(heads: int, key_heads: int, dtype: torch.dtype) -> int:
    """How many queries of a prompt one program of `prefill` takes."""
    lines = 32 if dtype == torch.float32 else 128
    return max(1, lines // triton.next_power_of_2(heads // key_heads))


def tiling(rows: np.ndarray, starts: np.ndarray, counts: np.ndarray, begin: int, width: int) -> np.ndarray:
    """int32 [N, 4]: row, first packed token, its position and number of queries of each tile of `width` queries.

    rows, starts, counts: int64 [C], the row, first position and length of each chunk; chunks are packed one behind the
    other from token `begin`. The tiles with most keys come first, so that none is left alone at the end.
    """
    number = -(-counts // width)
    chunk = np.repeat(np.arange(len(counts)), number)
    offset = (np.arange(len(chunk)) - np.repeat(np.cumsum(number) - number, number)) * width
    packed = begin + np.cumsum(counts) - counts
    tiles = np.stack(
        [rows[chunk], packed[chunk] + offset, starts[chunk] + offset, np.minimum(counts[chunk] - offset, width)], 1
    )
    return tiles[np.argsort(-tiles[:, 2], kind="stable")].astype(np.int32)


def prefill(
    q: Tensor, paged: Paged, tables: Tensor, tiles: Tensor, out: Tensor, *, scale: float, window: int | None
) -> None:
    """Attend chunks of prompts, whose keys are in the cache already, into `out` [T, H, D]. tiles: of `tiling`."""
    _, heads, size = q.shape
    scales = (paged.key_scales, paged.value_scales) if paged.key_scales is not None else (paged.keys, paged.values)
    padded = triton.next_power_of_2(size)
    group = triton.next_power_of_2(heads // paged.heads)
    exact = q.dtype == torch.float32
    _prefill[(len(tiles), paged.heads)](
        q, paged.keys, paged.values, *scales, tables, tiles, out, tables.stride(0), window or 0, scale * _LOG2E,
        HEADS=heads, KEYS=paged.heads, D=size, DP=padded, GP=group, QUERIES=queries(heads, paged.heads, q.dtype),
        TILE=_tile(q, padded, 64), FP8=paged.key_scales is not None, WINDOWED=window is not None, EXACT=exact,
        num_warps=4, num_stages=2,
    )  # fmt: skip


def _tile(q: Tensor, padded: int, keys: int) -> int:
    """Keys of a tile: fewer where a line is wide, to stay within the shared memory of a program."""
    return keys if padded * q.element_size() <= 256 else max(16, keys * 256 // (padded * q.element_size()))
