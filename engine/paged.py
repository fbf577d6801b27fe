"""The paged KV cache and attention over it, with torch operations that run on any device.

Keys and values of a layer lie in one tensor each, a line per position: position p of a sequence is line
`blocks[p // size] * size + p % size`. A forward pass first writes the lines of its own tokens, then attends, so a
sequence may read blocks that a neighbour fills in the same pass. Decoding rows are attended in groups of similar
length: one gather by block table and one scaled_dot_product_attention call for a group, small enough to stay in cache.
Prompt chunks take one call each.

Block 0 belongs to nobody and stays zero: it pads block tables, since a masked value that is NaN would still spoil the
sum. For the same reason the blocks of a sequence that produced NaN are cleared before they are used again.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from engine.step import Chunk

BLOCK = 16
"""KV positions of a block."""

NULL_BLOCK = 0

_SCALE = torch.float32

# Keys gathered at a time, in bytes: a few of these fit into a core's share of the cache.
_GATHER_BYTES = 1 << 20
# Queries of a chunk that share one mask.
_MASK_QUERIES = 1024


@dataclass(frozen=True)
class LayerShape:
    """What one layer stores for a position."""

    heads: int
    key_size: int
    value_size: int
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        """Bytes of a position."""
        scales = 2 * _SCALE.itemsize if self.scaled else 0
        return self.heads * ((self.key_size + self.value_size) * self.dtype.itemsize + scales)

    @property
    def scaled(self) -> bool:
        """Whether each position and head has a scale, because 8 bits alone have too small a range."""
        return self.dtype.itemsize == 1


class PagedKV:
    """The KV cache of all layers: `blocks` blocks, the null block before them and a scratch block behind them."""

    def __init__(self, layers: dict[int, LayerShape], blocks: int, device: torch.device) -> None:
        self.device = device
        self.layers = layers
        self.scratch = 0
        """The block that rows which only fill up a batch write to."""
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}
        self.key_scales: dict[int, Tensor] = {}
        self.value_scales: dict[int, Tensor] = {}
        self.allocate(blocks)

    def allocate(self, blocks: int) -> None:
        """Make place for `blocks` blocks; what was stored is lost."""
        for part in (self.keys, self.values, self.key_scales, self.value_scales):
            part.clear()
        self.scratch = blocks + 1
        lines, device = (blocks + 2) * BLOCK, self.device
        for i, shape in self.layers.items():
            self.keys[i] = _zeros(lines, shape.heads * shape.key_size, shape.dtype, device)
            self.values[i] = _zeros(lines, shape.heads * shape.value_size, shape.dtype, device)
            if shape.scaled:
                # Line b * K + h holds the scales of block b and head h: those that a kernel reads at a time.
                self.key_scales[i] = _zeros((blocks + 2) * shape.heads, BLOCK, _SCALE, device)
                self.value_scales[i] = _zeros((blocks + 2) * shape.heads, BLOCK, _SCALE, device)

    @property
    def stores(self) -> list[Tensor]:
        """Every tensor of the cache; viewed as [blocks, -1], a line of each is a block."""
        parts = (self.keys, self.values, self.key_scales, self.value_scales)
        return [store for part in parts for store in part.values()]

    def write(self, layer: int, lines: Tensor, k: Tensor, v: Tensor) -> None:
        """Store k and v [K, T, D] at `lines` int64 [T]."""
        for store, scales, new in (
            (self.keys[layer], self.key_scales.get(layer), k),
            (self.values[layer], self.value_scales.get(layer), v),
        ):
            rows = new.transpose(0, 1)
            if scales is not None:
                scale = rows.abs().amax(-1).float().clamp_(min=1e-12) / torch.finfo(store.dtype).max
                scales.view(-1, scale.shape[1], BLOCK)[lines // BLOCK, :, lines % BLOCK] = scale
                rows = rows / scale[..., None]
            _bits(store).index_copy_(0, lines, _bits(rows.flatten(1).to(store.dtype)))

    def read(self, layer: int, blocks: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Keys and values of `blocks` int64 [N], each [N * BLOCK, K, D] in `dtype`."""
        shape = self.layers[layer]
        found = []
        for store, scales, size in (
            (self.keys[layer], self.key_scales.get(layer), shape.key_size),
            (self.values[layer], self.value_scales.get(layer), shape.value_size),
        ):
            rows = _gather(store, blocks).view(-1, shape.heads, size).to(dtype)
            if scales is not None:
                scale = scales.view(-1, shape.heads, BLOCK)[blocks].transpose(1, 2).reshape(-1, shape.heads, 1)
                rows = rows * scale.to(dtype)
            found.append(rows)
        return found[0], found[1]

    def clear(self, blocks: Seq[int]) -> None:
        """Zero these blocks in every layer."""
        index = torch.tensor(blocks, dtype=torch.int64, device=self.device)
        for store in self.stores:
            _bits(store).view(self.scratch + 1, -1).index_fill_(0, index, 0)

    def save(self, blocks: Seq[int]) -> list[Tensor]:
        """A copy of these blocks on the host, each tensor [len(blocks), bytes]; the device is not waited for."""
        index = torch.tensor(blocks, dtype=torch.int64).to(self.device)
        saved = []
        for store in self.stores:
            lines = store.view(torch.uint8).view(self.scratch + 1, -1).index_select(0, index)
            if lines.is_cuda:
                host = torch.empty(lines.shape, dtype=lines.dtype, pin_memory=True)
                lines = host.copy_(lines, non_blocking=True)
            saved.append(lines)
        return saved

    def restore(self, blocks: Seq[int], saved: Seq[Tensor]) -> None:
        """Write what `save` gave to these blocks; it may be sliced."""
        index = torch.tensor(blocks, dtype=torch.int64).to(self.device)
        for store, lines in zip(self.stores, saved, strict=True):
            store.view(torch.uint8).view(self.scratch + 1, -1).index_copy_(
                0, index, lines.to(self.device, non_blocking=True)
            )


