"""A job planned to its end before it runs, and what is predicted of it."""

from __future__ import annotations

import io
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from data.errors import InputError
from data.ledger import Commit
from data.run_folder import RunFolder
from tasks import devices, footing, preflight
from tasks import job as jobs
from tasks.calibration import Calibration, MeasuredRun
from tasks.configuration import load_settings
from tasks.cost import VERSION
from tasks.forecast import Forecaster, Planned
from tasks.job import Job, RunOptions, prepare
from tasks.machine import Gpu, Gpus
from tasks.placement import Placement
from tasks.places import locked_places
from tasks.planner import plan_options
from tasks.preflight import check_budget, plan_all, plan_report, scratch_folder
from tasks.preflight_screen import print_plan
from tasks.work import Outputs
from tests.flows.conftest import MODEL


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    """700 prompts of 100 ids each."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    rows = [{"ids": [5 + (row * 31 + place * 7) % 300 for place in range(100)]} for row in range(700)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "in.parquet")
    return prepared(tmp_path)


def prepared(place: Path, **job: Any) -> Job:
    given = {
        "input": {"path": str(place / "in.parquet")},
        "output": {"path": str(place / "out")},
        "job": {"prompt_ids": "ids", **job},
        "model": {"path": str(MODEL)},
        "workers": {"dp_degree": 2, "hourly_price": 3.0},
    }
    return prepare(load_settings(None, given, ()), RunOptions(), datetime.now(), "overnight infer")


def folder_of(job: Job) -> RunFolder:
    return RunFolder.create(job.run_path, job.identity)


def test_only_the_first_windows_keep_their_prompts(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "plan_options", lambda s: replace(plan_options(s), window_rows=200, fold=False))
    folder = folder_of(job)
    windows = list(plan_all(job, folder))
    assert [window.rows for window in windows] == [200, 200, 200, 100]
    assert {path.stem for path in folder.prompts.iterdir()} == {s.id for w in windows[:2] for s in w.shards}
    assert list(plan_all(job, folder)) == windows


def test_a_plan_counts_what_is_computed_once(job: Job) -> None:
    planned = Planned.of(list(plan_all(job, folder_of(job))))
    # There are 300 different prompts.
    assert (planned.rows, planned.folded, planned.input_tokens, planned.longest) == (700, 400, 70_000, 100)
    assert (planned.prompts.sequences, planned.prompts.tokens) == (300, 30_000)
    assert sum(planned.lengths) == 700


def test_measured_runs_are_predicted_as_they_were(job: Job) -> None:
    planned, unknown = Planned.of(list(plan_all(job, folder_of(job)))), Forecaster(job, Calibration())
    assert "no run of this model" in unknown.rates(unknown.precision).source
    assert unknown.outputs.mean == 256
    computed = unknown.terms(planned, unknown.precision, 2, Outputs.all_of(20))
    run = MeasuredRun(
        version=VERSION, setup=unknown.setup(unknown.precision), terms=computed, seconds=40, start=3, finish=1
    )
    calibration = Calibration().with_run(run).with_answers(unknown.digest, Outputs.all_of(20).counts, 20)
    known = Forecaster(job, calibration)
    one, two, many = (known.seconds(planned, known.precision, workers) for workers in (1, 2, 300))
    assert known.rates(known.precision).measured
    assert one == pytest.approx(3 + 40 + 1, abs=0.1)
    assert two == pytest.approx(3 + 20 + 1, abs=2)
    assert 4 < many < two
    more_in, more_out = known.token_seconds(planned)
    assert more_in * 30_000 + more_out * 300 * 20 == pytest.approx(40, rel=0.01)


def test_slow_first_starts_are_forgotten_with_the_first_quick_one(job: Job) -> None:
    unknown = Forecaster(job, Calibration())
    setup, calibration = unknown.setup(unknown.precision), Calibration()
    for start in (30.0, 14.0, 6.0):
        run = MeasuredRun(version=VERSION, setup=setup, terms=(1, 1, 1, 1), seconds=4, start=start, finish=1)
        calibration = calibration.with_run(run)
    assert Forecaster(job, calibration).rates(unknown.precision).start == 6


def test_a_budget_is_for_runs_that_have_not_begun(job: Job, tmp_path: Path) -> None:
    small = prepared(tmp_path, budget="699 rows")
    assert small.run_id == job.run_id, "a budget is no part of a run"
    folder = folder_of(small)
    with pytest.raises(InputError, match="--limit 690"):
        check_budget(small, folder)
    check_budget(prepared(tmp_path, budget="700 rows"), folder)
    with pytest.raises(InputError, match="EUR"):
        check_budget(prepared(tmp_path, budget="0.001 EUR"), folder)
    (folder.attempts / "shard.json").write_bytes(b"{}")
    check_budget(small, folder)


def test_a_refused_job_sets_nothing_aside(job: Job, tmp_path: Path) -> None:
    folder = folder_of(job)
    (folder.attempts / "shard.json").write_bytes(b"{}")
    small = replace(prepared(tmp_path, budget="699 rows"), options=RunOptions(fresh=True))
    with pytest.raises(InputError, match="--limit 690"), locked_places(small):
        pass
    assert (folder.attempts / "shard.json").exists()
    assert [path.name for path in job.run_path.parent.iterdir() if "old" in path.name] == []


def test_a_plan_that_is_thrown_away_leaves_the_run_as_it_is(job: Job) -> None:
    folder = folder_of(job)
    with scratch_folder(job) as scratch:
        report = plan_report(job, scratch, published=False)
    assert report.planned.rows == 700
    assert not list(folder.plan.iterdir())
    assert not scratch.path.exists()


def test_what_is_committed_is_not_predicted_again(job: Job) -> None:
    folder = folder_of(job)
    whole = plan_report(job, folder, published=False).planned
    done = whole.shards[0]
    tokens = {"input": done.input_tokens, "output": 1}
    commit = Commit(done.id, "0" * 64, done.rows, done.sequences, 0, tokens, 1.0, 0, 1)
    (folder.commits / f"{done.id}.json").write_bytes(commit.to_bytes())
    assert plan_report(job, folder, published=False).planned.shards == whole.shards[1:]


def test_on_a_gpu_both_precisions_are_offered(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = Gpus((Gpu("NVIDIA H100 80GB HBM3", 80 << 30, 79 << 30),) * 2, "580", 13000)
    for module in (devices, footing):
        monkeypatch.setattr(module, "read_gpus", lambda: gpus)
    monkeypatch.setattr(preflight, "has_fp8", lambda _gpu: True)
    monkeypatch.setattr(jobs, "place", lambda _settings: Placement("cuda", ("0", "1"), 2, 8, None))
    gpu = prepared(tmp_path)
    report = plan_report(gpu, folder_of(gpu), published=False)
    assert [(offer.precision.name, offer.chosen) for offer in report.offers] == [("bf16", True), ("fp8", False)]
    for offer in report.offers:
        assert list(offer.seconds) == [1, 2, 4, 8]
        assert offer.memory.fits
    console = Console(file=io.StringIO(), width=80)
    print_plan(report, console)
    assert isinstance(console.file, io.StringIO)
    screen = console.file.getvalue()
    for words in ("here", "cost", "80.0 GiB", "NVIDIA H100", "bf16 and fp8: no run of this model"):
        assert words in screen
    assert "…" not in screen
    assert job.run_id != gpu.run_id
