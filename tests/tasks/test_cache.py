"""What an answer is kept under, how a worker keeps it, and what a run counts as hits."""

from __future__ import annotations

import io
import shutil
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from data.checkpoint import Checkpoint
from data.errors import InputError
from data.ledger import Ledger
from data.plan import plan_windows
from data.run_folder import RunFolder
from data.shards import Shard
from engine.request import Completion, Request
from tasks.cache import cache_folder, job_answers, job_digest
from tasks.cache_screen import print_cache
from tasks.configuration import load_settings
from tasks.hits import Hits, count_hits
from tasks.job import Job, RunOptions, cached_answers, prepare
from tasks.planner import plan_options
from tasks.results import ResultTable
from tasks.worker import Worker
from tasks.worker_order import WorkerOrder
from tests.flows.conftest import MODEL


def prepared(folder: Path, **changed: Any) -> Job:
    if not (folder / "in.parquet").exists():
        rows = [{"ids": [5 + (row * 31 + place * 7) % 300 for place in range(10)]} for row in range(40)]
        pq.write_table(pa.Table.from_pylist(rows), folder / "in.parquet")
    given: dict[str, dict[str, Any]] = {
        "input": {"path": str(folder / "in.parquet")},
        "output": {"path": str(folder / "out")},
        "job": {"prompt_ids": "ids"},
        "model": {"path": str(MODEL)},
        "cache": {"enabled": True, "path": str(folder / "cache")},
    }
    for name, value in changed.items():
        section, key = name.split("__")
        given.setdefault(section, {})[key] = value
    return prepare(load_settings(None, given, ()), RunOptions(), datetime.now(), "overnight infer")


def digest(folder: Path, **changed: Any) -> str:
    return job_digest(prepared(folder, **changed).identity)


@pytest.mark.parametrize(
    "changed",
    [
        {"sampling__max_tokens": 9},
        {"sampling__stop": ["."]},
        {"sampling__repetition_penalty": 1.5},
        {"sampling__temperature": 0.5},
        {"engine__kv_dtype": "fp8"},
        {"engine__deterministic": False},
        {"engine__amp": True},
        {"job__kind": "score"},
        {"job__kind": "classify", "job__choices": ["a", "b"]},
    ],
)
def test_what_decides_an_answer_is_in_its_key(tmp_path: Path, changed: dict[str, Any]) -> None:
    assert digest(tmp_path, **changed) != digest(tmp_path)


def test_what_does_not_is_not(tmp_path: Path) -> None:
    same = digest(tmp_path)
    for changed in ({"sampling__seed": 7}, {"sampling__top_p": 0.5}, {"workers__dp_degree": 1}, {"input__limit": 3}):
        assert digest(tmp_path, **changed) == same
    sampled = digest(tmp_path, sampling__temperature=0.5)
    assert digest(tmp_path, sampling__temperature=0.5, sampling__seed=7) != sampled
    scored = digest(tmp_path, job__kind="score")
    assert digest(tmp_path, job__kind="score", sampling__temperature=0.5) == scored
    choices = [digest(tmp_path, job__kind="classify", job__choices=[*names]) for names in ("ab", "ba")]
    assert choices[0] != choices[1]


def test_the_cache_is_no_part_of_a_run(tmp_path: Path) -> None:
    ids = {prepared(tmp_path, cache__enabled=enabled).run_id for enabled in (True, False)}
    assert len(ids | {prepared(tmp_path, cache__max_bytes=5, cache__path=str(tmp_path / "other")).run_id}) == 1


def test_a_cache_that_cannot_be_used_is_refused_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir(0o700)
    (tmp_path / "cache" / "thesis.tex").touch()
    for path in (str(tmp_path / "cache"), "s3://bucket/cache"):
        with pytest.raises(InputError, match=r"cache\.path"):
            prepared(tmp_path, cache__path=path)


