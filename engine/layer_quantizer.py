"""One decoder layer quantized: its statistics, the search, what is stored, and how far its output moved.

The layer's inputs are those of the unquantized model, as in the authors' program: so a layer's result depends on no
other's, and a resumed run needs no more than the original weights to go on.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from engine.awq_folds import Fold, find_folds
from engine.awq_search import InputStatistics, ScaleSearch, kept_ranges, rounded_inputs
from engine.layer_stream import Activations, LayerStream
from engine.quantizer_report import LayerReport
from engine.quantizer_schemes import Float8, Int4, Scheme
from engine.quantizer_settings import QuantizerSettings
from engine.team import Team

_Statistics = dict[str, InputStatistics]


@dataclass(frozen=True)
class QuantizedLayer:
    """What became of a layer."""

    tensors: dict[str, Tensor]  # on the host, by their names within the layer
    outputs: list[Tensor]  # [1, T, N] of each pack, on the host: of the layer as it was
    report: LayerReport


class LayerQuantizer:
    """Quantizes the layers of a stream, whose weights are stored in `stored`."""

    def __init__(
        self,
        stream: LayerStream,
        settings: QuantizerSettings,
        scheme: Scheme,
        stored: dict[str, torch.dtype],
        *,
        calibrated: bool,
        team: Team,
    ) -> None:
        """stored: the dtype of each tensor of the model, by its name there.

        calibrated: whether there are rows; the `entries` below are the team member's share of them.
        """
        self._stream, self._settings, self._scheme, self._stored = stream, settings, scheme, stored
        self._calibrated, self._team = calibrated, team

    @torch.no_grad()
    def quantize(self, index: int, entries: Sequence[Activations]) -> QuantizedLayer:
        """Quantize layer `index`, given what enters it; the whole team at a time."""
        started = time.monotonic()
        with self._stream.layer(index) as layer:
            linears = {name: module for name, module in layer.named_modules() if isinstance(module, nn.Linear)}
            seen, outputs = self._observe(index, linears, entries)
            before = self._error(index, linears, {}, seen, entries, outputs)
            folds = 0
            if self._settings.searches:
                self._stream.load(index)
                folds = self._fold(index, seen, entries)
            elif before is not None:
                self._stream.load(index)
            kept = self._kept(linears, seen)
            tensors = self._tensors(index, linears, kept, seen)
            after = self._error(index, linears, kept, seen, entries, outputs) if self._settings.searches else before
        report = LayerReport(
            layer=index,
            error_before=before,
            error_after=after,
            folds=folds,
            linear_bytes_before=sum(
                linear.weight.numel() * self._dtype(index, f"{name}.weight").itemsize
                for name, linear in linears.items()
            ),
            linear_bytes_after=sum(
                tensor.nbytes for name, tensor in tensors.items() if _is_weight(name) and _linear_of(name) in linears
            ),
            bytes_after=sum(tensor.nbytes for tensor in tensors.values()),
            seconds=time.monotonic() - started,
        )
        return QuantizedLayer(tensors, outputs, report)

    def advance(self, index: int, entries: Sequence[Activations]) -> list[Tensor]:
        """What leaves layer `index`, without quantizing it."""
        with self._stream.layer(index) as layer:
            return [self._stream.run(layer, index, entry).cpu() for entry in entries]

    def _observe(
        self, index: int, linears: dict[str, nn.Linear], entries: Sequence[Activations]
    ) -> tuple[_Statistics, list[Tensor]]:
        """Run the layer as it is: statistics of each linear's inputs, and the layer's outputs on the host."""
        group = self._scheme.group if isinstance(self._scheme, Int4) and self._settings.searches else None
        seen, hooks = {}, []
        for name, linear in linears.items():
            seen[name] = InputStatistics(linear.in_features, group, linear.weight.device)
            hooks.append(linear.register_forward_pre_hook(lambda _module, args, s=seen[name]: s.add(args[0])))
        try:
            outputs = self.advance_loaded(index, entries)
        finally:
            for hook in hooks:
                hook.remove()
        for statistics in seen.values():
            statistics.gather(self._team)
        return seen, outputs

    def advance_loaded(self, index: int, entries: Sequence[Activations]) -> list[Tensor]:
        """The outputs of a layer that holds its weights."""
        return [self._stream.run(self._stream.layers[index], index, entry).cpu() for entry in entries]

    def _fold(self, index: int, seen: _Statistics, entries: Sequence[Activations]) -> int:
        """Search each fold's scales and move them, in the order in which the layer computes; the number of folds."""
        layer = self._stream.layers[index]
        folds = self._folds(index, entries)
        search = ScaleSearch(self._stream, index, self._scheme, self._settings, self._team)
        for fold in folds:
            scales = search.scales(fold, seen[fold.consumers[0]].mean, entries)
            moved = fold.apply(layer, scales, self._scheme.dtype)
            for name in fold.consumers:
                seen[name].divide(fold.wide(moved))
        return len(folds)

    def _folds(self, index: int, entries: Sequence[Activations]) -> list[Fold]:
        """The folds that the first of the team has found to do no harm to its first pack."""
        found: list[dict[str, Any]] = []
        if self._team.first:
            layer, probe = self._stream.layers[index], entries[0]
            folds = find_folds(layer, lambda: self._stream.run(layer, index, probe), probe.hidden)
            found = [asdict(fold) for fold in folds]
        return [Fold(**fold | {"consumers": tuple(fold["consumers"])}) for fold in self._team.told(found)]

    def _kept(self, linears: dict[str, nn.Linear], seen: _Statistics) -> dict[str, Tensor]:
        scheme, found = self._scheme, {}
        if isinstance(scheme, Int4):
            for name, linear in linears.items():
                gram = seen[name].gram
                kept = None if gram is None else kept_ranges(name, linear.weight, gram, scheme, self._settings)
                if kept is not None:
                    found[name] = kept
        return found

    def _tensors(
        self, index: int, linears: dict[str, nn.Linear], kept: dict[str, Tensor], seen: _Statistics
    ) -> dict[str, Tensor]:
        """All tensors of the layer as they are to be stored."""
        tensors: dict[str, Tensor] = {}
        for name, tensor in self._stream.layers[index].state_dict().items():
            linear = name.removesuffix(".weight")
            if linear in linears and linear != name:
                stored = self._scheme.stored(tensor, kept.get(linear))
                if isinstance(self._scheme, Float8) and self._scheme.static:
                    stored["input_scale"] = self._scheme.input_scale(seen[linear].largest)
                tensors |= {f"{linear}.{part}": value.cpu().contiguous() for part, value in stored.items()}
            else:
                tensors[name] = tensor.to(self._dtype(index, name)).cpu()
        return tensors

    def _error(
        self,
        index: int,
        linears: dict[str, nn.Linear],
        kept: dict[str, Tensor],
        seen: _Statistics,
        entries: Sequence[Activations],
        wanted: Sequence[Tensor],
    ) -> float | None:
        """Round the layer's weights in place; how far its change to the hidden states then is from the exact one."""
        if not self._calibrated:
            return None
        scheme = self._scheme
        for name, linear in linears.items():
            linear.weight.copy_(scheme.rounded(linear.weight, kept.get(name)))
        static = (
            [scheme.input_scale(seen[name].largest).float() for name in linears]
            if isinstance(scheme, Float8) and scheme.static
            else ()
        )
        wrong = exact = 0.0
        for entry, output in zip(entries, wanted, strict=True):
            with rounded_inputs(list(linears.values()), scheme, static=static):
                found = self._stream.run(self._stream.layers[index], index, entry).cpu()
            wrong += (found.float() - output.float()).square().sum().item()
            exact += (output.float() - entry.hidden.float()).square().sum().item()
        wrong, exact = self._team.add(torch.tensor([wrong, exact], dtype=torch.float64)).tolist()
        return float((wrong / max(exact, 1e-30)) ** 0.5)

    def _dtype(self, index: int, name: str) -> torch.dtype:
        return self._stored[f"{self._stream.name(index)}.{name}"]


def _linear_of(name: str) -> str:
    return name.rpartition(".")[0]


def _is_weight(name: str) -> bool:
    return not name.endswith(".bias")
