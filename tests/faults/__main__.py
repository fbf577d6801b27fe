"""`python -m tests.faults`: the whole campaign, or one trial replayed.

    python -m tests.faults campaign [--kills N] [--cuts N] [--late N] [--seed N] [--jobs N]
    python -m tests.faults replay SCENARIO MODE POINT SEED [--plant NAME] [--real]
    python -m tests.faults soak [--rows N] [--every SECONDS] [--seed N]

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
from tests.faults.soak import soak
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


def replay(place: Benches, given: argparse.Namespace) -> bool:
    """One trial; whether the run survived it."""
    worker = REAL if given.real else INSTANT
    verdict = place.judge(Trial(given.scenario, given.mode, given.point, given.seed, given.plant, worker))
    print(verdict)
    return verdict.reached and not verdict.problems


def endure(place: Benches, scratch: Path, given: argparse.Namespace) -> bool:
    """The soak; whether it changed nothing."""
    done = soak(place.laboratory, scratch / "soak", rows=given.rows, every=given.every, seed=given.seed, forked=False)
    print(f"{done.kills} kills of 4 workers in {done.seconds:.0f} s: {done.problems or 'the same bytes'}")
    return done.kills > 0 and not done.problems


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
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
    long = commands.add_parser("soak")
    long.add_argument("--rows", type=int, default=6000)
    long.add_argument("--every", type=float, default=4.0)
    long.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> int:
    """Do what the command line says."""
    given = parse()
    jobs = given.jobs if given.command == "campaign" else 1
    with tempfile.TemporaryDirectory(prefix="overnight-faults-") as name, benches(Path(name), jobs) as places:
        if given.command == "campaign":
            asked = {"kill": given.kills, "power": given.cuts, "late": given.late}
            return 0 if campaign(places, asked, given.seed) else 1
        if given.command == "soak":
            return 0 if endure(places[0], Path(name), given) else 1
        return 0 if replay(places[0], given) else 1


if __name__ == "__main__":
    sys.exit(main())