def _zeros(lines: int, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    if device.type != "cpu":
        return torch.zeros(lines, width, dtype=dtype, device=device)
    # Unlike torch, numpy leaves pages that were never written to the kernel: an unused pool costs no memory.
    return torch.from_numpy(np.zeros((lines, width * dtype.itemsize), np.uint8)).view(dtype)


def _bits(store: Tensor) -> Tensor:
    """8-bit floats as bytes, which every indexing operation can move."""
    return store.view(torch.uint8) if store.dtype.itemsize == 1 else store


def _gather(store: Tensor, blocks: Tensor) -> Tensor:
    # One long line a block: index_select copies lines, and is slow for tensors of more dimensions.
    lines = _bits(store).view(-1, BLOCK * store.shape[1]).index_select(0, blocks)
    return lines.view(store.dtype)


class PagedAttention:
    """The attention backend of one step: decoding rows first, longest first, then the chunks."""

    def __init__(self, kv: PagedKV, tables: Tensor, lengths: np.ndarray, chunks: Seq[Chunk], lines: Tensor) -> None:
        """tables: int64 [B, N], blocks of the decoding rows padded with the null block; lengths: int64 [B], KV
        positions of each, its own token included; lines: int64 [T], where the step's tokens are stored."""
        self._kv = kv
        self._lines = lines
        self._chunks = chunks
        self._blocks = [
            torch.tensor(chunk.sequence.blocks[: -(-chunk.stop // BLOCK)], device=kv.device) for chunk in chunks
        ]
        self._lengths = torch.from_numpy(lengths).to(kv.device)
        self._tables = tables
        self._groups = _groups(lengths, kv)
        self._gathers = [tables[rows, :width].flatten() for rows, width in self._groups]
        self._masks: dict[tuple[int, int | None, torch.dtype], Tensor] = {}

    def attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, /, *, scale: float, causal: bool, window: int | None
    ) -> Tensor:
        """q [H, T, D], k and v [K, T, D] -> [T, H, D]; see engine.attention."""
        if not causal:
            raise ValueError("this model attends in both directions; it cannot generate")
        # Under autocast, rotary embeddings leave float32 while the projections give the lower precision.
        q, k = q.to(v.dtype), k.to(v.dtype)
        self._kv.write(layer, self._lines, k, v)
        out = v.new_empty(q.shape[1], q.shape[0], v.shape[2])
        for index in range(len(self._groups)):
            self._decode(index, layer, q, out, scale, window)
        start = len(self._lengths)
        for chunk, blocks in zip(self._chunks, self._blocks, strict=True):
            own = slice(start, start + chunk.stop - chunk.start)
            if chunk.start:
                keys, values = self._kv.read(layer, blocks, v.dtype)
                keys, values = keys[: chunk.stop].transpose(0, 1), values[: chunk.stop].transpose(0, 1)
            else:
                keys, values = k[:, own], v[:, own]
            out[own] = _prefill(q[:, own], keys, values, scale, window)
            start = own.stop
        return out

    def _decode(self, index: int, layer: int, q: Tensor, out: Tensor, scale: float, window: int | None) -> None:
        """Attend one group of decoding rows into `out` [T, H, D]."""
        rows, width = self._groups[index]
        count = rows.stop - rows.start
        k, v = self._kv.read(layer, self._gathers[index], q.dtype)
        k = k.view(count, width * BLOCK, *k.shape[1:]).transpose(1, 2)
        v = v.view(count, width * BLOCK, *v.shape[1:]).transpose(1, 2)
        # The query heads of a key head stand where a longer query would have its positions.
        queries = q[:, rows].transpose(0, 1).reshape(count, k.shape[1], -1, q.shape[2])
        part = scaled_dot_product_attention(queries, k, v, attn_mask=self._mask(index, window, q.dtype), scale=scale)
        out[rows] = part.reshape(count, q.shape[0], -1)

    def _mask(self, index: int, window: int | None, dtype: torch.dtype) -> Tensor:
        """[B, 1, 1, S]: 0 where a row of the group sees the position, else -inf."""
        found = self._masks.get((index, window, dtype))
        if found is None:
            rows, width = self._groups[index]
            lengths = self._lengths[rows, None]
            at = torch.arange(width * BLOCK, device=lengths.device)
            seen = at < lengths
            if window is not None:
                seen &= at >= lengths - window
            found = torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, float("-inf"))
            found = found[:, None, None]
            self._masks[index, window, dtype] = found
        return found


def _groups(lengths: np.ndarray, kv: PagedKV) -> list[tuple[slice, int]]:
    """Runs of decoding rows, and the blocks to which each run is padded: at most an eighth more than needed."""
    widths = (-(-lengths // BLOCK)).tolist()
    width_bytes = BLOCK * max((shape.bytes for shape in kv.layers.values()), default=1) // 2
    groups = []
    start = 0
    while start < len(widths):
        width = widths[start]
        most = max(1, _GATHER_BYTES // (width * width_bytes))
        stop = start + 1
        while stop < len(widths) and stop - start < most and widths[stop] >= width - max(1, width // 8):
            stop += 1
        groups.append((slice(start, stop), width))
        start = stop
    return groups


def _prefill(q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None) -> Tensor:
    """Attention [T, H, D] of the last T of S positions: q [H, T, D], k and v [K, S, D]."""
    count, length = q.shape[1], k.shape[1]
    k, v = k[None], v[None]
    if count == length and (window is None or window >= length):
        return scaled_dot_product_attention(q[None], k, v, is_causal=True, scale=scale, enable_gqa=True)[0].transpose(
            0, 1
        )
    parts = []
    for start in range(0, count, _MASK_QUERIES):
        part = q[None, :, start : start + _MASK_QUERIES]
        stop = length - count + start + part.shape[2]
        at = torch.arange(stop - part.shape[2], stop, device=q.device)[:, None]
        keys = torch.arange(stop, device=q.device)
        seen = keys <= at
        if window is not None:
            seen &= keys > at - window
        parts.append(
            scaled_dot_product_attention(
                part, k[:, :, :stop], v[:, :, :stop], attn_mask=seen, scale=scale, enable_gqa=True
            )[0].transpose(0, 1)
        )
    return torch.cat(parts)
