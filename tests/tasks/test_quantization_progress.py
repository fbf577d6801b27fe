"""A quantization on the screen: how far it is, what its layers came to, and how it ended."""

from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console

from engine.quantizer_report import LayerReport
from engine.quantizer_settings import QuantizerSettings
from tasks.gate import judge
from tasks.quantization_progress import QuantizationDisplay, QuantizationProgress
from tasks.quantization_report import Calibration, Quantization
from tasks.quantization_screen import as_markdown, print_quantization
from tests.tasks.test_gate import estimate, evaluation
from tests.tasks.test_progress import Clock


def layer(number: int, seconds: float = 10.0) -> LayerReport:
    sizes = {"linear_bytes_before": 1000, "linear_bytes_after": 250, "bytes_after": 300}
    return LayerReport(layer=number, error_before=0.09, error_after=0.07, folds=4, seconds=seconds, **sizes)


def shown(progress: QuantizationProgress) -> str:
    console = Console(file=io.StringIO(), width=100)
    console.print(QuantizationDisplay(progress, console).table())
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_time_left_is_that_of_layers_like_those_before() -> None:
    clock = Clock()
    progress = QuantizationProgress(4, clock)
    assert progress.seconds_left is None
    assert "0 of 4 layers" in shown(progress)
    progress.done_with(layer(0, 8.0), 4)
    progress.done_with(layer(1, 12.0), 4)
    assert progress.seconds_left == 20.0
    clock.now += 3
    assert progress.seconds_left == 17.0
    assert "2 of 4 layers" in shown(progress)
    assert "7.0 %" in shown(progress)
    display = QuantizationDisplay(progress)
    assert display.line() == "50.00 %: 2 of 4 layers, error 7.0 % after the search, 9.0 % before, 17 s left"
    clock.now += 1
    assert display.line() is None, "nothing new but the seconds left"
    progress.done_with(layer(2), 4)
    assert "3 of 4 layers" in str(display.line())
    clock.now += 30
    assert progress.seconds_left is None, "the last layer takes longer than the others: nobody knows how long"


def test_only_the_last_layers_are_listed() -> None:
    progress = QuantizationProgress(80)
    for number in range(30):
        progress.done_with(layer(number), 80)
    text = shown(progress)
    assert "layer 29" in text
    assert "layer 3 " not in text
    assert text.count("layer ") < 10


def test_the_report_says_what_was_kept_and_whether_it_is_good_enough(tmp_path: Path) -> None:
    found = evaluation(accuracy_change=estimate(-0.3))
    report = Quantization(
        output=str(tmp_path / "small.refused"),
        layers=(layer(0), layer(1)),
        bytes_before=2400,
        bytes_after=900,
        seconds=61.0,
        model="models/large",
        identity={},
        settings=QuantizerSettings(),
        calibration=Calibration(source="rows.jsonl", text="prompts", rows=128, tokens=9000, skipped=2, sha256="ab"),
        evaluation=found,
        verdict=judge(found, 0.02),
    )
    console = Console(file=io.StringIO(), width=100)
    print_quantization(report, console)
    assert isinstance(console.file, io.StringIO)
    for text in (" ".join(console.file.getvalue().split()), as_markdown(report)):
        assert "refused" in text
        assert "prompts of rows.jsonl, 9,000 tokens; 2 more cannot be asked" in text
        assert "-30.00 %" in text
        assert "a loss of 30.00 %" in text
        assert "linear layers 25.00 %" in text
    assert Quantization.model_validate_json(report.model_dump_json()) == report
