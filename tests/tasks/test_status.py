"""Status reads a real run folder: plan, commits, events and the lock of a living driver."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from rich.console import Console

from data.errors import InputError
from data.ledger import commit_shard
from data.results import result_schema
from data.run_folder import RunFolder
from data.shards import Shard
from data.window import KEYS, ROWS, Window, save_window
from tasks.events import EventLog
from tasks.status import print_status, run_status, runs_below


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run of two windows: 10 + 6 rows, 2 of them errors, four shards of 3 sequences, 2 rows folded."""
    run = RunFolder.create(tmp_path / ".overnight" / "r", {"job": "test"})
    save(run, 0, rows=10, errors={"blank_prompt": 2}, folded=2, last=False, answers=(4, 4))
    save(run, 1, rows=6, errors={}, folded=0, last=True, answers=(3, 3))
    return run


def save(
    run: RunFolder, index: int, *, rows: int, errors: dict[str, int], folded: int, last: bool, answers: tuple[int, int]
) -> None:
    shards = tuple(
        Shard(f"{index}{number}", index, 2 * index + number, 3, answered, 30, 30, 1.0)
        for number, answered in enumerate(answers)
    )
    window = Window(index, 0, 10 * index, rows, shards, errors, folded, 60, last, 100, None, {})
    save_window(run, window, {".parquet": ROWS.empty_table(), ".keys.parquet": KEYS.empty_table()})


def commit(run: RunFolder, window: int, number: int, codes: tuple[str | None, ...] = (None, None, None)) -> None:
    schema = result_schema("generate")
    values: dict[str, list[Any]] = {field.name: [None] * 3 for field in schema}
    values["slot"] = [0, 1, 2]
    values["status"] = ["error" if code else "ok" for code in codes]
    values["code"] = list(codes)
    values["message"] = ["failed" if code else None for code in codes]
    values["output"] = [None if code else "text" for code in codes]
    values["finish_reason"] = [None if code else "stop" for code in codes]
    values["input_tokens"], values["output_tokens"] = [10, 10, 10], [2, 2, 2]
    shard = Shard(f"{window}{number}", window, 2 * window + number, 3, 4, 30, 30, 1.0)
    commit_shard(run, shard, pa.table(values, schema), worker=0, attempt=1, seconds=1.0)


def write_events(run: RunFolder, events: list[dict[str, Any]], spacing: float = 30.0) -> None:
    now = datetime.now(UTC)
    with run.events.open("a") as file:
        for number, event in enumerate(events):
            when = now - timedelta(seconds=spacing * (len(events) - number - 1))
            file.write(json.dumps({"time": when.isoformat(), **event}) + "\n")


def driver_events(done: int) -> Iterator[dict[str, Any]]:
    yield {"event": "run_started", "run": "r", "folder": "", "workers": 1, "device": "cpu"}
    yield {"event": "started", "worker": 0, "pid": 1}
    yield {"event": "ready", "worker": 0, "seconds": 1.0, "device": "cpu"}
    for window, last in ((0, False), (1, True)):
        counts = {"rows": 6 + 4 * (1 - window), "sequences": 6, "errors": {}, "folded": 0, "input_tokens": 60}
        yield {"event": "planned", "window": window, "shards": 2, "last": last, **counts}
    for _ in range(done):
        tokens = {"input_tokens": 30, "output_tokens": 6}
        yield {"event": "done", "worker": 0, "shard": "s", "rows": 3, "ok": 3, "errors": 0, "seconds": 1.0,
               "attempt": 1, **tokens}  # fmt: skip


def test_counts_come_from_plan_and_commits(run: RunFolder) -> None:
    assert run_status(run.path).rows_done == 2
    commit(run, 0, 0)
    commit(run, 1, 1, (None, "nan_logits", "nan_logits"))
    status = run_status(run.path)
    assert (status.rows, status.rows_final, status.rows_done) == (16, True, 2 + 4 + 3)
    assert (status.shards, status.shards_done) == (4, 2)
    assert (status.input_tokens, status.output_tokens) == (60, 12)
    assert status.errors == {"blank_prompt": 2, "nan_logits": 2}
    commit(run, 0, 1)
    commit(run, 1, 0)
    assert run_status(run.path).rows_done == 16


