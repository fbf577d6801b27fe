"""The cost model: against what was measured on an H100, and as a fit to runs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.histogram import count_lengths
from data.model_shape import ModelShape
from engine.workloads import SHAPES
from tasks.cost import Precision, Terms, fit, seconds_of
from tasks.devices import gpu_ceilings
from tasks.lessons import bench_terms
from tasks.work import Outputs, Prompts, work_of

H100 = "NVIDIA H100 80GB HBM3"


@pytest.mark.parametrize(
    ("workload", "quantization", "rows_peak", "seconds"),
    [
        ("label:4096", "none", 1391, 13.5),
        ("decode:1024", "none", 853, 37.3),
        ("prefill:2048", "none", 1797, 22.5),
        ("label:4096", "fp8", 3019, 9.5),
        ("decode:1024", "fp8", 1024, 24.6),
    ],
)
def test_the_arithmetic_gives_what_an_h100_took(
    workload: str, quantization: str, rows_peak: int, seconds: float
) -> None:
    """docs/performance-log.md, 2026-11-25, one run each; the constants of the arithmetic were chosen after these."""
    precision = Precision("bfloat16", quantization, "auto" if quantization == "none" else "fp8")
    figures = {"workload": workload, "rows_peak": rows_peak}
    computed = bench_terms(figures, ModelShape.of(SHAPES["r1-7b"]), precision, gpu_ceilings(H100), 8192)
    assert sum(computed) == pytest.approx(seconds, rel=0.1)


def test_a_shape_counts_the_weights_of_its_model() -> None:
    shape = ModelShape.of(SHAPES["r1-7b"])
    assert shape.parameters == pytest.approx(7.07e9, rel=0.01)
    assert shape.kv_bytes(2) == 57_344
    untied = shape.parameters + shape.head_parameters
    assert ModelShape.of(SHAPES["r1-7b"], untied) == shape


def test_work_is_counted_exactly_where_all_is_equal() -> None:
    work = work_of(Prompts(10, 1000, 540), Outputs.all_of(16), batch=4, step_tokens=100)
    assert work.prefill_tokens == 460
    assert work.decode_tokens == 150
    assert work.decode_steps == pytest.approx(150 / 4)
    # Each of the 15 steps of an answer sees the prompt and what was said before.
    assert work.kv_positions == pytest.approx(10 * sum(100 + step for step in range(1, 16)), rel=0.01)
    assert work_of(Prompts(2, 200, 0), Outputs.all_of(16), batch=4, step_tokens=100).decode_steps == pytest.approx(15)
    assert work_of(Prompts(10, 1000, 0), Outputs.all_of(0), batch=4, step_tokens=100).decode_steps == 0


def test_the_longest_of_many_answers_is_long() -> None:
    lengths = np.random.default_rng(0).integers(1, 1000, 5000)
    outputs = Outputs(count_lengths(lengths), float(lengths.mean()))
    assert outputs.longest(1) == pytest.approx(lengths.mean(), rel=0.01)
    assert outputs.longest(5000) > 800
    assert outputs.mean_square == pytest.approx((lengths.astype(float) ** 2).mean(), rel=0.05)


seconds_range = st.floats(0.01, 100)


@given(st.tuples(*[seconds_range] * 4), st.floats(0.2, 5))
def test_one_run_gives_every_term_its_factor(computed: Terms, factor: float) -> None:
    measured = factor * sum(computed)
    assert seconds_of(computed, fit([(computed, measured)])) == pytest.approx(measured)


def test_runs_that_differ_tell_the_terms_apart() -> None:
    truth: Terms = (2.0, 0.7, 1.0, 1.0)
    runs: list[Terms] = [(10, 1, 1, 0.1), (1, 10, 1, 0.1), (5, 5, 1, 0.1), (8, 2, 1, 0.1)]
    factors = fit([(run, seconds_of(run, truth)) for run in runs])
    assert factors[0] > 1.6
    assert factors[1] < 1.0
    for run in runs:
        assert seconds_of(run, factors) == pytest.approx(seconds_of(run, truth), rel=0.1)


def test_a_short_run_does_not_outweigh_the_arithmetic_where_that_is_trusted() -> None:
    computed: Terms = (2.0, 1.0, 0.5, 0.5)
    assert 1.0 < seconds_of(computed, fit([(computed, 6.0)], trusted=10.0)) / 4 < 1.25
    long: Terms = (200.0, 100.0, 50.0, 50.0)
    assert seconds_of(long, fit([(computed, 6.0), (long, 480.0)], trusted=10.0)) == pytest.approx(480, rel=0.01)
