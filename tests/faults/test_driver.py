"""What may happen to a driver: signals, a rival, a Prefect that is wrong or gone, a worker that does not move."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any
from urllib.request import Request, urlopen

import pytest

from tasks.local_server import local_server
from tests.faults import checker
from tests.faults.conftest import Site, Undisturbed
from tests.faults.full import full
from tests.faults.laboratory import Laboratory
from tests.faults.scenario import Scenario


def wait_for(condition: Callable[[], Any], seconds: float = 60) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)
    return found


def committed(scenario: Scenario) -> list[str]:
    return [path.name for path in scenario.run.glob("commits/*")]


def events(scenario: Scenario, kind: str) -> list[dict[str, Any]]:
    lines = (scenario.run / "events.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    found = [json.loads(line) for line in lines if line.endswith("\n")]
    return [event for event in found if event["event"] == kind]


def resumes(lab: Laboratory, scenario: Scenario, expected: dict[str, str]) -> None:
    """Run it again to its end; nothing that was committed is computed again."""
    before = checker.look(scenario)
    assert list(checker.after_resume(scenario, lab.run(scenario.order()), before, expected)) == []


@pytest.mark.parametrize(
    "signals",
    [
        pytest.param([signal.SIGTERM], id="terminated", marks=full),
        pytest.param([signal.SIGINT], id="interrupted"),
        pytest.param([signal.SIGINT, signal.SIGINT], id="interrupted-twice", marks=full),
        pytest.param([signal.SIGTERM, signal.SIGINT], id="terminated-and-interrupted"),
        pytest.param([signal.SIGHUP, signal.SIGHUP], id="hung-up-by-the-kernel-and-the-shell"),
    ],
)
def test_a_signal_drains_the_run(lab: Laboratory, site: Site, undisturbed: Undisturbed, signals: Sequence[int]) -> None:
    scenario = site()
    drive = lab.start(scenario.order(environment={"FAULTS_PACE": "0.6"}))
    wait_for(lambda: len(committed(scenario)) >= 2)
    for number in signals:
        drive.signal(number)
        time.sleep(0.3)
    outcome = drive.outcome()
    assert outcome.status == 130, outcome.output
    assert outcome.survivors < 5
    assert list(checker.after_crash(scenario, outcome)) == []
    assert not scenario.output.exists()
    assert "overnight infer" in outcome.output
    if len(signals) == 1 or signal.SIGHUP in signals:  # what the workers held was not lost
        assert len(committed(scenario)) == len(list(scenario.run.glob("attempts/*")))
    resumes(lab, scenario, undisturbed(scenario))


def test_of_two_drivers_one_wins(lab: Laboratory, site: Site, undisturbed: Undisturbed) -> None:
    scenario = site()
    drives = [lab.start(scenario.order()) for _ in range(2)]
    outcomes = [drive.outcome() for drive in drives]
    assert sorted(outcome.status for outcome in outcomes) == [0, 4], [outcome.output for outcome in outcomes]
    assert checker.digests(scenario) == undisturbed(scenario)
    assert len(committed(scenario)) == len(list(scenario.run.glob("attempts/*")))


def test_a_worker_that_stops_moving_is_replaced(lab: Laboratory, site: Site, undisturbed: Undisturbed) -> None:
    scenario = site(300, "workers.stall_timeout=2")
    drive = lab.start(scenario.order())
    wait_for(lambda: len(committed(scenario)) >= 2)
    victim = int(events(scenario, "started")[0]["pid"])
    os.kill(victim, signal.SIGSTOP)
    wait_for(lambda: events(scenario, "died"))
    with suppress(ProcessLookupError):  # nothing is left of it that could be late
        os.kill(victim, signal.SIGCONT)
    outcome = drive.outcome()
    assert list(checker.after_resume(scenario, outcome, checker.NOTHING, undisturbed(scenario))) == []
    how = events(scenario, "died")[0]["how"]
    assert "for 2 s" in how
    (line,) = [line for line in outcome.output.splitlines() if line.startswith("Deaths")]
    assert f"of workers: {how}" in line


def test_a_run_that_prefect_believes_crashed_publishes_once(
    lab: Laboratory, site: Site, undisturbed: Undisturbed
) -> None:
    scenario = site()
    drive = lab.start(scenario.order())
    wait_for(lambda: len(committed(scenario)) >= 2)
    running = {"flow_runs": {"state": {"type": {"any_": ["RUNNING"]}}}, "flows": {"name": {"any_": ["infer"]}}}
    for run in post(lab.api, "flow_runs/filter", running):
        state = {"state": {"type": "CRASHED", "message": "a heartbeat was missed"}, "force": True}
        post(lab.api, f"flow_runs/{run['id']}/set_state", state)
    rival = lab.run(scenario.order())  # what an automation would start
    assert rival.status == 4, rival.output
    outcome = drive.outcome()
    before = checker.look(scenario)
    if outcome.status != 0:
        outcome = lab.run(scenario.order())
    assert list(checker.after_resume(scenario, outcome, before, undisturbed(scenario))) == []
    assert len(committed(scenario)) == len(list(scenario.run.glob("attempts/*")))


@full
def test_a_run_outlives_its_prefect_server_or_is_resumed(lab: Laboratory, site: Site, undisturbed: Undisturbed) -> None:
    scenario = site()
    with local_server(scenario.base / "prefect") as server:
        drive = lab.start(scenario.order(environment={"PREFECT_API_URL": server.wait()}))
        wait_for(lambda: len(committed(scenario)) >= 2)
        server.end()
        outcome = drive.outcome()
    assert not outcome.timed_out
    assert list(checker.ledger(scenario)) == []
    assert (outcome.status == 0) == scenario.manifest.exists()
    if outcome.status == 0:
        assert list(checker.result(scenario)) == []
    else:
        assert outcome.status == 1
        resumes(lab, scenario, undisturbed(scenario))


def post(api: str, path: str, body: dict[str, Any]) -> Any:
    request = Request(f"{api}/{path}", json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urlopen(request, timeout=30) as answer:
        return json.load(answer)
