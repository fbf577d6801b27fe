"""Workers whose devices have different names: they round differently, and that is no corruption."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks import devices, footing
from tasks import run as running
from tasks.configuration import load_settings
from tasks.cross_check import open_checks
from tasks.devices import alike, ceilings, device_name, gpu_ceilings, worker_devices
from tasks.forecast import Forecaster
from tasks.job import Job, RunOptions, prepare
from tasks.machine import Gpu, Gpus
from tasks.outcome import manifest_fields, warnings
from tasks.placement import Placement
from tasks.run import opened
from tasks.stages import run_lot
from tests.flows.conftest import MODEL, ROOT

H100, L4 = "NVIDIA H100 80GB HBM3", "NVIDIA L4"


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    """A job of two workers, which takes its cache, and what it remembers, from the test's folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    rows = [{"ids": [5 + (row * 31 + place * 7) % 300 for place in range(9)]} for row in range(80)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "in.parquet")
    given = {
        "input": {"path": str(tmp_path / "in.parquet")},
        "output": {"path": str(tmp_path / "out")},
        "job": {"prompt_ids": "ids"},
        "model": {"path": str(MODEL)},
        "sampling": {"max_tokens": 4},
    }
    made = prepare(load_settings(None, given, ()), RunOptions(), datetime.now(), "overnight infer")
    return replace(made, placement=replace(made.placement, workers=2))


def unlike(job: Job) -> Job:
    return replace(job, placement=replace(job.placement, names=("Turin", "Genoa")))


def test_a_run_on_unlike_devices_goes_on_where_their_answers_differ(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every answer of one of them is another one: more than rounding does, and still no proof of a fault."""
    monkeypatch.setattr(running, "WORKER_TARGET", "tests.tasks.lying_worker:main")
    with opened(unlike(job)) as run:
        run.pool.begin()
        deadline = time.monotonic() + 120
        while sum(worker.state == "ready" for worker in run.progress.workers) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        run.planner.plan_ahead()
        (window,) = run.windows
        for shard in window.shards:
            run_lot.fn(run, [shard])
        assert run.checks is not None
        run.checks.settle(60.0)
        assert run.failure is None
        (alert, *_) = run.checks.alerts
        assert run.complete
        told = warnings(run)
        assert manifest_fields(run)["devices"] == {"Turin": 1, "Genoa": 1}
    open_checks(run.folder)  # no doubt is kept
    assert "Genoa" in alert
    assert "Turin" in alert
    assert "round differently" in alert
    assert any("1 Turin, 1 Genoa" in text and "CUDA_VISIBLE_DEVICES" in text for text in told)


def test_devices_are_told_apart_by_their_names(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = Gpus((Gpu(H100, 80 << 30, 80 << 30), Gpu(L4, 24 << 30, 24 << 30)), None, None)
    for module in (devices, footing):
        monkeypatch.setattr(module, "read_gpus", lambda: gpus)
    both = Placement("cuda", ("0", "1"), 2, 8, None)
    assert worker_devices(both) == (H100, L4)
    assert not alike(both)
    assert device_name(both) == f"1 {H100}, 1 {L4}"
    assert ceilings(both).copy_bytes == gpu_ceilings(L4).copy_bytes, "the slowest holds the others up"
    first = replace(both, gpus=("0",), workers=1)
    assert alike(first)
    assert device_name(first) == H100
    assert not first_warning(replace(job, placement=first))
    mixed = replace(job, placement=both)
    assert f"1 {H100}, 1 {L4}" in first_warning(mixed)
    # What a run on both takes says nothing of one of them.
    setups = [Forecaster(each).setup(Forecaster(each).precision) for each in (mixed, replace(job, placement=first))]
    assert not setups[0].like(setups[1])


def first_warning(job: Job) -> str:
    return next((text for text in job.warnings if "unlike" in text), "")
