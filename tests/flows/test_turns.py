"""Two runs on one machine: the urgent one, started later, is finished first; the other goes on to the same bytes."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from tasks.status import run_status
from tests.flows.conftest import Overnight, messages, program, write_rows
from tests.flows.test_infer import digest, wait_for

ROWS = 250


def test_an_urgent_run_goes_first_and_the_other_one_goes_on(
    overnight: Overnight, environment: dict[str, str], config: Path, tmp_path: Path
) -> None:
    source = write_rows(tmp_path / "in.jsonl", list(messages(ROWS)))
    hot = write_rows(tmp_path / "hot.jsonl", list(messages(6)))
    config.write_text(config.read_text().replace("dp_degree = 2", "dp_degree = 1"))  # each start of a worker costs time
    arguments = ["infer", "--input", source, "--config", config, "--set", "sampling.max_tokens=32"]
    words = program(*arguments, "--output", "patient/out")
    with (
        (tmp_path / "log").open("w") as log,
        subprocess.Popen(words, env=environment, cwd=tmp_path, stdout=log, stderr=log, text=True) as patient,
    ):
        wait_for(lambda: list((tmp_path / "patient").glob(".overnight/*/commits/*.json")))
        (run,) = (tmp_path / "patient" / ".overnight").iterdir()
        urgent = program("infer", "--input", hot, "--config", config, "--output", "urgent/out")
        with subprocess.Popen(
            [*urgent, "--set", "schedule.urgency=5"], env=environment, cwd=tmp_path, stderr=subprocess.PIPE, text=True
        ) as hurried:
            wait_for(lambda: run_status(run).state == "waiting")
            status = run_status(run)
            done = len(list((run / "commits").iterdir()))
            assert status.waits_for is not None
            assert f"process {hurried.pid}, urgency 5" in status.waits_for
            assert hurried.stderr is not None
            said = hurried.stderr.read()
        assert hurried.returncode == 0, said
        assert (tmp_path / "urgent" / "out" / "_manifest.json").exists()
        assert patient.poll() is None
        assert not (tmp_path / "patient" / "out").exists()
        assert done < status.shards
        assert patient.wait(timeout=120) == 0, (tmp_path / "log").read_text()

    events = [json.loads(line) for line in (run / "events.jsonl").open()]
    kinds = [event["event"] for event in events]
    assert [kind for kind in kinds if kind in ("yielding", "waiting", "going_on", "died")] == [
        "yielding",
        "waiting",
        "going_on",
    ]
    between = kinds[kinds.index("waiting") : kinds.index("going_on")]
    assert not {"done", "started", "ready"} & set(between), "it computed while it was not its turn"
    shards = [event["shard"] for event in events if event["event"] == "done"]
    assert len(shards) == len(set(shards)) == status.shards, "a shard was computed twice"
    assert "Makes way for run" in (tmp_path / "log").read_text()
    assert overnight(*arguments, "--output", "plain/out").returncode == 0
    assert digest(tmp_path / "patient" / "out") == digest(tmp_path / "plain" / "out")
