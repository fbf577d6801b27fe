"""The deployments of prefect.yaml on a real Prefect server and a real process worker, on loopback."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import psutil
import pytest

from data.lock import locked
from data.run_folder import RunFolder
from tests.flows.conftest import ROOT, messages, program, write_rows
from tests.flows.test_bench import SHAPE

BIN = Path(sys.executable).parent


class Site:
    """A Prefect server with a process worker, and the project deployed to it."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder = folder
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}/api"
        self.environment = {
            **environment,
            "PREFECT_HOME": str(folder / "home"),
            "PREFECT_API_URL": self.url,
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_WORKER_QUERY_SECONDS": "2",
            "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "2",
        }
        self.processes: list[subprocess.Popen[bytes]] = []
        self.start("server.log", "server", "start", "--port", str(port))
        wait_for(self.healthy, 120)

    def start(self, log: str, *words: str) -> None:
        with (self.folder / log).open("wb") as file:
            command = [str(BIN / "prefect"), *words]
            self.processes.append(subprocess.Popen(command, env=self.environment, cwd=ROOT, stdout=file, stderr=file))

    def prefect(self, *words: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        command = [str(BIN / "prefect"), "--no-prompt", *words]
        done = subprocess.run(command, env=self.environment, cwd=ROOT, capture_output=True, text=True, timeout=timeout)
        print(words, done.returncode, done.stdout, done.stderr, sep="\n")
        return done

    def post(self, path: str, body: dict[str, Any]) -> Any:
        request = Request(f"{self.url}/{path}", json.dumps(body).encode(), {"Content-Type": "application/json"})
        with urlopen(request, timeout=30) as answer:
            return json.load(answer)

    def healthy(self) -> bool:
        try:
            with urlopen(f"{self.url}/health", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def close(self) -> None:
        for process in self.processes:
            family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
            process.terminate()
            for member in psutil.wait_procs(family, timeout=20)[1]:
                member.kill()


def wait_for(condition: Callable[[], Any], seconds: float) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.2)
    return found


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]) -> Iterator[Site]:
    here = Site(tmp_path_factory.mktemp("site"), environment)
    try:
        assert here.prefect("work-pool", "create", "--type", "process", "overnight").returncode == 0
        assert here.prefect("deploy", "--all").returncode == 0
        here.start("worker.log", "worker", "start", "--pool", "overnight")
        yield here
    finally:
        here.close()


def parameters(config: Path, source: Path, output: Path, max_tokens: int = 8) -> str:
    settings = {
        "input": {"path": str(source)},
        "output": {"path": str(output)},
        "sampling": {"max_tokens": max_tokens},
    }
    return json.dumps({"config": str(config), "settings": settings})


def test_an_adhoc_run_publishes_and_reports(site: Site, config: Path, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "in.jsonl", list(messages(40)))
    done = site.prefect(
        "deployment", "run", "infer/adhoc", "--watch", "--params", parameters(config, source, tmp_path / "out")
    )
    assert done.returncode == 0
    assert json.loads((tmp_path / "out" / "_manifest.json").read_text())["ok"] == 40
    artifacts = {artifact["key"]: artifact for artifact in site.post("artifacts/filter", {"limit": 50})}
    assert artifacts["infer-progress"]["data"] == 100
    assert {"outcome": "ok", "rows": 40} in json.loads(artifacts["infer-rows"]["data"])
    assert str(tmp_path / "out") in artifacts["infer-output"]["data"]
    assert "40" in artifacts["infer-report"]["data"]
    # The server's record of task runs trails the client.
    wait_for(lambda: any("lot" in run["name"] for run in site.post("task_runs/filter", {"limit": 50})), 60)
    audit = ["deployment", "run", "audit/published", "--watch", "--param", f"output={tmp_path / 'out'}"]
    assert site.prefect(*audit).returncode == 0
    part = tmp_path / "out" / "part-00000.parquet"
    part.write_bytes(part.read_bytes()[:-1])
    assert site.prefect(*audit).returncode == 1


def test_a_run_that_ended_partially_is_retried_to_its_end(
    site: Site, environment: dict[str, str], config: Path, tmp_path: Path
) -> None:
    source = write_rows(tmp_path / "in.jsonl", list(messages(300)))
    whole = config.read_text()
    words = program("infer", "--input", source, "--output", tmp_path / "before", "--config", config)
    with subprocess.Popen(words, env=environment, cwd=tmp_path, start_new_session=True) as first:
        wait_for(lambda: any(tmp_path.glob(".overnight/*/commits/*.json")), 120)
        os.killpg(first.pid, signal.SIGKILL)
    config.write_text(f'{whole}[schedule]\ndeadline = "1s"\n')
    text = parameters(config, source, tmp_path / "night-{date}")
    assert site.prefect("deployment", "run", "infer/adhoc", "--watch", "--params", text).returncode == 0
    runs = site.post("flow_runs/filter", {"flow_runs": {"state": {"name": {"any_": ["Partial"]}}}})
    ((run, state),) = [(run["id"], run["state_type"]) for run in runs]
    assert state == "COMPLETED"
    (night,) = tmp_path.glob("night-*")

    def manifest() -> dict[str, Any]:
        return dict(json.loads((night / "_manifest.json").read_text()))

    assert set(manifest()["errors"]) == {"deadline"}
    assert 0 < manifest()["ok"] < 300
    config.write_text(whole)
    assert site.prefect("flow-run", "retry", run).returncode == 0
    wait_for(lambda: (night / "_manifest.json").exists() and manifest()["complete"], 120)
    assert manifest()["ok"] == 300


