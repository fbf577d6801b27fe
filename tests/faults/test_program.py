"""The installed program under strace, which kills it at a system call: nothing of the harness is inside it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults import checker
from tests.faults.conftest import Site, Undisturbed
from tests.faults.full import full
from tests.faults.laboratory import Laboratory
from tests.faults.scenario import REAL, Scenario

STRACE = shutil.which("strace")


def overnight(lab: Laboratory, scenario: Scenario, *before: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **lab.environment}
    command = [*before, str(Path(sys.executable).parent / "overnight"), *scenario.arguments()]
    return subprocess.run(
        command, cwd=scenario.base, env=environment, capture_output=True, text=True, timeout=240, check=False
    )


@pytest.mark.skipif(STRACE is None, reason="strace is not installed; test_sample.py needs nothing that is not")
@full
@pytest.mark.parametrize("call", ["fsync", "link", "linkat", "rename", "unlink", "mkdir"])
@pytest.mark.parametrize("when", [2, 5])
def test_killed_by_strace(lab: Laboratory, site: Site, undisturbed: Undisturbed, call: str, when: int) -> None:
    scenario = site(100, worker=REAL)
    inject = f"inject={call}:signal=KILL:when={when}"
    killed = overnight(lab, scenario, str(STRACE), "-f", "-qq", "-o", "/dev/null", "-e", f"trace={call}", "-e", inject)
    if killed.returncode == 0:  # a worker was killed, or the call was not made so often
        assert list(checker.result(scenario)) == []
    else:
        assert list(checker.ledger(scenario)) == []
    before = checker.look(scenario)
    again = overnight(lab, scenario)
    assert again.returncode == 0, again.stderr
    assert list(checker.result(scenario)) == []
    assert checker.digests(scenario) == undisturbed(scenario)
    assert checker.look(scenario).commits.items() >= before.commits.items()
