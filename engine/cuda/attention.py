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
from torch import Tensor

from engine.cuda.attention_kernels import decode_kernel, merge_kernel, prefill_kernel

_LOG2E = math.log2(math.e)
# Keys that one program of a decode step walks over, and programs of the widest kind that keep a processor busy.
_SPLIT_LEAST = 128
_SPLIT_WIDEST = 2048
_PROGRAMS = 12
_SPLIT_INVARIANT = 512
# Lines of the result that one program merges.
_LINES = 8


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
    """Keys of one split, and the power of two of splits that covers `longest` keys.

    Long splits cost least to merge; short ones give each of the device's processors several programs.
    """
    wanted = sequences * key_heads * _SPLIT_WIDEST // (processors * _PROGRAMS)
    keys = max(_SPLIT_LEAST, min(_SPLIT_WIDEST, 1 << max(0, wanted.bit_length() - 1)))
    parts: int = triton.next_power_of_2(max(1, -(-longest // keys)))
    return keys, parts


def invariant_splits(longest: int) -> tuple[int, int]:
    """The same, for splits that end at the same keys whatever the batch."""
    parts: int = triton.next_power_of_2(max(1, -(-longest // _SPLIT_INVARIANT)))
    return _SPLIT_INVARIANT, parts


def decode(
    q: Tensor, paged: Paged, tables: Tensor, rows: Tensor, positions: Tensor, out: Tensor,
    *, scale: float, window: int | None, split: int, parts: int,
) -> None:  # fmt: skip
    """Attend one query a sequence, all keys up to its own position, into `out` [B, H, D].

    q: [B, H, D]; tables: int32 [rows, blocks], the blocks of each row; rows: int64 [B], each sequence's row;
    positions: int64 [B]; window: keys less than that many positions away. `split` and `parts`: of `splits`.
    """
    count, heads, size = q.shape
    part = lse = out
    if parts > 1:
        part = torch.empty(parts, count, heads, size, dtype=torch.float32, device=q.device)
        lse = torch.empty(parts, count, heads, dtype=torch.float32, device=q.device)
    eight = paged.key_scales is not None
    padded = _padded(size, eight)
    decode_kernel[(count, paged.heads, parts)](
        q, *_stores(paged), tables, rows, positions, part, lse, tables.stride(0), window or 0, scale * _LOG2E, split,
        HEADS=heads, KEYS=paged.heads, D=size, DP=padded, GP=max(16, triton.next_power_of_2(heads // paged.heads)),
        TILE=_tile_keys(q, padded), WHOLE=parts == 1, FP8=eight, WINDOWED=window is not None,
        EXACT=q.dtype == torch.float32 and not eight, ASM=q.is_cuda, num_warps=2, num_stages=2,
    )  # fmt: skip
    if parts > 1:
        grid = (triton.cdiv(count * heads, _LINES),)
        merge_kernel[grid](part, lse, out, count * heads, parts, D=size, DP=padded, LINES=_LINES, num_warps=4)


def queries(heads: int, key_heads: int, dtype: torch.dtype) -> int:
    """How many queries of a prompt one program of `prefill` takes."""
    lines = 32 if dtype == torch.float32 else 128
    width: int = triton.next_power_of_2(heads // key_heads)
    return max(1, lines // width)


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
    q: Tensor, paged: Paged, tables: Tensor, tiles: Tensor, out: Tensor,
    *, scale: float, window: int | None, invariant: bool = False,
) -> None:  # fmt: skip
    """Attend chunks of prompts, whose keys are in the cache already, into `out` [T, H, D].

    tiles: of `tiling`; invariant: whether a query's result is to be the same in whatever chunk it comes.
    """
    _, heads, size = q.shape
    eight = paged.key_scales is not None
    padded = _padded(size, eight)
    exact = q.dtype == torch.float32
    prefill_kernel[(len(tiles), paged.heads)](
        q, *_stores(paged), tables, tiles, out, tables.stride(0), window or 0, scale * _LOG2E,
        HEADS=heads, KEYS=paged.heads, D=size, DP=padded, GP=triton.next_power_of_2(heads // paged.heads),
        QUERIES=queries(heads, paged.heads, q.dtype), TILE=_tile_keys(q, padded), FP8=eight,
        WINDOWED=window is not None, EXACT=exact and not eight, ASM=q.is_cuda, ALIKE=invariant and eight,
        num_warps=4, num_stages=2,
    )  # fmt: skip


def _stores(paged: Paged) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Keys, values and their scales as the kernels take them; without scales, something in their place."""
    if paged.key_scales is None or paged.value_scales is None:
        return paged.keys, paged.values, paged.keys, paged.values
    return paged.keys.view(torch.int16), paged.values.view(torch.int16), paged.key_scales, paged.value_scales


def _padded(size: int, eight: bool) -> int:
    """The power of two that holds a line; pairs of 8-bit numbers must still be enough for the matrix units."""
    power: int = triton.next_power_of_2(size)
    return max(32, power) if eight else power


def _tile_keys(q: Tensor, padded: int) -> int:
    """Keys of a tile: fewer where a line is wide, to stay within the shared memory of a program."""
    width = padded * q.element_size()
    return 64 if width <= 256 else max(16, 64 * 256 // width)
