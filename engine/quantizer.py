"""Quantizing a checkpoint: a model folder in, a folder that transformers, vLLM and this engine load out.

    Quantizer(path, quant_method="awq", bits=4, group_size=128, calibration=rows).apply()

The weights of the decoder layers' linears are rounded, layer by layer (engine.layer_stream, engine.layer_quantizer);
embeddings, norms and the head stay in the dtype they have. Each layer is a shard that is kept once it is written
(engine.quantized_writer), so the same call after a kill goes on where it stopped, and writes the same bytes. Where the
calibration rows come from, and how good the model still is, is left to the caller.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from engine.layer_quantizer import LayerQuantizer
from engine.layer_stream import Activations, LayerStream
from engine.model import resolve_dtype
from engine.packing import pack
from engine.pruning import mlp
from engine.quantized_writer import QuantizedWriter
from engine.quantizer_report import LayerReport, QuantizationReport
from engine.quantizer_schemes import Scheme, scheme_of
from engine.quantizer_settings import QuantizerSettings
from engine.team import Team
from engine.weights import DTYPES, checkpoint_files, open_weights

Progress = Callable[[LayerReport, int], None]
"""Told of each layer that is durable, and of how many there are."""

_FLOATS = (torch.bfloat16, torch.float16, torch.float32)


@dataclass(frozen=True)
class _Work:
    """A checked model that is about to be quantized."""

    files: Sequence[str]
    dtype: torch.dtype
    stream: LayerStream
    scheme: Scheme
    layers: LayerQuantizer
    bytes: int
    """Of all the model's tensors."""


class Quantizer:
    """Quantizes the model in the folder `model_path`.

    Raises ValueError, naming what is wrong and what would do, for settings that are not supported, for rows that are
    missing or hold ids beyond the vocabulary, for a model that is quantized already or of an architecture that cannot
    be, and for layers that the groups do not divide or that cannot be pruned.
    """

    def __init__(
        self,
        model_path: str | Path,
        quant_method: str = "awq",
        bits: int = 4,
        group_size: int = 128,
        *,
        calibration: Sequence[np.ndarray] = (),
        output: str | Path | None = None,
        device: torch.device | None = None,
        progress: Progress | None = None,
        team: Team | None = None,
        **settings: Any,
    ) -> None:
        """calibration: token ids, a 1-D array a row. output: a folder, beside the model if not named.

        team: the processes that share the rows, of which all are given; this one alone if not named.
        settings: the others of QuantizerSettings.
        """
        self.settings = QuantizerSettings.model_validate(
            {"quant_method": quant_method, "bits": bits, "group_size": group_size} | settings
        )
        self._folder = Path(model_path)
        name = f"{self._folder.resolve().name}-{self.settings.label}"
        self.output = self._folder.resolve().with_name(name) if output is None else Path(output).absolute()
        self._rows = [np.asarray(row) for row in calibration]
        self._device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if self._device.type == "cuda" and self._device.index is None:
            self._device = torch.device("cuda", torch.cuda.current_device())
        self._progress = progress
        self._team = team or Team()
        self._config = self._read_config()

    def apply(self) -> QuantizationReport:
        """Quantize and write the output, which is there only when it is whole; for the first of the team."""
        started = time.monotonic()
        work = self._begin()
        layers = len(work.stream.layers)
        with QuantizedWriter(self.output, layers + 1, self._identity(work.files, work.dtype)) as writer:
            reports = list(self._layers(work, writer))
            rest = writer.finished(layers)
            if rest is None:
                rest = self._write_rest(work, writer)
            config = self._config | {"quantization_config": work.scheme.config(_untouched(work.stream))}
            report = QuantizationReport(
                output=str(self.output),
                layers=tuple(reports),
                bytes_before=work.bytes,
                bytes_after=sum(report.bytes_after for report in reports) + rest["bytes"],
                seconds=time.monotonic() - started,
            )
            writer.publish(self._folder, config, report.model_dump(mode="json"))
        return report

    def assist(self) -> None:
        """Run the share of the rows that is this team member's, for the first, which writes."""
        list(self._layers(self._begin(), None))

    def _begin(self) -> _Work:
        """Check the model and the rows. ValueError for what cannot be done."""
        files = checkpoint_files(str(self._folder), local_files_only=True)
        dtype = resolve_dtype("auto", self._device)
        stream = LayerStream(self._folder, files, dtype=dtype, device=self._device)
        self._check_rows(stream)
        shapes, stored = _tensors(files, stream)
        scheme = scheme_of(self.settings, _check_linears(stream, stored, self.settings))
        if self.settings.prunes:
            self._check_mlps(stream)
        calibrated = bool(self._rows)
        layers = LayerQuantizer(stream, self.settings, scheme, stored, calibrated=calibrated, team=self._team)
        return _Work(files, dtype, stream, scheme, layers, sum(shapes.values()))

    def _layers(self, work: _Work, writer: QuantizedWriter | None) -> Iterator[LayerReport]:
        """Quantize every layer that is not there yet; the first of the team has the writer, which knows."""
        stream = work.stream
        done = self._team.told([writer.finished(index) for index in range(len(stream.layers))] if writer else [])
        last = max((index for index, said in enumerate(done) if said is None), default=-1)
        entries: list[Activations] = []
        if self._rows and last >= 0:
            # A stable order, and no stem, so that each token counts as often as it is there.
            entries = stream.enter(self._team.share(list(pack(self._rows, self.settings.batch_tokens))))
        for index, said in enumerate(done):
            outputs = []
            if said is not None:
                report = LayerReport.model_validate(said)
                if index < last:
                    outputs = work.layers.advance(index, entries)
            else:
                made = work.layers.quantize(index, entries)
                report, outputs = made.report, made.outputs
                names = stream.stored(index)
                tensors = {_renamed(name, names): tensor for name, tensor in made.tensors.items()}
                if writer is not None:
                    writer.write(index, tensors, report.model_dump())
            for entry, output in zip(entries, outputs, strict=False):
                entry.hidden = output
            if self._progress is not None:
                self._progress(report, len(stream.layers))
            yield report

    def _write_rest(self, work: _Work, writer: QuantizedWriter) -> dict[str, Any]:
        with open_weights(work.files, torch.device("cpu")) as sources:
            tensors = {name: sources[name][...] for name in work.stream.rest()}
            said = {"bytes": sum(tensor.nbytes for tensor in tensors.values())}
            writer.write(len(work.stream.layers), tensors, said)
        return said

    def _read_config(self) -> dict[str, Any]:
        path = self._folder / "config.json"
        if not path.is_file():
            raise ValueError(f"model_path {self._folder} is no folder with a config.json; fetch the model first")
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if "quantization_config" in config:
            raise ValueError(
                f"model_path {self._folder} is quantized already; quantize the checkpoint it was made from"
            )
        return config

    def _check_rows(self, stream: LayerStream) -> None:
        if self.settings.calibrated and not self._rows:
            setting = "sparsity = '2:4'" if self.settings.prunes else f"quant_method = {self.settings.quant_method!r}"
            raise ValueError(f"{setting} needs calibration rows, and there are none")
        config = stream.whole.config.get_text_config()
        longest = getattr(config, "max_position_embeddings", None)
        for number, row in enumerate(self._rows):
            if row.ndim != 1 or not len(row) or row.dtype.kind not in "iu":
                raise ValueError(f"calibration row {number} is no 1-D array of token ids, or an empty one")
            if row.min() < 0 or row.max() >= config.vocab_size:
                raise ValueError(f"calibration row {number} has token ids beyond the vocabulary of {config.vocab_size}")
            if longest is not None and len(row) > longest:
                raise ValueError(f"calibration row {number} has {len(row)} tokens, more than the model's {longest}")

    def _check_mlps(self, stream: LayerStream) -> None:
        for index, layer in enumerate(stream.layers):
            try:
                mlp(layer)
            except ValueError as error:
                raise ValueError(
                    f"{stream.name(index)} of model_path {self._folder} {error}, which sparsity = '2:4' prunes; "
                    f"use sparsity = 'none'"
                ) from None

    def _identity(self, files: Sequence[str], dtype: torch.dtype) -> dict[str, Any]:
        """What decides the bytes of the output."""
        rows = hashlib.sha256()
        for row in self._rows:
            rows.update(len(row).to_bytes(8, "little") + row.astype("<i8").tobytes())
        found = {Path(file).name: Path(file).stat() for file in files}
        return {
            "settings": self.settings.model_dump(),
            "model": {name: [stat.st_size, stat.st_mtime_ns] for name, stat in found.items()},
            "config": self._config,
            "calibration": rows.hexdigest(),
            "device": [self._device.type, str(dtype), torch.__version__],
        }


