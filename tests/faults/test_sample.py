"""A seeded sample of the campaign, and every planted bug found. `make faults` runs hundreds of points."""

from __future__ import annotations

import os
import random

from tests.faults.campaign import Benches, revealing, run, sample
from tests.faults.plants import PLANTS
from tests.faults.scenario import SCENARIOS

SEED = int(os.environ.get("FAULTS_SEED", "1"))
COUNTS = {"kill": 2, "power": 2, "both": 1, "late": 1}
DRAWN = random.Random(SEED).choice(SCENARIOS[1:])


def test_a_run_survives_kills_power_cuts_and_late_workers(places: list[Benches]) -> None:
    verdicts = list(run(places, sample(places[0], SEED, COUNTS, scenarios=("folder", DRAWN))))
    assert [str(verdict) for verdict in verdicts if verdict.problems] == []
    assert sum(verdict.reached for verdict in verdicts) >= sum(COUNTS.values()) - 2


def test_the_harness_finds_planted_bugs(places: list[Benches]) -> None:
    verdicts = list(run(places, [revealing(name) for name in PLANTS]))
    assert [str(verdict) for verdict in verdicts if not verdict.problems] == []