def test_the_lock_tells_whether_a_driver_lives(run: RunFolder) -> None:
    write_events(run, list(driver_events(1)))
    with run.lock():
        status = run_status(run.path)
        assert status.state == "running"
        assert status.holder is not None
        assert "process" in status.holder
    assert run_status(run.path).state == "stopped"
    with run.lock():  # the probe has left nothing behind
        pass


def test_pace_and_workers_of_a_living_driver(run: RunFolder) -> None:
    write_events(run, list(driver_events(4)))
    commit(run, 0, 0)
    with run.lock():
        status = run_status(run.path)
    assert [worker.state for worker in status.workers] == ["running"]
    # 12 sequences in the 120 s and a little since the second window was planned, each answering 14 / 12 rows
    assert status.output_rate == pytest.approx(24 / 150, rel=0.3)
    assert status.row_rate == pytest.approx(14 / 150, rel=0.3)
    assert status.eta_seconds == pytest.approx(9 * 150 / 12, rel=0.3)


def test_the_deadline_of_a_living_driver(run: RunFolder) -> None:
    start, *events = driver_events(4)
    ends = datetime.now(UTC) + timedelta(hours=1)
    write_events(run, [{**start, "deadline": ends.isoformat()}, *events])
    with run.lock():
        status = run_status(run.path)
    assert status.outlook is not None
    assert "to be finished" in status.outlook
    screen = Console(file=io.StringIO(), width=120)
    print_status(status, screen)
    assert "Deadline  in " in screen.file.getvalue()  # type: ignore[attr-defined]
    assert run_status(run.path).outlook is None, "nobody is at work"


def test_only_the_last_start_counts_and_torn_lines_do_not(run: RunFolder) -> None:
    write_events(run, [*driver_events(1), *driver_events(0), {"event": "finished", "state": "failed", "message": "x"}])
    with run.events.open("a") as file:
        file.write('not json\n[1]\n{"time": "2026-11-23T20:00:00+00:00", "event": "do')
    status = run_status(run.path)
    assert (status.state, status.last_event) == ("failed", "finished")


def test_a_real_event_log_is_understood(run: RunFolder) -> None:
    log = EventLog(run.events)
    for event in driver_events(2):
        log.tell(event)
    log.close()
    assert run_status(run.path).last_event == "done"


def test_a_damaged_commit_does_not_hide_the_rest(run: RunFolder) -> None:
    commit(run, 0, 0)
    (run.commits / "01.json").write_text('{"shard": ')
    assert run_status(run.path).shards_done == 1


@pytest.mark.usefixtures("run")
def test_the_newest_run_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    other = RunFolder.create(tmp_path / "nightly" / ".overnight" / "b", {"job": "other"})
    write_events(other, [{"event": "run_started"}])
    assert [path.name for path in runs_below(Path())] == ["b", "r"]
    status = run_status(None)
    assert (status.run_id, len(status.others)) == (other.id, 1)


def test_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"no run found.*name the run's folder"):
        run_status(None)
    with pytest.raises(InputError, match="not a run folder"):
        run_status(tmp_path)


@pytest.mark.parametrize("width", [80, 120])
def test_the_screen_shows_counts_errors_and_place(run: RunFolder, width: int) -> None:
    write_events(run, list(driver_events(3)))
    commit(run, 0, 0, (None, None, "nan_logits"))
    stream = io.StringIO()
    with run.lock():
        print_status(run_status(run.path), Console(file=stream, width=width))
    text = stream.getvalue()
    for expected in ("running, driven by process", "6 of 16", "2 blank_prompt, 1 nan_logits", str(run.path)):
        assert expected in text


def test_the_screen_cannot_be_written_over_by_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "x\x1b[2J\x9by\rz"
    run = RunFolder.create(tmp_path / name / ".overnight" / "r", {"job": "test"})
    RunFolder.create(tmp_path / name / ".overnight" / "other", {"job": "other"})
    started = {"event": "run_started", "output": name}
    waiting = {"event": "waiting", "run": name, "process": name, "devices": [name], "urgency": 0}
    write_events(run, [started, waiting])
    monkeypatch.chdir(tmp_path)
    stream = io.StringIO()
    with run.lock():
        (run.path / "lock").write_text(name)
        print_status(run_status(None), Console(file=stream, width=120))
    assert "Other runs here" in stream.getvalue()
    assert [letter for letter in stream.getvalue() if not letter.isprintable() and letter != "\n"] == []
