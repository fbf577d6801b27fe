"""`python -m tests.faults`: the whole campaign, or one trial replayed.

    python -m tests.faults campaign [--kills N] [--cuts N] [--late N] [--both N] [--seed N] [--jobs N] [--rows N]
    python -m tests.faults replay SCENARIO MODE POINT SEED [--plant NAME] [--real]
    python -m tests.faults soak [--rows N] [--every SECONDS] [--seed N]

Exit status 1 if an invariant was violated, a planted bug was not found, or fewer points were reached than asked for.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.faults.campaign import Benches, benches, revealing, run, sample
from tests.faults.fault import Point
from tests.faults.plants import PLANTS
from tests.faults.scenario import INSTANT, REAL, SCENARIOS
from tests.faults.soak import Soak, soak
from tests.faults.tally import Tally
from tests.faults.trial import MODES, Trial

SPARE = 10
"""Trials beyond those asked for, since a run may end before it comes to a point."""


def campaign(places: list[Benches], scratch: Path, asked: dict[str, int], given: argparse.Namespace) -> bool:
    """Trials of every mode, the planted bugs and the soak; whether all is well."""
    started = time.monotonic()
    tally = Tally(asked)
    for verdict in run(places, [revealing(name) for name in PLANTS]):
        tally.plants.append(verdict)
        if not verdict.problems:
            print(f"NOT FOUND {verdict}", flush=True)
    trials = sample(places[0], given.seed, {mode: count + SPARE for mode, count in asked.items() if count})
    for verdict in run(places, trials):
        tally.verdicts.append(verdict)
        if verdict.problems:
            print(f"VIOLATED {verdict}", flush=True)
        if len(tally.verdicts) % 20 == 0:
            print(f"{len(tally.verdicts)} of {len(trials)} after {time.monotonic() - started:.0f} s", flush=True)
    if given.rows:
        tally.soak = endure(places[0], scratch, given)
    print(tally.table(given.seed, time.monotonic() - started))
    return tally.well


def replay(place: Benches, given: argparse.Namespace) -> bool:
    """One trial; whether the run survived it."""
    worker = REAL if given.real else INSTANT
    verdict = place.judge(Trial(given.scenario, given.mode, given.point, given.seed, given.plant, worker))
    print(verdict)
    return verdict.reached and not verdict.problems


def endure(place: Benches, scratch: Path, given: argparse.Namespace) -> Soak:
    """The soak, with workers that are started as the program starts them."""
    done = soak(place.laboratory, scratch / "soak", rows=given.rows, every=given.every, seed=given.seed, forked=False)
    print(f"{done.kills} kills of 4 workers in {done.seconds:.0f} s: {done.problems or 'the same bytes'}", flush=True)
    return done


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    whole = commands.add_parser("campaign")
    for name, count in (("kills", 210), ("cuts", 210), ("late", 6), ("both", 110), ("jobs", 3)):
        whole.add_argument(f"--{name}", type=int, default=count)
    once = commands.add_parser("replay")
    once.add_argument("scenario", choices=SCENARIOS)
    once.add_argument("mode", choices=MODES)
    once.add_argument("point", type=Point.parse)
    once.add_argument("seed", type=int)
    once.add_argument("--plant", choices=[*PLANTS], default="")
    once.add_argument("--real", action="store_true")
    long = commands.add_parser("soak")
    for command in (whole, long):
        command.add_argument("--rows", type=int, default=3000)  # of the soak; none without it
        command.add_argument("--every", type=float, default=4.0)
        command.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> int:
    """Do what the command line says."""
    given = parse()
    jobs = given.jobs if given.command == "campaign" else 1
    with tempfile.TemporaryDirectory(prefix="overnight-faults-") as name, benches(Path(name), jobs) as places:
        if given.command == "campaign":
            asked = {"kill": given.kills, "power": given.cuts, "late": given.late, "both": given.both}
            return 0 if campaign(places, Path(name), asked, given) else 1
        if given.command == "soak":
            done = endure(places[0], Path(name), given)
            return 0 if done.kills > 0 and not done.problems else 1
        return 0 if replay(places[0], given) else 1


if __name__ == "__main__":
    sys.exit(main())
