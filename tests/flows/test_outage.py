"""What a user sees where the run's own Prefect server is gone, or hangs."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

import psutil
import pytest

from tests.flows.conftest import messages, program, write_rows

NOWHERE = "http://127.0.0.1:9/api"


def server_of(driver: int) -> int | None:
    """The process id of a driver's Prefect server."""
    for child in psutil.Process(driver).children(recursive=True):
        if "tasks.local_server:serve" in child.cmdline():
            return child.pid
    return None


def flow_runs(folder: Path) -> int:
    """How many flow runs the server of a run in `folder` knows."""
    for database in folder.glob(".overnight/*/prefect/prefect.db"):
        with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as opened, suppress(sqlite3.Error):
            return int(opened.execute("select count(*) from flow_run").fetchone()[0])
    return 0


def answered(folder: Path) -> bool:
    """Whether the run in `folder` has planned its shards and committed them all."""
    plans = [json.loads(path.read_bytes()) for path in folder.glob(".overnight/*/plan/*.json")]
    return bool(plans) and len(list(folder.glob(".overnight/*/commits/*.json"))) == len(plans[0]["shards"])


def without_server(
    environment: dict[str, str], config: Path, folder: Path, when: Callable[[Path], object], number: int
) -> subprocess.Popen[str]:
    """A driver of 900 rows whose server got the signal `number` once `when` held."""
    source = write_rows(folder / "rows.jsonl", messages(900))
    words = program("infer", "--input", source, "--output", "out.jsonl", "--config", config)
    driver = subprocess.Popen(
        words, env=environment, cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    while driver.poll() is None and not when(folder):
        time.sleep(0.01)
    server = server_of(driver.pid)
    assert server is not None
    os.kill(server, number)
    return driver


@pytest.mark.parametrize(
    ("when", "number"), [(flow_runs, signal.SIGKILL), (answered, signal.SIGKILL), (answered, signal.SIGSTOP)]
)
def test_a_result_is_published_and_reported_though_the_server_is_gone_or_hangs(
    environment: dict[str, str], config: Path, tmp_path: Path, when: Callable[[Path], object], number: int
) -> None:
    driver = without_server(environment, config, tmp_path, when, number)
    out, err = driver.communicate(timeout=200)
    print(out, err)
    assert "EventsWorker" not in out + err, "what goes wrong is told once, by the report"
    assert (tmp_path / "out.jsonl").exists() == (driver.returncode == 0)
    assert driver.returncode == 0 or when is not answered, "publishing needs no Prefect"
    if driver.returncode == 0:
        assert len((tmp_path / "out.jsonl").read_text("utf-8").splitlines()) == 900
        assert json.loads((tmp_path / "_out.jsonl.manifest.json").read_text())["complete"]
        assert "completed" in out
        assert "Prefect failed once the result was published" in out or "Prefect failed before" in out
    else:
        assert driver.returncode == 1
        assert "Prefect failed" in out


def test_sigterm_is_obeyed_though_the_server_hangs(environment: dict[str, str], config: Path, tmp_path: Path) -> None:
    driver = without_server(environment, config, tmp_path, flow_runs, signal.SIGSTOP)
    driver.send_signal(signal.SIGTERM)
    out, err = driver.communicate(timeout=200)
    print(out, err)
    assert driver.returncode == 130
    assert "Traceback" not in err
    assert "interrupted" in out
    assert "by SIGTERM" in err
    assert "To resume" in out


@pytest.mark.parametrize(
    ("name", "value", "status"),
    [
        ("PREFECT_API_URL", NOWHERE, 1),
        ("PREFECT_API_URL", "nonsense", 2),
        ("PREFECT_SERVER_API_PORT", "abc", 2),
    ],
)
def test_a_prefect_that_is_set_wrong_is_told_in_a_line_with_a_remedy(
    environment: dict[str, str], config: Path, tmp_path: Path, name: str, value: str, status: int
) -> None:
    source = write_rows(tmp_path / "rows.jsonl", messages(3))
    words = program("infer", "--input", source, "--output", "out.jsonl", "--config", config)
    done = subprocess.run(
        words, env={**environment, name: value}, cwd=tmp_path, text=True, capture_output=True, timeout=200
    )
    print(done.stdout, done.stderr)
    assert done.returncode == status
    said = (done.stderr if status == 2 else done.stdout).replace("\n", " ")
    assert "Traceback" not in done.stdout + done.stderr
    assert name in said
    assert value in said
