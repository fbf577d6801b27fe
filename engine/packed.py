"""Attention over a pack: a prompt sees itself and the stem before it, never its neighbours, and no KV cache is kept.

On CPU, and for what the flash kernels cannot do, prompts of equal length go through scaled_dot_product_attention as one
batch without padding, and masks are made for a bounded block of queries at a time. On CUDA in half precision all
prompts go through one variable-length flash kernel; the stem, the bodies and the trie nodes are then separate calls
over contiguous tokens, so that no key is copied, and their results are merged by log-sum-exp (cascade attention,
https://flashinfer.ai/2024/02/02/cascade-inference.html).

The layout is packing.py's; positions, dtypes and the rest of the forward pass are left to the engines.
Legend of shapes: T tokens, H query heads, K key heads, D head size, n prompts, S stem, L body length, N trie nodes.
"""

from __future__ import annotations

from functools import cached_property
from inspect import signature
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from engine.packing import Group, Pack

# Queries that share one mask: its memory is this many times the keys.
MASK_QUERIES = 1024

HALF = (torch.bfloat16, torch.float16)


def upload(array: np.ndarray, device: torch.device) -> Tensor:
    """The array on `device`, without waiting for the work that is queued there."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


class PackedAttention:
    """The attention backend of one pack's forward pass."""

    def __init__(self, pack: Pack, device: torch.device) -> None:
        self.pack = pack
        self.device = device

    def attend(
        self, _layer: int, q: Tensor, k: Tensor, v: Tensor, *, scale: float, causal: bool, window: int | None
    ) -> Tensor:
        """q [H, T, D], k and v [K, T, D] -> [T, H, D]. With a window, tokens less than that many positions away."""
        shares = self.pack.stem > 0 or self.pack.trie is not None
        assert causal or not shares, "only causal attention can share a stem or hold a trie"
        # Under autocast, rotary embeddings leave float32 while the projections give the lower precision.
        q, k = q.to(v.dtype), k.to(v.dtype)
        if window is not None and window >= self.pack.reach:
            window = None
        size = v.shape[-1]
        if q.is_cuda and v.dtype in HALF and size % 8 == 0 and size <= 256 and not (window and shares):
            return self._flash(q.transpose(0, 1), k.transpose(0, 1), v.transpose(0, 1), scale, causal, window)
        return self._batches(q, k, v, scale, causal, window)

    def _batches(self, q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool, window: int | None) -> Tensor:
        """One call for each run of prompts of equal length, and one for their trie nodes."""
        pack, stem = self.pack, self.pack.stem
        out = q.new_empty(q.shape[1], q.shape[0], v.shape[2])
        if stem:
            first = _attend(q[None, :, :stem], k[None, :, :stem], v[None, :, :stem], scale, causal, window)
            out[:stem] = first[0].transpose(0, 1)
        for group in pack.groups:
            body = slice(group.start, group.start + group.count * group.length)
            keys, values = _batch(k[:, body], group.count), _batch(v[:, body], group.count)
            if stem:
                keys = torch.cat([k[:, :stem].expand(group.count, -1, -1, -1), keys], 2)
                values = torch.cat([v[:, :stem].expand(group.count, -1, -1, -1), values], 2)
            part = _attend(_batch(q[:, body], group.count), keys, values, scale, causal, window)
            out[body] = part.transpose(1, 2).flatten(0, 1)
            if pack.trie:
                begin = pack.starts[-1] + group.first * pack.nodes
                nodes = slice(begin, begin + group.count * pack.nodes)
                keys = torch.cat([keys, _batch(k[:, nodes], group.count)], 2)
                values = torch.cat([values, _batch(v[:, nodes], group.count)], 2)
                seen = self._node_mask(group, window)
                part = _sdpa(_batch(q[:, nodes], group.count), keys, values, scale, mask=seen)
                out[nodes] = part.transpose(1, 2).flatten(0, 1)
        return out

    def _node_mask(self, group: Group, window: int | None) -> Tensor:
        """bool [N, S + L + N]: what the trie nodes behind a prompt of this group see."""
        length = self.pack.stem + group.length
        seen = torch.cat([self._ancestors.new_ones(self.pack.nodes, length), self._ancestors], 1)
        if window is not None:
            at = torch.cat([torch.arange(length, device=self.device), length + self._depths])
            seen &= length + self._depths[:, None] - at < window
        return seen

    @cached_property
    def _ancestors(self) -> Tensor:
        """bool [N, N]: which nodes see which."""
        assert self.pack.trie
        return upload(self.pack.trie.ancestors(), self.device)

    @cached_property
    def _depths(self) -> Tensor:
        """int64 [N]: depth of each node."""
        assert self.pack.trie
        return upload(np.array(self.pack.trie.depths, np.int64), self.device)

    def _flash(self, q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool, window: int | None) -> Tensor:
        """q [T, H, D], k and v [T, K, D] -> [T, H, D]. Windows come without stem and nodes."""
        pack, stem, last = self.pack, self.pack.stem, self.pack.starts[-1]
        bodies, most = self._starts(np.array(pack.starts) - stem), pack.bodies[0]
        left = window - 1 if window else -1
        sides = (left, 0 if causal else left)
        out, lse = _varlen(q[stem:last], k[stem:last], v[stem:last], bodies, bodies, most, most, scale, sides)
        if pack.trie:
            nodes = self._starts(np.arange(len(pack.prompts) + 1) * pack.nodes)
            above = _varlen(q[last:], k[stem:last], v[stem:last], nodes, bodies, pack.nodes, most, scale)
            among = self._among_nodes(q[last:], k[last:], v[last:], scale)
            node_out, node_lse = _merge(above, among)
            out, lse = torch.cat([out, node_out]), torch.cat([lse, node_lse], 1)
        if not stem:
            return out
        rest = len(q) - stem
        own, others = self._starts(np.array([0, stem])), self._starts(np.array([0, rest]))
        first, _ = _varlen(q[:stem], k[:stem], v[:stem], own, own, stem, stem, scale, (-1, 0))
        before = _varlen(q[stem:], k[:stem], v[:stem], others, own, rest, stem, scale)
        return torch.cat([first, _merge((out, lse), before)[0]])

    def _among_nodes(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """Trie nodes over those of their own prompt, q [n N, H, D]: [n N, H, D] and log-sum-exp, float32 [H, n N]."""
        count, repeat = len(self.pack.prompts), q.shape[1] // k.shape[1]
        q, k, v = (x.reshape(count, -1, *x.shape[1:]).transpose(1, 2) for x in (q, k, v))
        k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
        weights = (q @ k.transpose(2, 3)).float().mul_(scale).masked_fill_(~self._ancestors, -torch.inf)
        lse = weights.logsumexp(3, keepdim=True)
        out = (weights - lse).exp_().to(v.dtype) @ v
        return out.transpose(1, 2).flatten(0, 1), lse.transpose(0, 1).flatten(1)

    def _starts(self, starts: np.ndarray) -> Tensor:
        """int32 on the device, made once a pack: the lengths are equal in all layers."""
        key = starts.tobytes()
        if key not in self._made:
            self._made[key] = upload(starts.astype(np.int32), self.device)
        return self._made[key]

    @cached_property
    def _made(self) -> dict[bytes, Tensor]:
        return {}


def _batch(x: Tensor, count: int) -> Tensor:
    """[H, n L, D] as a batch [n, H, L, D], without a copy."""
    return x.view(x.shape[0], count, -1, x.shape[2]).transpose(0, 1)


def _attend(q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool, window: int | None) -> Tensor:
    """Queries [n, H, L, D] at the last L positions of keys [n, K, S + L, D] -> [n, H, L, D]."""
    keys, before = k.shape[2], k.shape[2] - q.shape[2]
    if window is None and (before == 0 or not causal):
        return _sdpa(q, k, v, scale, causal=causal)
    parts = []
    for start in range(0, q.shape[2], MASK_QUERIES):
        block = q[:, :, start : start + MASK_QUERIES]
        first, end = before + start, before + start + block.shape[2]
        low = max(0, first - window + 1) if window else 0
        high = end if causal else min(keys, end - 1 + window) if window else keys
        apart = torch.arange(first, end, device=q.device)[:, None] - torch.arange(low, high, device=q.device)
        seen = apart >= 0 if causal else torch.ones_like(apart, dtype=torch.bool)
        if window:
            seen &= apart.abs() < window
        parts.append(_sdpa(block, k[:, :, low:high], v[:, :, low:high], scale, mask=seen))
    return torch.cat(parts, 2)


def _sdpa(q: Tensor, k: Tensor, v: Tensor, scale: float, *, causal: bool = False, mask: Tensor | None = None) -> Tensor:
    """torch's attention. Its CPU kernel takes grouped key heads with a mask, its CUDA ones need them repeated."""
    repeat = q.shape[1] // k.shape[1]
    if q.is_cuda and repeat > 1:
        k, v, repeat = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1), 1
    return scaled_dot_product_attention(q, k, v, mask, is_causal=causal, scale=scale, enable_gqa=repeat > 1)


def _varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_starts: Tensor,
    k_starts: Tensor,
    q_most: int,
    k_most: int,
    scale: float,
    sides: tuple[int, int] = (-1, -1),
) -> tuple[Tensor, Tensor]:
    """Flash attention over unequal lengths -> [T, H, D] and log-sum-exp, float32 [H, T]; sides: reach left, right."""
    from torch.nn.attention.varlen import AuxRequest, varlen_attn

    # torch 2.11 takes grouped key heads unasked, later versions want to be told.
    grouped: dict[str, Any] = {"enable_gqa": True} if "enable_gqa" in signature(varlen_attn).parameters else {}
    aux = AuxRequest(lse=True)
    result = varlen_attn(
        q, k, v, q_starts, k_starts, q_most, k_most, return_aux=aux, scale=scale, window_size=sides, **grouped
    )
    assert isinstance(result, tuple)
    return result


def _merge(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Attention over the union of two disjoint sets of keys, from output and log-sum-exp of each."""
    lse = torch.logaddexp(one[1], other[1])
    one_share, other_share = ((part[1] - lse).exp().transpose(0, 1)[:, :, None] for part in (one, other))
    return (one[0] * one_share + other[0] * other_share).to(one[0].dtype), lse