def _tensors(files: Sequence[str], stream: LayerStream) -> tuple[dict[str, int], dict[str, torch.dtype]]:
    """Bytes of every tensor by its name in the files, and its dtype by its name in the model."""
    with open_weights(files, torch.device("cpu")) as sources:
        dtypes = {name: DTYPES[source.get_dtype()] for name, source in sources.items()}
        sizes = {name: int(np.prod(source.get_shape())) * dtypes[name].itemsize for name, source in sources.items()}
    return sizes, {place: dtypes[name] for place, name in stream.names.items()}


def _check_linears(stream: LayerStream, stored: dict[str, torch.dtype], settings: QuantizerSettings) -> torch.dtype:
    """The dtype of the linears' weights. ValueError where the layers have none, or such as cannot be quantized."""
    dtypes = set()
    for index, layer in enumerate(stream.layers):
        for name, module in layer.named_modules():
            if not isinstance(module, nn.Linear):
                continue
            full = f"{stream.name(index)}.{name}"
            dtypes.add(stored[f"{full}.weight"])
            if settings.int4 and module.in_features % settings.group_size:
                fits = [str(size) for size in (128, 64, 32) if module.in_features % size == 0]
                raise ValueError(
                    f"group_size = {settings.group_size} does not divide the {module.in_features} inputs of {full}; "
                    f"use {' or '.join(fits) or 'quant_method = fp8 or int8'}"
                )
            if settings.int4 and module.out_features % 8:
                raise ValueError(f"{full} has {module.out_features} outputs, not a multiple of 8; use fp8 or int8")
    if not dtypes:
        raise ValueError("the decoder layers have no linear layers of torch, so there is nothing to quantize")
    if len(dtypes) > 1 or not dtypes <= set(_FLOATS):
        found = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
        raise ValueError(f"the linears' weights are stored in {found}; one of bfloat16, float16, float32 is needed")
    return dtypes.pop()


def _untouched(stream: LayerStream) -> list[str]:
    """The linears that stay as they are, for the config's "ignore"."""
    linears = [name for name, module in stream.whole.named_modules() if isinstance(module, nn.Linear)]
    return [name for name in linears if not name.startswith(stream.prefix)]


def _renamed(name: str, names: dict[str, str]) -> str:
    """The file's name of a layer's tensor; one that quantizing made is named as its linear's weight is."""
    if name in names:
        return names[name]
    linear, _, part = name.rpartition(".")
    return f"{names[f'{linear}.weight'].removesuffix('.weight')}.{part}"