def test_a_flow_run_that_was_refused_starts_afresh_when_it_is_retried(site: Site, config: Path, tmp_path: Path) -> None:
    source, run_dir = write_rows(tmp_path / "in.jsonl", list(messages(5))), tmp_path / "run"
    RunFolder.create(run_dir, {"of": "another run"})
    given = json.loads(parameters(config, source, tmp_path / "out")) | {"run_dir": str(run_dir), "fresh": True}
    with locked(run_dir / "lock", "the run"):
        words = ["deployment", "run", "infer/adhoc", "--watch", "--params", json.dumps(given)]
        assert site.prefect(*words).returncode == 1
    assert RunFolder.open(run_dir).identity == {"of": "another run"}
    runs = site.post("flow_runs/filter", {"flow_runs": {"state": {"type": {"any_": ["FAILED"]}}}})
    (run,) = [run["id"] for run in runs if run["parameters"].get("run_dir") == str(run_dir)]
    assert site.prefect("flow-run", "retry", run).returncode == 0
    wait_for(lambda: (tmp_path / "out" / "_manifest.json").exists(), 120)
    assert RunFolder.open(tmp_path / "run.old-0").identity == {"of": "another run"}


def test_a_wrong_parameter_fails_the_run(site: Site, config: Path, tmp_path: Path) -> None:
    absent = parameters(config, tmp_path / "absent.jsonl", tmp_path / "out")
    assert site.prefect("deployment", "run", "infer/adhoc", "--watch", "--params", absent).returncode == 1
    assert not (tmp_path / "out").exists()


def test_the_nightly_schedule_creates_runs(site: Site) -> None:
    def nightly() -> list[Any]:
        runs = site.post("flow_runs/filter", {"deployments": {"name": {"any_": ["nightly"]}}, "limit": 5})
        return [run for run in runs if run["state_type"] == "SCHEDULED" and run["auto_scheduled"]]

    runs = wait_for(nightly, 90)
    assert all("T00:00:00" in run["expected_start_time"] or "T23:00:00" in run["expected_start_time"] for run in runs)


def test_a_deployment_goes_before_the_others(site: Site, config: Path, tmp_path: Path) -> None:
    (urgent,) = site.post("deployments/filter", {"deployments": {"name": {"any_": ["urgent"]}}})
    assert urgent["parameters"]["settings"] == {"schedule": {"urgency": 10}}
    source = write_rows(tmp_path / "in.jsonl", list(messages(5)))
    settings = {
        **urgent["parameters"]["settings"],
        "input": {"path": str(source)},
        "output": {"path": str(tmp_path / "out")},
    }
    text = json.dumps({"config": str(config), "settings": settings})
    assert site.prefect("deployment", "run", "infer/urgent", "--watch", "--params", text).returncode == 0
    manifest = json.loads((tmp_path / "out" / "_manifest.json").read_text())
    assert manifest["settings"]["schedule"]["urgency"] == 10


def test_the_benchmark_is_deployed_with_its_schedule_switched_off(site: Site, tmp_path: Path) -> None:
    (monthly,) = site.post("deployments/filter", {"deployments": {"name": {"any_": ["monthly"]}}})
    assert [(entry["slug"], entry["active"]) for entry in monthly["schedules"]] == [("monthly", False)]
    (tmp_path / "shape.json").write_text(json.dumps(SHAPE))
    settings = {"workloads": ["label:6"], "model": str(tmp_path / "shape.json"), "device": "cpu", "repeat": 1}
    words = ["deployment", "run", "bench/monthly", "--watch", "--params", json.dumps({"settings": settings})]
    assert site.prefect(*words).returncode == 0
    artifacts = {artifact["key"]: artifact for artifact in site.post("artifacts/filter", {"limit": 50})}
    assert json.loads(artifacts["bench"]["data"])[0]["workload"] == "label:6"


def test_a_model_is_quantized_by_its_deployment(site: Site, config: Path, tmp_path: Path) -> None:
    settings = {"quantize": {"method": "rtn", "gate": False, "output": str(tmp_path / "small")}}
    text = json.dumps({"config": str(config), "settings": settings})
    assert site.prefect("deployment", "run", "quantize/quantization", "--watch", "--params", text).returncode == 0
    assert "quantization_config" in json.loads((tmp_path / "small" / "config.json").read_text())
    artifacts = {artifact["key"]: artifact for artifact in site.post("artifacts/filter", {"limit": 50})}
    assert artifacts["quantize-progress"]["data"] == 100
    assert str(tmp_path / "small") in artifacts["quantize-report"]["data"]


def test_cancelling_leaves_no_worker_behind(site: Site, config: Path, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "in.jsonl", list(messages(3000)))
    text = parameters(config, source, tmp_path / "out", max_tokens=64)
    assert site.prefect("deployment", "run", "infer/adhoc", "--params", text).returncode == 0
    wait_for(lambda: list(tmp_path.glob(".overnight/*/commits/*.json")), 120)
    mine = [p for p in psutil.process_iter(["cmdline"]) if "tasks.worker:main" in (p.info["cmdline"] or [])]
    assert mine
    (run,) = site.post("flow_runs/filter", {"flow_runs": {"state": {"type": {"any_": ["RUNNING"]}}}})
    assert site.prefect("flow-run", "cancel", run["id"]).returncode == 0
    _, alive = psutil.wait_procs(mine, timeout=60)
    assert alive == []

    def cancelled() -> bool:
        (now,) = site.post("flow_runs/filter", {"flow_runs": {"id": {"any_": [run["id"]]}}})
        return bool(now["state_type"] == "CANCELLED")

    wait_for(cancelled, 60)
    assert not (tmp_path / "out").exists()
    shutil.rmtree(tmp_path / ".overnight")
