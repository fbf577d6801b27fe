"""One disturbed run from its start to its verdict: a fault at a point, a resumed run, the invariants."""

from __future__ import annotations

import os
import random
import shlex
import shutil
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults import checker
from tests.faults.fault import Point
from tests.faults.laboratory import Laboratory
from tests.faults.order import Outcome
from tests.faults.scenario import INSTANT, REAL, Scenario

MODES = ("kill", "power", "late", "both")
DRIVE_SECONDS = 180.0
LATE_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Trial:
    """A fault to bring about.

    `mode` is kill (the process that calls is killed), power (all are, and what was not synced is lost as `seed` says)
    late (a worker is stopped, its driver killed, the run resumed, and then the worker goes on), or both (a process is
    killed, the run resumed if it was the driver, and then the power fails, as `seed` says at some point or at the end).
    """

    scenario: str
    mode: str
    point: Point
    seed: int = 0
    plant: str = ""
    worker: str = INSTANT

    @property
    def command(self) -> str:
        """What replays it."""
        words = ["python", "-m", "tests.faults", "replay", self.scenario, self.mode, str(self.point), str(self.seed)]
        if self.plant:
            words += ["--plant", self.plant]
        if self.worker == REAL:
            words.append("--real")
        return shlex.join(words)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was wrong after a trial; not `reached` if the point was never passed."""

    trial: Trial
    problems: tuple[str, ...]
    reached: bool
    seconds: float

    def __str__(self) -> str:
        what = "; ".join(self.problems) or ("survived" if self.reached else "not reached")
        return f"{self.trial.command}: {what}"


@dataclass
class Bench:
    """A scenario laid out once in a laboratory: what is there before, an undisturbed run's points and bytes."""

    laboratory: Laboratory
    scenario: Scenario
    points: list[Point] = field(init=False)
    expected: dict[str, str] = field(init=False)
    _pristine: Path = field(init=False)

    def __post_init__(self) -> None:
        self.scenario.prepare(self.laboratory)
        self._pristine = self.scenario.base / "pristine"
        shutil.copytree(self.scenario.root, self._pristine)
        outcome = self.laboratory.run(self.scenario.order(*self.scenario.first, trace=True))
        problems = [*checker.result(self.scenario), *checker.ledger(self.scenario)]
        assert outcome.status == 0, outcome.output
        assert not problems, problems
        self.points = [Point.parse(text) for text in outcome.trace]
        self.expected = checker.digests(self.scenario)

    def judge(self, trial: Trial) -> Verdict:
        """Bring the fault about and say what came of it."""
        started = time.monotonic()
        shutil.rmtree(self.scenario.root)
        shutil.copytree(self._pristine, self.scenario.root)
        bring_about = {"late": self._late, "both": self._both}.get(trial.mode, self._crash)
        reached, problems = bring_about(trial)
        return Verdict(trial, tuple(problems), reached, time.monotonic() - started)

    def _crash(self, trial: Trial) -> tuple[bool, list[str]]:
        fault = {str(trial.point): "kill-all" if trial.mode == "power" else "kill"}
        power = trial.seed if trial.mode == "power" else None
        order = self.scenario.order(
            *self.scenario.first, faults=fault, power=power, plant=trial.plant, seconds=DRIVE_SECONDS
        )
        first = self.laboratory.run(order)
        if not first.reached:
            return False, []
        problems = list(checker.after_crash(self.scenario, first))
        seen = checker.look(self.scenario)
        if first.status >= 0:  # the driver outlived its worker
            return True, problems + list(checker.after_resume(self.scenario, first, checker.NOTHING, self.expected))
        resumed = self._resume(trial)
        return True, problems + list(checker.after_resume(self.scenario, resumed, seen, self.expected))

    def _both(self, trial: Trial) -> tuple[bool, list[str]]:
        """What a killed process has named and not synced is there for the next one, and may go with the power."""
        choose = random.Random(trial.seed)
        order = self.scenario.order(
            *self.scenario.first,
            faults={str(trial.point): "kill"},
            resumed=self.scenario.arguments(*self.scenario.again),
            cut="" if choose.random() < 0.5 else str(choose.choice(sorted(self.points))),
            power=trial.seed,
            plant=trial.plant,
            seconds=DRIVE_SECONDS,
        )
        second = self.laboratory.run(order)
        if not second.reached:
            return False, []
        problems = list(checker.after_crash(self.scenario, second))
        if second.status == 0:
            problems += checker.result(self.scenario)
        elif second.status > 0 and not self._unpermitted(second):
            problems.append(f"I8 the resumed run ended with status {second.status}: {second.output[-600:]}")
        seen = checker.look(self.scenario)
        resumed = self._resume(trial)
        return True, problems + list(checker.after_resume(self.scenario, resumed, seen, self.expected))

    def _late(self, trial: Trial) -> tuple[bool, list[str]]:
        fault = {str(trial.point): "orphan"}
        order = self.scenario.order(*self.scenario.first, faults=fault, plant=trial.plant, deaf=True)
        drive = self.laboratory.start(order)
        try:
            first = drive.outcome("driver")
            if not first.reached:
                return False, []
            seen = checker.look(self.scenario)
            resumed = self._resume(trial)
            problems = list(checker.after_resume(self.scenario, resumed, seen, self.expected))
            before = checker.look(self.scenario)
            for process in first.stopped:
                os.kill(process, signal.SIGCONT)
            problems += _await_end(first.stopped)
        finally:
            drive.kill_all()
            drive.outcome()
        after = checker.look(self.scenario)
        if after.commits != before.commits or after.manifest != before.manifest:
            problems.append("I5 a late attempt has changed the ledger or the manifest")
        problems += [*checker.result(self.scenario), *checker.ledger(self.scenario)]
        return True, problems

    def _resume(self, trial: Trial) -> Outcome:
        order = self.scenario.order(*self.scenario.again, plant=trial.plant, seconds=DRIVE_SECONDS)
        outcome = self.laboratory.run(order)
        if self._unpermitted(outcome):  # the user repeats it
            outcome = self.laboratory.run(self.scenario.order(*self.scenario.first, plant=trial.plant))
        return outcome

    def _unpermitted(self, outcome: Outcome) -> bool:
        """Whether it was refused since the first start was killed before it recorded the permission to replace."""
        return outcome.status == 2 and self.scenario.first != self.scenario.again


def _await_end(processes: tuple[int, ...]) -> list[str]:
    deadline = time.monotonic() + LATE_SECONDS
    while any(os.path.exists(f"/proc/{process}") for process in processes):
        if time.monotonic() > deadline:
            return ["I7 a worker without a driver goes on"]
        time.sleep(0.05)
    return []
