"""A quantization from settings to a published checkpoint, but for the evaluation between.

`prepare` finds everything that can be wrong before anything is started; `opened` holds the output; `quantize` has the
layers quantized in a process of its own, or finds that it was done; `publish` judges, and gives the checkpoint its name
or the name of a refused one.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from data.checkpoint import Checkpoint
from data.errors import InputError, RunError
from data.model_config import text_config
from data.run_folder import run_id
from engine.quantizer_process import QuantizationFailed, quantize_in_child
from engine.quantizer_report import LayerReport, QuantizationReport
from engine.settings import ModelSettings
from tasks.calibration_rows import CalibrationRows, calibration_rows
from tasks.evaluation import Evaluation
from tasks.evaluation_job import prepare_evaluation
from tasks.figures import plural
from tasks.gate import judge
from tasks.job import dated
from tasks.quantization_place import QuantizationPlace, report_of
from tasks.quantization_progress import QuantizationDisplay, QuantizationProgress
from tasks.quantization_report import Calibration, Quantization
from tasks.settings import Settings

_ENGINE_NAMES = {"quant_method": "quantize.method", "group_size": "quantize.group_size", "model_path": "model.path"}


@dataclass(frozen=True)
class QuantizationJob:
    """A checked quantization."""

    settings: Settings
    checkpoint: Checkpoint
    calibration: CalibrationRows
    place: QuantizationPlace
    identity: dict[str, Any]
    fresh: bool

    @property
    def evaluation(self) -> Path:
        """The folder of the evaluation, one for each that there can be of this work, so that none meets another's."""
        names = {"input", "job", "sampling", "evaluate"}
        asked = self.settings.model_dump(mode="json", by_alias=True, include=names)
        digest = run_id({"quantization": self.identity, **asked})
        return self.place.work.parent / f"evaluate-{self.place.path.name}-{digest}"


@dataclass
class OpenQuantization:
    """A quantization whose output this process holds."""

    job: QuantizationJob
    finished: bool
    """Whether the checkpoint of this very job was published before."""
    report: Quantization | None = None
    started: float = field(default_factory=time.monotonic)

    @property
    def checkpoint(self) -> Path:
        """The checkpoint before it is judged."""
        return self.job.place.candidate


# The command line opens the quantization before it starts Prefect; the flow then takes it from here.
OPENED: ContextVar[OpenQuantization | None] = ContextVar("opened_quantization", default=None)


def prepare(settings: Settings, *, fresh: bool, started: datetime) -> QuantizationJob:
    """Check settings, model and input, and draw the calibration rows.

    InputError for whatever is wrong; the message names it. `started` fills `{date}` in paths.
    """
    settings = dated(settings, started)
    if not settings.model.path:
        raise InputError("model.path is not set: give --model, or set it in the configuration file")
    if settings.model.adapter is not None:
        raise InputError("model.adapter cannot be quantized: merge it into the model first")
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


@contextmanager
def opened(job: QuantizationJob) -> Iterator[OpenQuantization]:
    """Hold the output, and begin the work there or find it finished.

    InputError as of `QuantizationPlace.begin`; Held if another process is at work there.
    """
    with job.place.lock():
        job.place.settle()
        found = None if job.fresh else _finished(job)
        if found is not None:
            job.place.finish()
        else:
            job.place.begin(job.identity, fresh=job.fresh)
            if job.fresh:
                shutil.rmtree(job.evaluation, ignore_errors=True)
        yield OpenQuantization(job, found is not None, found)


@contextmanager
def taken_or_opened(job: QuantizationJob | None) -> Iterator[OpenQuantization]:
    """The quantization that the command line has opened, or the one of `job`, opened here."""
    work = OPENED.get()
    if work is not None:
        yield work
        return
    assert job is not None
    with opened(job) as work:
        yield work


