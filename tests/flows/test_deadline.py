"""A deadline that comes too early: a valid partial result of what is most urgent, completed later by the same command.

The bytes are then those of a run that had neither a deadline nor a priority.
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
from collections import Counter
from contextlib import closing
from pathlib import Path

from tests.flows.conftest import Overnight, messages, program, write_rows
from tests.flows.test_infer import digest, read, wait_for

ROWS = 300


def test_a_partial_result_at_the_deadline_is_completed_later(
    overnight: Overnight, environment: dict[str, str], config: Path, tmp_path: Path
) -> None:
    source = write_rows(tmp_path / "in.jsonl", list(messages(ROWS)))
    arguments = ["infer", "--input", source, "--config", config, "--set", "sampling.max_tokens=24"]
    late = [*arguments, "--output", "late/out", "--set", "schedule.priority=id % 10"]
    hurried = [*late, "--set", "schedule.deadline=1s"]  # over before a worker has the model
    commits = tmp_path / "late" / ".overnight"
    with subprocess.Popen(program(*late), env=environment, cwd=tmp_path, start_new_session=True) as first:
        wait_for(lambda: len(list(commits.glob("*/commits/*.json"))) >= 2)
        os.killpg(first.pid, signal.SIGKILL)
    done = {path.name: json.loads(path.read_bytes()) for path in commits.glob("*/commits/*.json")}

    partial = overnight(*hurried, timeout=60)
    assert partial.returncode == 3
    assert "Published 300 rows" in partial.stderr
    assert f"{ROWS - sum(commit['ok'] for commit in done.values())} of {ROWS} rows had no answer" in partial.stdout
    assert "partial result" in overnight("audit", "late/out").stdout
    manifest = json.loads((tmp_path / "late" / "out" / "_manifest.json").read_text())
    assert not manifest["complete"]
    assert manifest["ok"] == sum(commit["ok"] for commit in done.values())
    rows = read(tmp_path / "late" / "out")
    assert [row["id"] for row in rows] == list(range(ROWS))
    answered = {row["id"] % 10 for row in rows if row["status"] == "ok"}
    assert answered == set(range(min(answered), 10)), "rows of a higher priority are without an answer"
    assert {row["error"]["code"] for row in rows if row["status"] == "error"} == {"deadline"}
    (run,) = commits.iterdir()
    assert list(run.glob("plan/*.json"))
    with closing(sqlite3.connect(run / "prefect" / "prefect.db")) as database:
        assert ("COMPLETED", "Partial") in database.execute("SELECT state_type, state_name FROM flow_run").fetchall()
    assert "partial" in overnight("status", run).stdout

    # As a kill just before the manifest is written would leave it; tests/data/test_crash.py kills at every other point.
    (tmp_path / "late" / "out" / "_manifest.json").unlink()
    assert overnight(*late, "--set", "schedule.deadline=9h").returncode == 0
    assert overnight(*arguments, "--output", "plain/out").returncode == 0
    assert digest(tmp_path / "late" / "out") == digest(tmp_path / "plain" / "out")
    now = {path.name: json.loads(path.read_bytes()) for path in commits.glob("*/commits/*.json")}
    assert now.items() >= done.items()
    events = [json.loads(line) for line in (run / "events.jsonl").open()]
    finished = Counter(event["shard"] for event in events if event["event"] == "done")
    assert set(finished.values()) == {1}, "a shard was computed twice"
    assert [path.name for path in (tmp_path / "plain" / ".overnight").iterdir()] == [run.name]
    assert {path.name for path in (tmp_path / "late").iterdir()} == {".overnight", "out"}


def test_a_deadline_before_the_first_answer_publishes_nothing(overnight: Overnight, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "in.jsonl", list(messages(30)))
    arguments = ["infer", "--input", source, "--output", "out"]
    late = overnight(*arguments, "--set", "schedule.deadline=1s")
    assert late.returncode == 1
    assert "before anything was answered" in late.stdout
    assert not (tmp_path / "out").exists()


def test_a_deadline_that_is_over_starts_nothing(overnight: Overnight, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "in.jsonl", list(messages(3)))
    for deadline in ("2020-01-01T00:00Z", "soon"):
        words = ["infer", "--input", source, "--output", "out", "--set", f"schedule.deadline={deadline}"]
        done = overnight(*words, timeout=20)
        assert done.returncode == 2
        assert "schedule.deadline" in done.stderr
        assert not (tmp_path / ".overnight").exists()
