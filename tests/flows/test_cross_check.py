"""A worker that computes wrongly is found by another one, and nothing of the run is published."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.flows.conftest import ROOT, Overnight, messages, write_rows

DRIVER = """
import sys, tasks.run
from flows.cli import main
tasks.run.WORKER_TARGET = "tests.tasks.lying_worker:main"
sys.argv = ["overnight", *sys.argv[1:]]
main()
"""


def test_workers_that_disagree_end_the_run_and_a_resumed_one(
    overnight: Overnight, environment: dict[str, str], config: Path, tmp_path: Path
) -> None:
    source = write_rows(tmp_path / "in.jsonl", list(messages(200)))
    words = ["infer", "--input", str(source), "--output", "out", "--config", str(config)]
    lying = subprocess.run(
        [sys.executable, "-c", DRIVER, *words],
        env={**environment, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=500,
    )
    print(lying.stdout, lying.stderr)
    assert lying.returncode == 1
    assert "computes wrongly" in lying.stdout + lying.stderr
    assert not (tmp_path / "out").exists()
    (run,) = tmp_path.glob(".overnight/*")
    events = [json.loads(line) for line in (run / "events.jsonl").open()]
    assert any(event["event"] == "repeated" and event["differ"] for event in events)
    assert not (run / "repeats").exists(), "prompts are left behind"

    resumed = overnight(*words, timeout=500)
    assert resumed.returncode == 1, "the answers of the faulty worker would be published"
    assert overnight(*words, "--fresh", timeout=500).returncode == 0
    (fresh,) = [path for path in tmp_path.glob(".overnight/*") if ".old" not in path.name]
    repeated = [event for event in map(json.loads, (fresh / "events.jsonl").open()) if event["event"] == "repeated"]
    assert repeated
    assert all(event["differ"] == 0 for event in repeated)
