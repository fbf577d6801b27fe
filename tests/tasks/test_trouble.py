"""Rows and workers that make trouble, in real worker processes: every other row of theirs is answered, once."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.attempts import read_attempts, record_attempt, record_end
from data.errors import RunError
from data.ledger import Ledger, read_results
from data.run_folder import RunFolder
from tasks import run as running
from tasks.configuration import load_settings
from tasks.endings import NoWorkers
from tasks.events import EventLog
from tasks.job import RunOptions, prepare
from tasks.outcome import warnings
from tasks.planner import plan_options
from tasks.progress import Progress
from tasks.run import OpenRun
from tasks.stages import run_lot
from tasks.workers import start_pool
from tests.flows.conftest import MODEL, ROOT
from tests.tasks import troubled_worker as trouble

ROWS = 200


class Bench:
    """One input whose row numbers are the second token of its prompts, and runs over it."""

    def __init__(self, root: Path, trouble: dict[int, int], workers: int, stall: float, count: int) -> None:
        self.root, self.trouble, self.count = root, trouble, count
        rows = [
            {"ids": [trouble.get(row, 5), row % 3000, *range(50, 60 + row % 5), *[50] * (row // 3000)]}
            for row in range(count)
        ]
        pq.write_table(pa.Table.from_pylist(rows), root / "in.parquet")
        given: dict[str, dict[str, Any]] = {
            "input": {"path": str(root / "in.parquet")},
            "output": {"path": str(root / "out"), "error_budget": 1.0},
            "job": {"prompt_ids": "ids"},
            "model": {"path": str(MODEL)},
            "workers": {"dp_degree": workers, "stall_timeout": stall, "retries": 1},
        }
        job = prepare(load_settings(None, given, ()), RunOptions(), datetime.now(), "overnight infer")
        self.job = replace(job, placement=replace(job.placement, workers=workers))  # whatever the cores of this machine
        self.folder = RunFolder.create(self.job.run_path, self.job.identity)

    def open(self) -> OpenRun:
        progress = Progress()
        events = EventLog(self.folder.events, progress.tell)
        run = OpenRun(self.job, self.folder, Ledger(self.folder), events, progress, None, None, 0.0)
        run.workers = start_pool(running.WORKER_TARGET, self.job, self.folder, events, None)
        return run

    def answer(self) -> OpenRun:
        """Every shard of the input by real workers, each a lot of its own."""
        run = self.open()
        try:
            while (window := run.planner.next()) is not None and not window.last:
                pass
            for window in run.windows:
                for shard in window.shards:
                    run_lot.fn(run, [shard])
        finally:
            run.stop(0.0)
        return run

    def results(self, run: OpenRun) -> dict[int, tuple[str | None, str | None]]:
        """Answer and error code of each sequence, by the row of its prompt; each once."""
        found: dict[int, tuple[str | None, str | None]] = {}
        for window in run.windows:
            plan = pq.read_table(self.folder.plan / f"{window.name}.parquet").to_pylist()
            rows = {(row["shard"], row["slot"]): row["row"] for row in plan}
            for shard in window.shards:
                table = read_results(self.folder, run.ledger.commits()[shard.id]).to_pylist()
                for result in table:
                    row = rows[shard.index, result["slot"]]
                    assert row not in found
                    found[row] = (result["output"], result["code"])
        assert sorted(found) == list(range(self.count))
        return found

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.folder.events.read_text().splitlines()]

    @property
    def deaths(self) -> list[str]:
        return [event["how"] for event in self.events if event["event"] == "died"]


MakeBench = Callable[..., Bench]


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeBench:
    monkeypatch.setattr(running, "WORKER_TARGET", "tests.tasks.troubled_worker:main")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    made = 0

    def make(trouble: dict[int, int] | None = None, workers: int = 2, stall: float = 60.0, rows: int = ROWS) -> Bench:
        nonlocal made
        made += 1
        root = tmp_path / str(made)
        root.mkdir()
        monkeypatch.setenv("TROUBLE", str(root))
        return Bench(root, trouble or {}, workers, stall, rows)

    return make


def undisturbed(bench: MakeBench) -> dict[int, tuple[str | None, str | None]]:
    calm = bench()
    return calm.results(calm.answer())


@pytest.mark.parametrize("number", [trouble.KILL, trouble.ILLEGAL])
def test_a_row_that_kills_its_worker_becomes_an_error_row_and_the_others_are_answered(
    bench: MakeBench, number: int
) -> None:
    lab = bench({100: number})
    run = lab.answer()
    results = lab.results(run)
    assert results[100] == (None, "worker_died")
    assert all(code is None and output for row, (output, code) in results.items() if row != 100)
    how = "killed by SIGKILL" if number == trouble.KILL else "a fault of its device"
    assert set(lab.deaths) == {how}
    assert 4 <= len(lab.deaths) <= 14
    assert [event["shards"] for event in lab.events if event["event"] == "died" if len(event["shards"]) != 1] == []
    commits = [json.loads(path.read_text()) for path in lab.folder.commits.iterdir()]
    assert sum(commit["errors"] for commit in commits) == 1
    (shard,) = [shard for shard in run.windows[0].shards if run.ledger.commits()[shard.id].errors]
    others = set(rows_of(lab, shard.index)) - {100}
    assert [set(rows) == others for _, rows in batches(lab)].count(True) == 1, "one pass over all others"
    assert any("worker_died" in warning for warning in warnings(run))
    done = [event["shard"] for event in lab.events if event["event"] == "done"]
    assert len(done) == len(set(done)) == len(run.windows[0].shards)


def test_a_run_whose_rows_are_all_answered_starts_no_worker_again(bench: MakeBench) -> None:
    lab = bench()
    lab.answer()
    before = lab.events
    again = lab.open()
    again.planner.plan_ahead()
    time.sleep(1.0)
    again.stop(0.0)
    assert [event["event"] for event in lab.events[len(before) :]] == ["planned", "resumed"]


def batches(lab: Bench) -> list[tuple[int, list[int]]]:
    """What each process computed together: its id, and the rows."""
    return [tuple(json.loads(line)) for line in (lab.root / "batches").read_text().splitlines()]


def test_a_single_worker_outlives_the_search_for_two_rows_of_a_large_shard(
    bench: MakeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = bench({1000: trouble.KILL, 3000: trouble.KILL}, workers=1, rows=4096)
    monkeypatch.setattr(running, "plan_options", lambda given: replace(plan_options(given), shard_tokens=10**9))
    monkeypatch.setattr("data.sharding.MIN_SHARDS", 1)
    counted: list[int] = []
    monkeypatch.setattr(Progress, "_on_progress", lambda _, event: counted.append(event["sequences"]))
    run = lab.answer()
    assert [shard.sequences for shard in run.windows[0].shards] == [4096]
    assert {row for row, (_, code) in lab.results(run).items() if code} == {1000, 3000}
    assert len(lab.deaths) > 16
    assert max(counted) == 4094, "trials are no progress"


def test_the_row_that_is_judged_died_twice_alone_and_first_in_its_process(bench: MakeBench) -> None:
    lab = bench({100: trouble.KILL}, workers=1)
    lab.answer()
    found = batches(lab)
    alone = [number for number, (_, rows) in enumerate(found) if rows == [100]]
    assert len(alone) == 2
    assert found[alone[1] - 1][0] != found[alone[1]][0], "the second time it was not the first of its worker"


def test_a_worker_that_was_killed_twice_changes_no_byte(bench: MakeBench) -> None:
    """Its shard is searched in vain; the answers are those of one pass, which here tell the size of their batch."""
    calm, lab = bench(), bench()
    wanted = calm.results(calm.answer())
    run = lab.open()
    run.planner.plan_ahead()
    run.stop(0.0)
    shard = run.windows[0].shards[0]
    for _ in range(2):
        record_end(lab.folder, shard.id, record_attempt(lab.folder, shard.id, 0), "died")
    again = lab.answer()
    assert lab.results(again) == wanted
    assert [attempt.trial for attempt in read_attempts(lab.folder, shard.id)] == [False, False, True, True, False]
    shas = [{path.name for path in each.folder.shards.iterdir()} for each in (calm, lab)]
    assert shas[0] == shas[1]


def test_the_search_goes_on_after_the_driver_was_killed(bench: MakeBench) -> None:
    """The records of a driver that is gone count: no part is tried again that had its verdict."""
    lab = bench({100: trouble.KILL}, workers=1)
    run = lab.open()
    run.planner.plan_ahead()
    (shard,) = [s for s in run.windows[0].shards if 100 in rows_of(lab, s.index)]
    future = run.answers([shard])[shard.id]
    for _ in range(4):
        assert future.exception(timeout=60) is not None
        future = run.hand_out_again(shard)
    run.pool.dismiss()
    run.stop(0.0)
    before = read_attempts(lab.folder, shard.id)
    assert sum(attempt.deaths == 1 for attempt in before) >= 4
    results = lab.results(lab.answer())
    assert results[100] == (None, "worker_died")
    after = read_attempts(lab.folder, shard.id)
    tried = [(attempt.first, attempt.stop) for attempt in after if attempt.trial]
    # A trial that the first driver's end cut short may be repeated, and the row itself has two.
    assert len(tried) <= len(set(tried)) + 2


def test_a_run_that_is_stopped_again_and_again_suspects_no_shard(bench: MakeBench) -> None:
    lab = bench({100: trouble.HANG}, workers=1)
    for _ in range(4):
        (lab.root / f"once-{trouble.HANG}").unlink(missing_ok=True)
        run = lab.open()
        run.planner.plan_ahead()
        (shard,) = [s for s in run.windows[0].shards if 100 in rows_of(lab, s.index)]
        assert run.answers([shard])[shard.id]
        while not (lab.root / f"once-{trouble.HANG}").exists():
            time.sleep(0.1)
        run.stop(0.0)
    ends = [(attempt.end, attempt.deaths) for attempt in read_attempts(lab.folder, shard.id)]
    assert ends == [("stopped", 0.0)] * 4


def rows_of(lab: Bench, index: int) -> list[int]:
    table = pq.read_table(lab.folder.plan / "w00000.parquet")
    return [row["row"] for row in table.to_pylist() if row["shard"] == index]


@pytest.mark.parametrize("number", [trouble.LOSE, trouble.SWAP, trouble.TWICE])
def test_results_that_are_mixed_up_fail_the_run_and_commit_nothing_of_it(bench: MakeBench, number: int) -> None:
    lab = bench({100: number}, workers=1)
    with pytest.raises(RunError, match=r"no result for 1 sequences|for another row|nobody asked for"):
        lab.answer()
    (bad,) = {event["shard"] for event in lab.events if event["event"] == "failed"}
    assert not (lab.folder.commits / f"{bad}.json").exists()
    assert not any(attempt.deaths for attempt in read_attempts(lab.folder, bad)), "no row is to blame"


def test_logits_that_are_not_numbers_are_an_error_row_and_a_warning(bench: MakeBench) -> None:
    lab = bench({100: trouble.NAN})
    run = lab.answer()
    assert [row for row, (_, code) in lab.results(run).items() if code == "nan_logits"] == [100]
    assert lab.deaths == []
    (warning,) = [event for event in lab.events if event["event"] == "warning" if "code" in event]
    assert warning["code"] == "nan_logits"
    assert any("not numbers for 1 of" in warning for warning in warnings(run))


@pytest.mark.parametrize(
    ("number", "how"), [(trouble.HANG, "no progress for 5 s"), (trouble.STOP, "no sign of life for 5 s")]
)
def test_a_worker_that_hangs_or_is_stopped_is_replaced_and_its_rows_answered(
    bench: MakeBench, number: int, how: str
) -> None:
    lab = bench({100: number}, stall=5.0)
    results = lab.results(lab.answer())
    assert lab.deaths == [how]
    assert all(code is None for _, code in results.values())


def test_workers_that_are_gone_for_good_leave_the_run_to_the_others(bench: MakeBench) -> None:
    lab = bench(workers=4)
    (lab.root / "broken").write_text("1 3")
    run = lab.open()
    try:
        run.planner.plan_ahead()
        for _ in range(600):
            if sum(event.get("code") == "worker_gone" for event in lab.events) == 2:
                break
            time.sleep(0.2)
        for shard in run.windows[0].shards:
            run_lot.fn(run, [shard])
    finally:
        run.stop(0.0)
    lab.results(run)
    gone = [warning for warning in warnings(run) if "given up" in warning]
    assert [f"goes on with {left} of 4" in warning for left, warning in zip((3, 2), gone, strict=True)] == [True, True]


def test_without_any_worker_the_run_fails_and_another_one_finishes_it(bench: MakeBench) -> None:
    lab = bench()
    (lab.root / "broken").write_text("0 1")
    with pytest.raises(NoWorkers, match="every worker died"):
        lab.answer()
    assert not any(lab.folder.commits.iterdir())
    assert not os.path.exists(lab.job.output_path)
    (lab.root / "broken").unlink()
    lab.results(lab.answer())


def test_a_worker_whose_weights_change_in_memory_says_so_and_is_given_up_the_second_time(bench: MakeBench) -> None:
    lab = bench()
    (lab.root / "flipped").write_text("0")
    run = lab.answer()
    assert all(code is None for _, code in lab.results(run).values())
    changed = [event for event in lab.events if event.get("code") == "weights_changed"]
    assert 1 <= len(changed) <= 2, "more than twice nobody trusts a device"
    assert {event["worker"] for event in changed} == {0}
    assert all(len(event["shards"]) == 1 for event in changed)
    assert lab.deaths == ["exit status 1"] * len(changed)
    shards = [shard.id for shard in run.windows[0].shards]
    ends = [attempt.end for shard in shards for attempt in read_attempts(lab.folder, shard)]
    assert "survived" in ends
    assert "died" not in ends, "no shard is to blame"
