"""What is remembered of runs and answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from data.model_shape import ModelShape
from engine.bench_settings import BenchSettings
from engine.workloads import SHAPES
from tasks.calibration import RUNS_OF_A_SETUP, Calibration, MeasuredRun, Setup, load_calibration, store_calibration
from tasks.cost import VERSION, Precision
from tasks.lessons import learn_bench

SHAPE = ModelShape(4, 256, 4, 2, 64, 3_000_000, 800_000)
SETUP = Setup(
    kind="generate",
    shape=SHAPE,
    precision=Precision("bfloat16", "none", "auto"),
    device="NVIDIA H100",
    deterministic=False,
)


def run(seconds: float, setup: Setup = SETUP, version: int = VERSION) -> MeasuredRun:
    return MeasuredRun(version=version, setup=setup, terms=(1, 1, 1, 1), seconds=seconds, start=10.0)


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "overnight" / "calibration.json"


def test_it_is_read_as_it_was_stored(cache: Path) -> None:
    calibration = Calibration().with_run(run(3.0)).with_answers("job", (0, 2, 1), 4)
    store_calibration(calibration)
    assert load_calibration() == calibration
    cache.write_text("{")
    assert load_calibration() == Calibration()
    cache.write_text('{"runs": [{"seconds": -1}]}')
    assert load_calibration() == Calibration()


def test_the_last_runs_of_a_setup_are_kept() -> None:
    calibration = Calibration()
    for number in range(RUNS_OF_A_SETUP + 3):
        calibration = calibration.with_run(run(number + 1.0))
    assert [found.seconds for found in calibration.runs_of(SETUP)] == [4.0 + n for n in range(RUNS_OF_A_SETUP)]


def test_other_models_on_the_device_tell_something_other_devices_nothing() -> None:
    fp8 = SETUP.model_copy(update={"precision": Precision("bfloat16", "fp8", "auto")})
    larger = SETUP.model_copy(update={"shape": ModelShape(8, 256, 4, 2, 64, 6_000_000, 800_000)})
    elsewhere = SETUP.model_copy(update={"device": "NVIDIA L4"})
    calibration = Calibration().with_run(run(1.0, fp8)).with_run(run(2.0, elsewhere))
    assert not calibration.runs_of(SETUP)
    assert [found.setup for found in calibration.runs_like(SETUP)] == [fp8]
    # Of this precision, if there are any.
    assert [found.setup for found in calibration.with_run(run(3.0, larger)).runs_like(SETUP)] == [larger]


def test_runs_of_another_arithmetic_say_nothing() -> None:
    assert not Calibration().with_run(run(1.0, version=VERSION + 1)).runs_like(SETUP)


def test_answers_of_a_job_add_up() -> None:
    outputs = Calibration().with_answers("job", (0, 2, 1), 4).with_answers("job", (1,), 0).jobs["job"].outputs
    assert outputs.counts == (1, 2, 1)
    assert outputs.mean == 1.0


def test_the_benchmark_on_a_gpu_is_remembered_for_its_shape() -> None:
    figures = {"workload": "label:64", "device": "NVIDIA H100", "s": 2.0, "rows_peak": 50}
    settings = BenchSettings(workloads=("label:64",), model="qwen3-0.6b")
    for line in ({"median": True}, {"device": "cpu"}):
        learn_bench(settings, {**figures, **line})
    assert not load_calibration().runs
    learn_bench(settings, figures)
    shape = ModelShape.of(SHAPES["qwen3-0.6b"])
    (found,) = load_calibration().runs_of(SETUP.model_copy(update={"shape": shape}))
    assert (found.seconds, found.start) == (2.0, None)
    assert all(term > 0 for term in found.terms)
