"""Four workers, one of which is killed every few seconds, publish what an undisturbed run does.

Worker processes are those of the product with the bundled model, started as it starts them.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tests.faults import checker
from tests.faults.laboratory import Drive, Laboratory
from tests.faults.scenario import REAL, Scenario

WORKERS = 4


@dataclass(frozen=True, slots=True)
class Soak:
    """How the soak went: what was wrong, how often a worker was killed, and for how long it went on."""

    problems: list[str]
    kills: int
    seconds: float


def soak(laboratory: Laboratory, base: Path, *, rows: int, every: float, seed: int, forked: bool) -> Soak:
    """Run the job undisturbed and disturbed, a worker killed `every` so many seconds, and compare.

    A worker is started again as often as it takes: the limit on deaths in a row is not what is looked at here.
    """
    sets = ("workers.retries=1000",)
    calm, rough = (
        Scenario("folder", base / name, REAL, rows, WORKERS, max_tokens=24, sets=sets) for name in ("calm", "rough")
    )
    for scenario in (calm, rough):
        scenario.write_input()
    outcome = laboratory.run(calm.order(seconds=1200, forked=forked))
    problems = list(checker.after_resume(calm, outcome, checker.NOTHING, checker.digests(calm)))
    started = time.monotonic()
    drive = laboratory.start(rough.order(seconds=1200, forked=forked))
    kills = sum(1 for _ in _kill_workers(drive, rough, every, random.Random(seed)))
    outcome = drive.outcome()
    problems += checker.after_resume(rough, outcome, checker.NOTHING, checker.digests(calm))
    return Soak(problems, kills, time.monotonic() - started)


def _kill_workers(drive: Drive, scenario: Scenario, every: float, choose: random.Random) -> Iterator[int]:
    """Kill one living worker after another until the driver has ended, each after a shard was finished.

    On a machine that is too slow for the pace the run would else never end.
    """
    finished = 0
    while not drive.ended:
        time.sleep(every)
        if (now := len(list(scenario.run.glob("commits/*")))) == finished:
            continue
        finished = now
        alive = [pid for pid in _workers(scenario) if os.path.exists(f"/proc/{pid}")]
        if alive and not drive.ended:
            victim = choose.choice(alive)
            with suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
                yield victim


def _workers(scenario: Scenario) -> list[int]:
    try:
        lines = (scenario.run / "events.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    except FileNotFoundError:
        return []
    events = [json.loads(line) for line in lines if line.endswith("\n")]
    return [event["pid"] for event in events if event["event"] == "started"]