def test_without_a_path_it_lies_in_the_users_own_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_folder(load_settings(None, {}, ()).cache) == Path("/somewhere/overnight/answers")


class Echo:
    """An engine that answers with the first prompt ids, and fails on the third request."""

    def __init__(self) -> None:
        self._requests: list[Request] = []

    @property
    def has_work(self) -> bool:
        return bool(self._requests)

    def add(self, requests: Sequence[Request]) -> None:
        self._requests += requests

    def step(self) -> list[Completion]:
        done = [
            Completion(r.id, [int(i) for i in r.prompt[:3]], "stop", prompt_tokens=10, key=r.key)
            for r in self._requests
        ]
        if len(done) > 2:
            done[2] = Completion(done[2].id, error=("nan_logits", "not numbers"), prompt_tokens=10, key=done[2].key)
        self._requests = []
        return done

    def statistics(self) -> dict[str, float]:
        return {"shared_tokens": 30.0}


class Driver:
    """Hands out shards, and then is gone."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        self.shards, self.heard = list(shards), list[dict[str, Any]]()

    def receive(self, wait: bool) -> dict[str, Any] | None:
        if self.shards:
            return self.shards.pop(0).to_json()
        if wait:
            raise EOFError
        return None

    def send(self, message: dict[str, Any]) -> None:
        self.heard.append(message)


def work(job: Job, spoil: bool = False) -> tuple[RunFolder, list[Any], Driver]:
    """Plan the job and have its shards computed, as far as the cache does not answer them."""
    folder = RunFolder.create(job.run_path, job.identity)
    options = replace(plan_options(job.settings), answers=cached_answers(job, folder))
    windows = list(plan_windows(folder, job.dataset, job.prompter, job.run_id, options))
    driver = Driver(Ledger(folder).missing(windows[0].shards))
    order = WorkerOrder(worker=0, run=folder.path, settings=job.settings, device="cpu", threads=1)
    table = ResultTable(job.settings, Checkpoint.open(str(MODEL)).tokenizer(), None)
    worker = Worker(driver, order, Echo(), table, 512)  # type: ignore[arg-type]
    if spoil:
        shutil.rmtree(job.run_path.parent.parent / "cache" / "tmp")
    with pytest.raises(EOFError):
        worker.serve()
    assert Ledger(folder).missing(windows[0].shards) == []
    return folder, windows, driver


def test_what_a_worker_answers_is_taken_by_the_next_run(tmp_path: Path) -> None:
    folder, windows, _ = work(prepared(tmp_path))
    assert count_hits(windows, Ledger(folder).commits()) == Hits(0, 0, 0, 30, 400)
    limited = prepared(tmp_path, input__limit=39)
    again, windows, driver = work(limited)
    done = [event for event in driver.heard if event["event"] == "done"]
    assert sum(event["rows"] for event in done) == 1, "the one that ended in an error"
    hits = count_hits(windows, Ledger(again).commits())
    assert (hits.cached, hits.static_tokens, hits.predicted_tokens) == (38, 380, 30)
    assert hits.rate == 1.0, "never more, whatever the engine counts"


def test_a_cache_that_fails_costs_no_shard(tmp_path: Path) -> None:
    _, windows, driver = work(prepared(tmp_path), spoil=True)
    events = [message["event"] for message in driver.heard if "numbers" not in message.get("message", "")]
    assert (events.count("done"), events.count("warning"), events.count("failed")) == (len(windows[0].shards), 1, 0)


def test_the_screen_tells_what_is_kept_by_model(tmp_path: Path) -> None:
    job = prepared(tmp_path)
    work(job)
    answers = job_answers(job.settings, job.identity, pa.schema([]))
    assert answers is not None
    stream = io.StringIO()
    print_cache(answers.cache, Console(file=stream, width=100))
    text = stream.getvalue()
    for word in (str(tmp_path / "cache"), "39 answers", MODEL.name, "generate", "float32"):
        assert word in text