def quantize(work: OpenQuantization, told: Callable[[float], object]) -> None:
    """Have the checkpoint made, unless it is there; `told` hears of the share that is done, 0 to 1.

    InputError for a model or a setting that the engine refuses; RunError if its process died.
    """
    job = work.job
    layers = text_config(job.checkpoint.config).get("num_hidden_layers")
    progress = QuantizationProgress(layers if isinstance(layers, int) else 0)

    def hear(layer: LayerReport, layers: int) -> None:
        progress.tell(layer, layers)
        told(progress.done)

    if not work.checkpoint.exists():
        with QuantizationDisplay(progress):
            progress.begin(_beginning(job))
            for warning in job.calibration.warnings:
                progress.warn(warning)
            try:
                quantize_in_child(
                    job.checkpoint.folder, work.checkpoint, job.settings.quantize.quantizer(), job.calibration.ids, hear
                )
            except QuantizationFailed as error:
                raise RunError(f"{error}; the same command goes on behind the finished layers") from error
            except ValueError as error:
                raise InputError(_as_settings(str(error))) from error
    found = report_of(work.checkpoint)
    try:
        engine = QuantizationReport.model_validate(
            {key: (found or {}).get(key) for key in QuantizationReport.model_fields}
        )
    except ValidationError as error:
        raise RunError(f"the report in {work.checkpoint} is damaged: quantize again with --fresh") from error
    work.report = Quantization(
        **engine.model_dump(exclude={"output"}),
        output=str(job.place.path),
        model=job.settings.model.path,
        identity=job.identity,
        settings=job.settings.quantize.quantizer(),
        calibration=Calibration.of(job.calibration),
        warnings=job.calibration.warnings,
    )
    told(1.0)


def publish(work: OpenQuantization, evaluation: Evaluation | None) -> Quantization:
    """Judge the checkpoint, where there is an evaluation, and give it its name; the report.

    RunError if it is refused: it then lies beside the output, and what was at the output is there as before.
    """
    assert work.report is not None
    place, report = work.job.place, work.report
    if evaluation is not None:
        verdict = judge(evaluation, work.job.settings.quantize.max_loss)
        warnings = (*report.warnings, verdict.warning) if verdict.warning else report.warnings
        output = place.path if verdict.accepted else place.refused
        update = {
            "evaluation": evaluation.model_dump(mode="json"),
            "verdict": verdict,
            "warnings": warnings,
            "output": str(output),
        }
        report = report.model_copy(update=update)
    work.report = report
    place.record(report.model_dump(mode="json"))
    if report.state == "completed":
        place.publish()
        return report
    place.refuse()
    assert report.verdict is not None
    raise RunError(f"the quantized model is refused: {report.verdict.reason}. It is kept in {place.refused}")


def _finished(job: QuantizationJob) -> Quantization | None:
    """The report of this very checkpoint, if it was published before by a gate as strict as this one."""
    found = report_of(job.place.path)
    if found is None or found.get("identity") != job.identity:
        return None
    try:
        report = Quantization.model_validate(found)
    except ValidationError:
        return None
    Checkpoint(job.place.path)  # InputError if files are missing
    if not job.settings.quantize.gate:
        return report
    verdict, limit = report.verdict, job.settings.quantize.max_loss
    return report if verdict is not None and verdict.accepted and verdict.limit <= limit else None


def _output(settings: Settings, model: Path) -> Path:
    """The output's absolute path. InputError if it is the model's own folder, or one in the other."""
    named, source = settings.quantize.output, Path(settings.model.path).expanduser()
    if named:
        output = Path(os.path.abspath(Path(named).expanduser()))
    else:
        name = f"{source.resolve().name}-{settings.quantize.quantizer().label}"
        output = source.resolve().with_name(name) if source.is_dir() else Path("models", name).absolute()
    here, there = Path(os.path.realpath(output)), Path(os.path.realpath(model))
    if here == there or here in there.parents or there in here.parents:
        raise InputError(f"quantize.output {output} and model.path {model} lie in each other: name another --output")
    return output


def gate_settings(job: QuantizationJob, candidate: Path) -> Settings:
    """What the evaluate flow is told, to compare a checkpoint with the original on rows that calibrated nothing."""
    settings, own = job.settings, job.settings.quantize.dataset is None and bool(job.calibration.ids)
    reference = {"reference": str(job.checkpoint.folder), "skip": settings.quantize.rows if own else 0}
    changes: dict[str, Any] = {
        "model": ModelSettings(path=str(candidate)),
        "evaluate": settings.evaluate.model_copy(update=reference),
        "output": settings.output.model_copy(update={"path": str(job.evaluation)}),
    }
    return settings.model_copy(update=changes)


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
        prepare_evaluation(gate_settings(job, job.checkpoint.folder), started, "")
    except InputError as error:
        raise InputError(f"the gate compares both models ({without}), and cannot: {error}") from error


def _beginning(job: QuantizationJob) -> str:
    rows = job.calibration
    text = f", {plural(len(rows.ids), 'row')} with {plural(rows.tokens, 'token')} of {rows.source}" if rows.ids else ""
    return f"Quantizing {job.settings.model.path} to {job.settings.quantize.quantizer().label}{text}"


def _as_settings(message: str) -> str:
    """The engine's message with the names that settings have for a user."""
    return re.sub(r"\b(quant_method|group_size|model_path)\b", lambda found: _ENGINE_NAMES[found[0]], message)
