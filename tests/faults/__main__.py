"""`python -m tests.faults`: the whole campaign, or one trial replayed.

    python -m tests.faults campaign [--kills N] [--cuts N] [--late N] [--seed N] [--jobs N]
    python -m tests.faults replay SCENARIO MODE POINT SEED [--plant NAME] [--real]

Exit status 1 if an invariant was violated, a planted bug was not found, or fewer points were reached than asked for.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.faults.campaign import Benches, benches, revealing, run, sample
from tests.faults.fault import Point
from tests.faults.plants import PLANTS
from tests.faults.scenario import INSTANT, REAL, SCENARIOS
from tests.faults.trial import MODES, Trial, Verdict

SPARE = 10
"""Trials beyond those asked for, since a run may end before it comes to a point."""


def campaign(places: list[Benches], asked: dict[str, int], seed: int) -> bool:
    """Trials of every mode and the planted bugs; whether all is well."""
    started = time.monotonic()
    trials = sample(places[0], seed, *(count + SPARE if count else 0 for count in asked.values()))
    verdicts: list[Verdict] = []
    for verdict in run(places, trials):
        verdicts.append(verdict)
        if verdict.problems:
            print(f"VIOLATED {verdict}", flush=True)
        elif len(verdicts) % 20 == 0:
            print(f"{len(verdicts)} of {len(trials)} after {time.monotonic() - started:.0f} s", flush=True)
    reached = Counter(verdict.trial.mode for verdict in verdicts if verdict.reached)
    violated = Counter(verdict.trial.mode for verdict in verdicts if verdict.problems)
    for mode, count in asked.items():
        print(f"{mode}: {reached[mode]} points reached (at least {count} asked), {violated[mode]} violated")
    missed = [verdict for verdict in run(places, [revealing(name) for name in PLANTS]) if not verdict.problems]
    for verdict in missed:
        print(f"NOT FOUND {verdict}")
    print(f"{len(PLANTS) - len(missed)} of {len(PLANTS)} planted bugs found")
    print(f"seed {seed}, {time.monotonic() - started:.0f} s")
    return not violated and not missed and all(reached[mode] >= count for mode, count in asked.items())


def main() -> int:
    """Parse the command line and do what it says."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    whole = commands.add_parser("campaign")
    for name, count in (("kills", 210), ("cuts", 210), ("late", 6), ("seed", 0), ("jobs", 2)):
        whole.add_argument(f"--{name}", type=int, default=count)
    once = commands.add_parser("replay")
    once.add_argument("scenario", choices=SCENARIOS)
    once.add_argument("mode", choices=MODES)
    once.add_argument("point", type=Point.parse)
    once.add_argument("seed", type=int)
    once.add_argument("--plant", choices=[*PLANTS], default="")
    once.add_argument("--real", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="overnight-faults-") as name:
        if given.command == "replay":
            worker = REAL if given.real else INSTANT
            trial = Trial(given.scenario, given.mode, given.point, given.seed, given.plant, worker)
            with benches(Path(name), 1) as places:
                verdict = places[0].judge(trial)
            print(verdict)
            return 0 if verdict.reached and not verdict.problems else 1
        asked = {"kill": given.kills, "power": given.cuts, "late": given.late}
        with benches(Path(name), given.jobs) as places:
            return 0 if campaign(places, asked, given.seed) else 1


if __name__ == "__main__":
    sys.exit(main())
