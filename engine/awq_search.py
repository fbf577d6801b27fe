"""Activation-aware weight quantization: the scales and the ranges with which rounding a layer harms its output least.

Lin et al. 2023, arXiv 2306.00978. Scales: a weight's columns are multiplied by s = m^a, m the mean magnitude of each
input and a from 0 to below 1, so that columns with large inputs are rounded more finely; the a is taken whose rounded
block differs least, in squared error over all calibration tokens, from the block as it was. a = 0 is rounding to
nearest. Ranges: each group's levels may cover less than the group, which rounds the many finer and the few outermost
worse; the error looked at is that of the group's part of the product. Over all tokens it is d G d' for a row's rounding
error d and the Gram matrix G of the group's inputs, so no token is left out and none is needed twice.

Projections to queries and keys keep their whole ranges, as in the authors' program: their products meet in a softmax,
which the error of one projection does not see.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from engine.awq_folds import Fold
from engine.layer_stream import Activations, LayerStream, first
from engine.quantizer_schemes import Int4, Scheme
from engine.quantizer_settings import QuantizerSettings
from engine.team import Team

_UNCLIPPED = ("q_proj", "k_proj", "qkv_proj", "query", "key", "query_key_value", "q_lin", "k_lin")
_LEAST = 1e-4  # of a magnitude: an input that is always zero would give a scale of zero
_ROWS = 512  # of a weight that are clipped at a time


class InputStatistics:
    """What is known of a linear's inputs over the calibration tokens."""

    def __init__(self, inputs: int, group: int | None, device: torch.device) -> None:
        """group: inputs of a group whose Gram matrix is wanted; None for none."""
        self._tokens = 0
        self._total = torch.zeros(inputs, device=device)
        self.largest = torch.zeros((), device=device)
        self.gram = None if group is None else torch.zeros(inputs // group, group, group, device=device)

    def add(self, x: Tensor) -> None:
        """Take in x [..., in]."""
        x = x.detach().reshape(-1, x.shape[-1]).float()
        self._tokens += len(x)
        self._total += x.abs().sum(0)
        self.largest = torch.maximum(self.largest, x.abs().max())
        if self.gram is not None:
            grouped = x.view(len(x), *self.gram.shape[:2]).transpose(0, 1)
            self.gram += grouped.transpose(1, 2) @ grouped

    def gather(self, team: Team) -> None:
        """Have it over the tokens of all of the team."""
        self._tokens = int(team.add(torch.tensor(self._tokens)))
        self._total, self.largest = team.add(self._total), team.largest(self.largest)
        if self.gram is not None:
            self.gram = team.add(self.gram)

    @property
    def mean(self) -> Tensor:
        """[in]: the mean magnitude of each input."""
        return self._total / max(1, self._tokens)

    def divide(self, scales: Tensor) -> None:
        """Have it as if the inputs had been divided by `scales` [in]."""
        self._total /= scales
        if self.gram is not None:
            grouped = scales.view(self.gram.shape[:2])
            self.gram /= grouped[:, :, None] * grouped[:, None, :]


class ScaleSearch:
    """The search for a fold's scales, in one layer of a stream."""

    def __init__(
        self, stream: LayerStream, index: int, scheme: Scheme, settings: QuantizerSettings, team: Team
    ) -> None:
        self._stream, self._index, self._team = stream, index, team
        self._scheme, self._steps = scheme, settings.search_steps
        self._layer = stream.layers[index]

    def scales(self, fold: Fold, magnitudes: Tensor, entries: Sequence[Activations]) -> Tensor:
        """The scales [channels] for the fold; magnitudes [in]: the mean ones of its consumers' inputs."""
        candidates = [self._candidate(fold, magnitudes, step / self._steps) for step in range(self._steps)]
        linears = [self._linear(name) for name in fold.consumers]
        weights = [linear.weight.detach().clone() for linear in linears]
        losses = torch.zeros(len(candidates), dtype=torch.float64)
        block = self._layer.get_submodule(fold.block)
        for entry in entries:
            args, kwargs, wanted = self._call_of(block, entry)
            for number, scales in enumerate(candidates):
                wide = fold.wide(scales)
                for linear, weight in zip(linears, weights, strict=True):
                    scaled = self._scheme.rounded(weight.float() * wide)
                    linear.weight.copy_(scaled / wide)
                with self._stream.attention(entry), rounded_inputs(linears, self._scheme, wide):
                    found = first(block(*args, **kwargs))
                losses[number] += (found.float() - wanted.float()).square().sum().item()
            for linear, weight in zip(linears, weights, strict=True):
                linear.weight.copy_(weight)
        return candidates[int(self._team.add(losses).nan_to_num(torch.inf).argmin())]

    def _linear(self, name: str) -> nn.Linear:
        found = self._layer.get_submodule(name)
        assert isinstance(found, nn.Linear)
        return found

    def _candidate(self, fold: Fold, magnitudes: Tensor, exponent: float) -> Tensor:
        scales = fold.narrow(magnitudes).clamp(min=_LEAST).pow(exponent)
        return scales / (scales.max() * scales.min()).sqrt()

    def _call_of(self, block: nn.Module, entry: Activations) -> tuple[tuple[Any, ...], dict[str, Any], Tensor]:
        """What the block is called with for a pack, and what it gives."""
        calls: list[tuple[tuple[Any, ...], dict[str, Any], Tensor]] = []

        def note(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            calls.append((args, kwargs, first(output)))

        hook = block.register_forward_hook(note, with_kwargs=True)
        try:
            self._stream.run(self._layer, self._index, entry)
        finally:
            hook.remove()
        assert len(calls) == 1, "a block runs once a forward pass"
        return calls[0]


def kept_ranges(name: str, weight: Tensor, gram: Tensor, scheme: Int4, settings: QuantizerSettings) -> Tensor | None:
    """[out, groups]: the share of its range that each group of `weight` [out, in] is best rounded in.

    `gram` [groups, group, group] is that of the linear's inputs. None where all are kept whole.
    """
    if settings.clip_steps == 0 or name.rpartition(".")[2] in _UNCLIPPED:
        return None
    shares = [1 - step / settings.clip_steps for step in range(int(settings.clip_most * settings.clip_steps) + 1)]
    kept = []
    for start in range(0, len(weight), _ROWS):
        grouped = scheme.grouped(weight[start : start + _ROWS])
        best = grouped.new_full(grouped.shape[:2], torch.inf)
        share_of = torch.ones_like(best)
        for share in shares:
            rounded = scheme.rounded_groups(grouped, torch.full_like(best, share))
            error = rounded.sub_(grouped).transpose(0, 1)  # [groups, rows, group]
            loss = (error @ gram).mul_(error).sum(-1).t()
            share_of = torch.where(loss < best, share, share_of)
            best = torch.minimum(loss, best)
        kept.append(share_of)
    return torch.cat(kept)


@contextmanager
def rounded_inputs(
    linears: Sequence[nn.Linear], scheme: Scheme, wide: Tensor | None = None, static: Sequence[Tensor | None] = ()
) -> Iterator[None]:
    """The linears round what they are given as the scheme does, after a division by `wide` [in], which is taken back.

    static: the fixed scale of each linear, where they have one.
    """

    def hook_of(scale: Tensor | None) -> Any:
        def hook(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            x = args[0]
            if wide is None:
                return (scheme.rounded_input(x, scale), *args[1:])
            return ((scheme.rounded_input(x.float() / wide, scale) * wide).to(x.dtype), *args[1:])

        return hook

    if scheme.inputs() is None:
        yield
        return
    scales = static or [None] * len(linears)
    hooks = [linear.register_forward_pre_hook(hook_of(s)) for linear, s in zip(linears, scales, strict=True)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
