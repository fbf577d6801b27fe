"""What one forward pass over the paged cache is about: whose tokens, at which positions, and how they attend."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from engine.cuda import attention, elementwise
from engine.cuda.attention import Paged
from engine.cuda.beside import beside
from engine.paged import PagedKV


@dataclass(frozen=True)
class Batch:
    """T packed tokens: one of each of B decoding rows, then chunks of prompts."""

    rows: Tensor
    """int64 [T]: the row of each token."""
    positions: Tensor
    """int64 [T]: its place in its sequence."""
    tables: Tensor
    """int32 [rows, blocks]: the blocks of each row."""
    decoding: int
    """B."""
    split: int
    """Keys that one program of a decode step takes, and how many programs share a sequence."""
    parts: int
    tiles: Tensor | None = None
    """int32 [N, 4], as attention.tiling gives; None without chunks."""
    widened: Widened | None = None
    """Where set, the tables that tiles are about."""
    invariant: bool = False
    """Whether a token's result is to be the same in whatever batch it comes."""


@dataclass(frozen=True)
class Widened:
    """The blocks that the chunks of a batch attend to, which are converted from 8 bits once a layer.

    Many queries share a key in a prompt: converting keys for each of them costs several times the attention.
    """

    blocks: Tensor
    """int32 [N]."""
    tables: Tensor
    """int32 [chunks, blocks]: the blocks of each chunk by their number among these."""


def paged(kv: PagedKV, layer: int) -> Paged:
    """One layer of the cache as the kernels take it; keys and values have heads of one size."""
    shape = kv.layers[layer]
    assert shape.key_size == shape.value_size
    return Paged(
        kv.keys[layer],
        kv.values[layer],
        kv.key_scales.get(layer),
        kv.value_scales.get(layer),
        shape.heads,
        shape.key_size,
    )


def attend(q: Tensor, layer: Paged, batch: Batch, *, scale: float, window: int | None) -> Tensor:
    """Attention [T, H, D] of q [T, H, D] over the cache, which holds the keys of these tokens already."""
    out = torch.empty_like(q)
    if batch.tiles is None:
        _decode(q, layer, batch, out, scale, window)
    elif not batch.decoding:
        _prefill(q, layer, batch, out, scale, window)
    else:
        with beside(q.device) as side:
            with side:
                _decode(q, layer, batch, out, scale, window)
            _prefill(q, layer, batch, out, scale, window)
    return out


def _decode(q: Tensor, layer: Paged, batch: Batch, out: Tensor, scale: float, window: int | None) -> None:
    count = batch.decoding
    attention.decode(
        q[:count], layer, batch.tables, batch.rows, batch.positions, out[:count],
        scale=scale, window=window, split=batch.split, parts=batch.parts,
    )  # fmt: skip


def _prefill(q: Tensor, layer: Paged, batch: Batch, out: Tensor, scale: float, window: int | None) -> None:
    assert batch.tiles is not None
    tables = batch.tables
    if batch.widened is not None:
        layer, tables = elementwise.widen(layer, batch.widened.blocks, q.dtype), batch.widened.tables
    attention.prefill(q, layer, tables, batch.tiles, out, scale=scale, window=window, invariant=batch.invariant)
