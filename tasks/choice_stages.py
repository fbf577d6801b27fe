"""The steps of a measurement of precisions: draw the rows, make an int4 checkpoint, read what a run did, conclude."""

from __future__ import annotations

import time
from typing import Any

from prefect import task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE

from data.drawn_rows import draw_rows, drawn_suffix
from data.durable import move, stage
from data.errors import InputError, RunError
from data.published import published
from engine.quantizer_process import QuantizationFailed, quantize_in_children
from engine.quantizer_report import LayerReport
from tasks.artifacts import best_effort
from tasks.calibration_rows import calibration_rows
from tasks.choice import Choice, Precision, Repeat, Trial, choose, loss_of_accuracy, loss_of_answers
from tasks.choice_job import INT4, SAMPLE, ChoiceJob
from tasks.choice_screen import table_rows
from tasks.evaluation_answers import Answers, column_texts, published_answers
from tasks.evaluation_figures import share
from tasks.figures import plural
from tasks.job import results_of
from tasks.live_display import Terminal, print_line
from tasks.milestones import milestone
from tasks.placement import device_names
from tasks.recorded_events import read_events, replay
from tasks.turns import LOOK_SECONDS, turn_of


class Sample:
    """The right answers to the rows that were drawn, where they are known. No dataclass: Prefect would search it."""

    def __init__(self, rows: int, expected: list[str | None] | None) -> None:
        self.rows, self.expected = rows, expected


@task(name="draw", cache_policy=NO_CACHE, persist_result=False)
def draw_sample(job: ChoiceJob) -> Sample:
    """Draw the rows, behind those that calibrate int4 weights, and write them. InputError if there are none."""
    settings, wanted, skip = job.settings, job.options.rows, job.calibrated
    drawn = draw_rows(job.job.dataset, [skip, wanted])[1]
    if not drawn.records:
        raise InputError(
            f"input.path {settings.input.path} has no more rows than the {plural(skip, 'row')} that calibrate int4 "
            "weights: set quantize.rows lower, so that others are left to measure on"
        )
    move(stage(job.scratch, drawn.write), job.scratch / f"{SAMPLE}{drawn_suffix(job.job.dataset)}")
    _tell(f"Drew {plural(len(drawn.records), 'row')} to measure on")
    expected = settings.job.expected
    return Sample(len(drawn.records), None if expected is None else column_texts(drawn.records, expected))


@task(name="quantize", cache_policy=NO_CACHE, persist_result=False)
def make_int4(job: ChoiceJob) -> str | None:
    """Make the int4 checkpoint, unless one was given, at this run's turn. Why that cannot be done; None if it was."""
    if job.int4 is not None:
        return None
    placement = job.job.placement

    def hear(layer: LayerReport, layers: int) -> None:
        _tell(f"Layer {layer.layer + 1} of {layers} rounded to int4")

    try:
        rows = calibration_rows(job.settings, job.job.checkpoint)
        with turn_of("int4 weights for bench --choose", job.settings, device_names(placement), _show) as turn:
            while not turn.ours():
                time.sleep(LOOK_SECONDS)
            model, devices = job.job.checkpoint.folder, [placement.environment(0)] if placement.gpus else [{}]
            quantize_in_children(model, job.scratch / INT4, job.quantizer, rows.ids, hear, devices)
    except (ValueError, QuantizationFailed) as error:  # InputError is a ValueError
        return str(error)
    return None


def read_repeat(job: ChoiceJob, precision: Precision, number: int) -> tuple[Repeat, dict[str, Any]]:
    """What a run took, from its events, and what its worker said of itself.

    RunError if a worker died or the run waited for another one: that says nothing of speed.
    """
    events = list(read_events(job.run_path(precision, number) / "events.jsonl"))
    record = replay(events).record
    manifest = published(job.answers(precision, number))
    if manifest is None or not record.spans or record.deaths or record.waited:
        raise RunError("a run was disturbed: a worker died, or another run had the device")
    ((began, ended),) = record.spans
    repeat = Repeat(seconds=ended - began, rows=manifest.rows, output_tokens=manifest.tokens["computed_output"])
    return repeat, next(event for event in events if event["event"] == "ready")


@task(name="conclude", cache_policy=NO_CACHE, persist_result=False)
def conclude(job: ChoiceJob, sample: Sample, failures: dict[Precision, str]) -> Choice:
    """Read what every run did, compare the answers, choose, and write it down."""
    measured: list[Trial] = []
    answers: dict[Precision, Answers] = {}
    for precision in ("none", "fp8", "int4"):
        if precision not in failures:
            try:
                measured.append(_measure(job, precision, sample, answers))
                continue
            except RunError as error:
                failures[precision] = str(error)
        if precision == "none":
            raise RunError(failures[precision])
        shown = job.shown_settings(precision)
        measured.append(Trial(precision=precision, set=shown, failure=failures[precision]))
    choice = choose(measured, job.limit, sample.rows, job.job.placement.device)
    output = job.options.output.absolute()
    content = choice.model_dump_json(indent=1).encode()
    move(stage(job.scratch, lambda file: file.write(content), mode=0o666), output)
    with best_effort():
        create_table_artifact(table_rows(choice), key="precision", description=f"{choice.chosen}: {choice.reason}")
    return choice


def _measure(job: ChoiceJob, precision: Precision, sample: Sample, answers: dict[Precision, Answers]) -> Trial:
    """One precision, whose answers go into `answers`; those of `none` come first."""
    found = [read_repeat(job, precision, number) for number in job.rounds]
    last = job.rounds[-1]
    ours = _answers(job, precision, last, sample)
    answers[precision] = ours
    again: Answers | None = answers["none"]
    if precision == "none":
        again = _answers(job, precision, last - 1, sample) if last else None
    same = None if again is None else share(ours.equal(again.texts)[~again.failed])
    accuracy = loss = None
    if sample.expected is not None:
        right, was_right = ours.equal(sample.expected), answers["none"].equal(sample.expected)
        accuracy = share(right)
        loss = loss_of_accuracy(right, was_right)
    if loss is None and same is not None:
        loss = loss_of_answers(same)
    ready = found[-1][1]
    return Trial(
        precision=precision,
        set=job.shown_settings(precision),
        computed=str(ready["precision"]),
        weight_bytes=int(ready["weight_bytes"]),
        errors=int(ours.failed.sum()),
        lost=int((ours.failed & ~answers["none"].failed).sum()),
        repeats=tuple(repeat for repeat, _ in found[job.warm :]),
        same=same,
        accuracy=accuracy,
        loss=None if precision == "none" else loss,
    )


def _answers(job: ChoiceJob, precision: Precision, number: int, sample: Sample) -> Answers:
    found = published_answers(job.answers(precision, number), results_of(job.settings, job.job.checkpoint))
    if len(found.texts) != sample.rows:
        raise RunError(f"{len(found.texts):,} answers to {sample.rows:,} rows")
    return found


def _tell(message: str) -> None:
    _show({"event": "note", "message": message})


def _show(event: dict[str, Any]) -> None:
    line = milestone(event)
    if line is not None:
        print_line(Terminal(stderr=True), *line)
