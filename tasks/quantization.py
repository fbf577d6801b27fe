"""A quantization that this process drives: its output held, its layers quantized, the checkpoint judged and published.

The evaluation between is a flow of its own. What is done is found done: finished layers, a checkpoint that was not yet
judged, one that was refused, and one that is published.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from data.checkpoint import Checkpoint
from data.errors import InputError, RunError
from data.pointer import Pointer, promote
from engine.quantizer_process import QuantizationFailed, quantize_in_children
from engine.quantizer_report import LayerReport, QuantizationReport
from tasks.evaluation import Evaluation
from tasks.figures import plural
from tasks.gate import judge
from tasks.placement import device_names, place
from tasks.quantization_job import QuantizationJob
from tasks.quantization_place import report_of
from tasks.quantization_progress import QuantizationDisplay, QuantizationProgress
from tasks.quantization_report import Calibration, Quantization
from tasks.turns import LOOK_SECONDS, turn_of

_ENGINE_NAMES = {"quant_method": "quantize.method", "group_size": "quantize.group_size", "model_path": "model.path"}


@dataclass
class OpenQuantization:
    """A quantization whose output this process holds."""

    job: QuantizationJob
    finished: bool
    """Whether the checkpoint of this very job was published before."""
    report: Quantization | None = None
    """Of the checkpoint once it is published or refused."""
    made: Quantization | None = None
    """Of the checkpoint before it is judged."""

    @property
    def checkpoint(self) -> Path:
        """The checkpoint before it is judged."""
        return self.job.place.candidate


# The command line opens the quantization before it starts Prefect; the flow then takes it from here.
OPENED: ContextVar[OpenQuantization | None] = ContextVar("opened_quantization", default=None)


@contextmanager
def opened(job: QuantizationJob) -> Iterator[OpenQuantization]:
    """Hold the output, and begin the work there or find it finished.

    InputError as of `QuantizationPlace.begin`; Held if another process is at work there.
    """
    with job.place.lock():
        job.place.settle()
        fresh = job.fresh and not job.place.started_afresh(job.flow_run)
        found = None if fresh or job.place.to_be_replaced(job.identity) else _finished(job)
        if found is not None:
            job.place.finish()
            found = _promoted_once(job, found)
        else:
            job.place.begin(job.identity, fresh=fresh)
            if fresh:
                for folder in job.evaluations:
                    shutil.rmtree(folder, ignore_errors=True)
                job.place.remember_fresh_start(job.flow_run)
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
    if not work.checkpoint.exists():
        try:
            _make(work.job, told)
        except QuantizationFailed as error:
            raise RunError(f"{error}; the same command goes on behind the finished layers") from error
        except ValueError as error:
            raise InputError(_as_settings(str(error))) from error
    found = report_of(work.checkpoint) or {}
    try:
        engine = QuantizationReport.model_validate({name: found.get(name) for name in QuantizationReport.model_fields})
    except ValidationError as error:
        raise RunError(f"the report in {work.checkpoint} is damaged: quantize again with --fresh") from error
    work.made = Quantization(
        **engine.model_dump(exclude={"output"}),
        output=str(work.job.place.path),
        model=work.job.settings.model.path,
        identity=work.job.identity,
        settings=work.job.quantizer,
        calibration=Calibration.of(work.job.calibration),
        warnings=work.job.calibration.warnings,
    )
    told(1.0)


def _make(job: QuantizationJob, told: Callable[[float], object]) -> None:
    """Quantize on the devices of the settings, once they are this run's."""
    progress, placement = QuantizationProgress(job.layers), place(job.settings)

    def hear(layer: LayerReport, layers: int) -> None:
        progress.done_with(layer, layers)
        told(progress.done)

    with (
        QuantizationDisplay(progress),
        turn_of(f"quantization of {job.place.path.name}", job.settings, device_names(placement), progress.tell) as turn,
    ):
        progress.tell({"event": "note", "message": _beginning(job)})
        for warning in job.calibration.warnings:
            progress.tell({"event": "warning", "message": warning})
        while not turn.ours():
            time.sleep(LOOK_SECONDS)
        quantize_in_children(
            job.checkpoint.folder,
            job.place.candidate,
            job.quantizer,
            job.calibration.ids,
            hear,
            [placement.environment(index) for index in range(placement.workers)] if placement.gpus else [{}],
            job.place.work,
        )


def publish(work: OpenQuantization, evaluation: Evaluation | None) -> None:
    """Judge the checkpoint, where there is an evaluation, give it its name, and move the pointer.

    RunError if it is refused: it then lies beside the output, and what was at the output is there as before.
    """
    assert work.made is not None
    place, report = work.job.place, work.made
    if evaluation is not None:
        verdict = judge(evaluation, work.job.settings.quantize.max_loss)
        output = str(place.path if verdict.accepted else place.refused)
        candidate = evaluation.candidate.model_copy(update={"path": output})  # the name that it is about to get
        found = evaluation.model_copy(update={"candidate": candidate})
        warnings = (*report.warnings, verdict.warning) if verdict.warning else report.warnings
        changes = {"evaluation": found, "verdict": verdict, "warnings": warnings, "output": output}
        report = report.model_copy(update=changes)
    place.record(report.model_dump(mode="json"))
    if report.verdict is not None and not report.verdict.accepted:
        place.refuse()
        work.report = report
        raise RunError(f"the quantized model is refused: {report.verdict.reason}. It is kept in {place.refused}")
    place.publish()
    work.report = report
    work.report = _promoted(work.job, report)


def _promoted(job: QuantizationJob, report: Quantization) -> Quantization:
    """Have the pointer lead to the published checkpoint, where one is named."""
    pointer = job.settings.quantize.promote
    if pointer is None:
        return report
    promote(pointer, job.place.path)
    return report.model_copy(update={"pointer": pointer})


def _promoted_once(job: QuantizationJob, report: Quantization) -> Quantization:
    """Promote what an earlier call has published, if a kill came before that; a move away since then stands."""
    named = job.settings.quantize.promote
    if named is None or not (pointer := Pointer(named)).led_to(job.place.path):
        return _promoted(job, report)
    if pointer.target() == job.place.path.resolve():
        return report.model_copy(update={"pointer": named})
    left = f"{named} has led to it before and was moved: overnight promote {named} {job.place.path} moves it back"
    return report.model_copy(update={"warnings": (*report.warnings, left)})


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


def _beginning(job: QuantizationJob) -> str:
    rows = job.calibration
    text = f", {plural(len(rows.ids), 'row')} with {plural(rows.tokens, 'token')} of {rows.source}" if rows.ids else ""
    return f"Quantizing {job.settings.model.path} to {job.quantizer.label}{text}"


def _as_settings(message: str) -> str:
    """The engine's message with the names that settings have for a user, and the remedy that the command has."""
    message = message.replace("or delete that folder", "or drop it with --fresh")
    return re.sub(r"\b(quant_method|group_size|model_path)\b", lambda found: _ENGINE_NAMES[found[0]], message)
