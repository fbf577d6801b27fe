"""A worker whose log lies on a full disk tells what is wrong all the same."""

from __future__ import annotations

import sys
from io import TextIOWrapper
from pathlib import Path

import pytest

from data.checkpoint import Checkpoint
from data.ledger import Ledger
from data.plan import plan_windows
from data.run_folder import RunFolder
from data.shards import prompts_path
from tasks.planner import plan_options
from tasks.results import ResultTable
from tasks.worker import Worker
from tasks.worker_order import WorkerOrder
from tests.tasks.test_cache import MODEL, Driver, Echo, prepared


def test_a_shard_that_cannot_be_read_fails_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = prepared(tmp_path)
    folder = RunFolder.create(job.run_path, job.identity)
    windows = list(plan_windows(folder, job.dataset, job.prompter, job.run_id, plan_options(job.settings)))
    shards = Ledger(folder).missing(windows[0].shards)
    prompts_path(folder, shards[0].id).unlink()
    driver = Driver(shards[:1])
    order = WorkerOrder(worker=0, run=folder.path, settings=job.settings, device="cpu", threads=1)
    table = ResultTable(job.settings, Checkpoint.open(str(MODEL)).tokenizer(), None)
    worker = Worker(driver, order, Echo(), table, 512)  # type: ignore[arg-type]
    full = TextIOWrapper(open("/dev/full", "wb", buffering=0), write_through=True)  # noqa: SIM115
    monkeypatch.setattr(sys, "stderr", full)
    with pytest.raises(EOFError):
        worker.serve()
    monkeypatch.undo()
    (failed,) = [message for message in driver.heard if message["event"] == "failed"]
    assert failed["shard"] == shards[0].id
