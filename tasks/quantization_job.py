"""From settings to a checked quantization: everything that can be wrong is found here, before anything is started."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from data.checkpoint import Checkpoint
from data.errors import InputError
from data.model_config import text_config
from data.pointer import Pointer
from data.run_folder import run_id
from engine.quantizer_settings import QuantizerSettings
from engine.settings import ModelSettings
from tasks.calibration_rows import CalibrationRows, calibration_rows
from tasks.evaluation_job import prepare_evaluation
from tasks.job import dated
from tasks.quantization_place import QuantizationPlace
from tasks.settings import Settings


@dataclass(frozen=True)
class QuantizationJob:
    """A checked quantization."""

    settings: Settings
    checkpoint: Checkpoint
    calibration: CalibrationRows
    place: QuantizationPlace
    identity: dict[str, Any]
    """What decides the bytes."""
    fresh: bool

    @property
    def quantizer(self) -> QuantizerSettings:
        """What the engine is told."""
        return self.settings.quantize.quantizer()

    @property
    def layers(self) -> int:
        """As many as the model has; 0 if its config.json does not tell."""
        found = text_config(self.checkpoint.config).get("num_hidden_layers")
        return found if isinstance(found, int) else 0

    @property
    def evaluation(self) -> Path:
        """The folder of the evaluation, one for each that there can be of this work, so that none meets another's."""
        names = {"input", "job", "sampling", "evaluate"}
        asked = self.settings.model_dump(mode="json", by_alias=True, include=names)
        digest = run_id({"quantization": self.identity, **asked})
        return self.place.work.parent / f"evaluate-{self.place.path.name}-{digest}"

    def gate_settings(self, candidate: Path) -> Settings:
        """What the evaluate flow is told, to compare a checkpoint with the original on rows that calibrated nothing."""
        settings, own = self.settings, self.settings.quantize.dataset is None and bool(self.calibration.ids)
        compared = {"reference": str(self.checkpoint.folder), "skip": settings.quantize.rows if own else 0}
        changes: dict[str, Any] = {
            "model": ModelSettings(path=str(candidate)),
            "evaluate": settings.evaluate.model_copy(update=compared),
            "output": settings.output.model_copy(update={"path": str(self.evaluation)}),
        }
        return settings.model_copy(update=changes)


def prepare(settings: Settings, *, fresh: bool, started: datetime) -> QuantizationJob:
    """Check settings, model and input, and draw the calibration rows.

    InputError for whatever is wrong; the message names it. `started` fills `{date}` in paths.
    """
    settings = dated(settings, started)
    if not settings.model.path:
        raise InputError("model.path is not set: give --model, or set it in the configuration file")
    checkpoint = Checkpoint.open(settings.model.path, settings.model.revision)
    if "quantization_config" in checkpoint.config:
        raise InputError(
            f"model.path {settings.model.path} is quantized already: name the checkpoint that it was made from"
        )
    place = QuantizationPlace(_output(settings, checkpoint.folder))
    calibration = calibration_rows(settings, checkpoint)
    digests = checkpoint.digests()
    identity = {
        "model": digests["model"],
        "tokenizer": digests["tokenizer"],
        "settings": settings.quantize.quantizer().model_dump(mode="json"),
        "calibration": calibration.digest,
    }
    job = QuantizationJob(settings, checkpoint, calibration, place, identity, fresh)
    if settings.quantize.gate:
        _check_gate(job, started)
    return job


def _output(settings: Settings, model: Path) -> Path:
    """The output's absolute path. InputError if it is the model's own folder, one in the other, or the pointer."""
    named, source = settings.quantize.output, Path(settings.model.path).expanduser()
    if named:
        output = Path(os.path.abspath(Path(named).expanduser()))
    else:
        name = f"{source.resolve().name}-{settings.quantize.quantizer().label}"
        output = source.resolve().with_name(name) if source.is_dir() else Path("models", name).absolute()
    here, there = Path(os.path.realpath(output)), Path(os.path.realpath(model))
    if here == there or here in there.parents or there in here.parents:
        raise InputError(f"quantize.output {output} and model.path {model} lie in each other: name another --output")
    if settings.quantize.promote is not None and Pointer(settings.quantize.promote).link == output:
        raise InputError(f"quantize.promote {settings.quantize.promote} is the output itself: name a link beside it")
    return output


def _check_gate(job: QuantizationJob, started: datetime) -> None:
    """InputError for what the evaluation would stumble over hours later."""
    settings, without = job.settings, "quantize.gate = false leaves that out"
    if not settings.input.path:
        raise InputError(f"the gate compares both models on rows: name them with --input; {without}")
    if not job.calibration.others:
        raise InputError(
            f"{settings.input.path} has no more rows than quantize.rows = {settings.quantize.rows} takes to calibrate, "
            f"and the gate compares both models on others: lower it; {without}"
        )
    try:
        prepare_evaluation(job.gate_settings(job.checkpoint.folder), started, "")
    except InputError as error:
        raise InputError(f"the gate compares both models ({without}), and cannot: {error}") from error
