"""From settings to a checked quantization: everything that can be wrong is found here, before anything is started."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from data.checkpoint import Checkpoint
from data.dataset import Dataset
from data.drawn_rows import draw_rows
from data.errors import InputError
from data.model_config import text_config
from data.pointer import Pointer
from data.run_folder import run_id
from engine.quantizer_settings import QuantizerSettings
from engine.settings import ModelSettings
from tasks.calibration_rows import LEAST_ROWS, CalibrationRows, calibration_rows
from tasks.evaluation_job import prepare_evaluation
from tasks.figures import plural
from tasks.job_paths import dated
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
    flow_run: str | None = None
    """The id of the flow run that asks, all attempts at which are to have one fresh start; None for a command."""
    compared: dict[str, Any] = field(default_factory=dict)
    """What decides the gate's evaluation beside the candidate: the identity of the original's run among it."""

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
    def evaluations(self) -> Iterator[Path]:
        """The folders of the evaluations of this work that are there."""
        return self.place.work.parent.glob(f"{glob.escape(self._evaluation)}-*")

    @property
    def _evaluation(self) -> str:
        """One name for each evaluation that there can be of this work, so that none meets another's."""
        return f"evaluate-{self.place.path.name}-{run_id({'quantization': self.identity, 'compared': self.compared})}"

    def gate_settings(self, candidate: Path) -> Settings:
        """What the evaluate flow is told, to compare a checkpoint with the original on rows that calibrated nothing."""
        settings, own = self.settings, self.calibration.others is not None
        compared = {"reference": str(self.checkpoint.folder), "skip": settings.quantize.rows if own else 0}
        stored: dict[str, Any] = {"revision": None, "quantization": "none", "adapter": None, "trust_remote_code": False}
        folder = f"{self._evaluation}-{run_id(Checkpoint.open(str(candidate)).digests())}"
        changes: dict[str, Any] = {
            "model": ModelSettings(path=str(candidate), **stored),  # all of them, or the environment has its say
            "evaluate": settings.evaluate.model_copy(update=compared),
            "output": settings.output.model_copy(update={"path": str(self.place.work.parent / folder)}),
        }
        return settings.model_copy(update=changes)


def prepare(settings: Settings, *, fresh: bool, started: datetime, flow_run: str | None = None) -> QuantizationJob:
    """Check settings, model and input, and draw the calibration rows.

    InputError for whatever is wrong; the message names it. `started` fills `{date}` in paths; of `flow_run` see
    QuantizationJob.
    """
    settings = _dated(settings, started)
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
    job = QuantizationJob(settings, checkpoint, calibration, place, identity, fresh, flow_run)
    return replace(job, compared=_checked_gate(job, started)) if settings.quantize.gate else job


def _dated(settings: Settings, started: datetime) -> Settings:
    """With `{date}` filled in the paths, those of [quantize] among them."""
    found = {name: getattr(settings.quantize, name) for name in ("output", "dataset")}
    date = started.date().isoformat()
    filled = {name: path.replace("{date}", date) for name, path in found.items() if path is not None}
    settings = dated(settings, started)
    return settings.model_copy(update={"quantize": settings.quantize.model_copy(update=filled)})


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


def _checked_gate(job: QuantizationJob, started: datetime) -> dict[str, Any]:
    """What decides the evaluation. InputError for what it would stumble over hours later."""
    settings, without = job.settings, "quantize.gate = false leaves that out"
    if not settings.input.path:
        raise InputError(f"the gate compares both models on rows: name them with --input; {without}")
    if settings.evaluate.rows < LEAST_ROWS:
        raise InputError(f"evaluate.rows = {settings.evaluate.rows} is too few for the gate: {LEAST_ROWS} at least")
    _check_rows(job, without)
    try:
        checked = prepare_evaluation(job.gate_settings(job.checkpoint.folder), started, "")
    except InputError as error:
        raise InputError(f"the gate compares both models ({without}), and cannot: {error}") from error
    judged = checked.settings.evaluate.model_dump(mode="json", exclude={"reference"})
    return {"run": checked.job.identity, "evaluate": judged, "expected": checked.settings.job.expected}


def _check_rows(job: QuantizationJob, without: str) -> None:
    """InputError if the gate's input has too few rows beside those that calibrate."""
    settings, left = job.settings, job.calibration.others
    path, least = settings.input.path, f"the gate compares both models on {LEAST_ROWS} at least"
    if left is None:
        left = len(draw_rows(Dataset.open(settings.input), [LEAST_ROWS])[0].records)
        if left < LEAST_ROWS:
            raise InputError(f"input.path {path} has {plural(left, 'row')}, and {least}: name more; {without}")
    elif left < LEAST_ROWS:
        raise InputError(
            f"{path} has {plural(left, 'row')} beside those that quantize.rows = {settings.quantize.rows} takes to "
            f"calibrate, and {least}: lower it; {without}"
        )
