"""Many trials from one seed, spread over laboratories that work side by side, and the search for planted bugs."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue

from tests.faults.fault import Point
from tests.faults.laboratory import Laboratory, laboratory
from tests.faults.plants import PLANTS
from tests.faults.scenario import INSTANT, REAL, SCENARIOS, Scenario
from tests.faults.trial import Bench, Trial, Verdict

REVEALING: dict[str, tuple[str, str]] = {
    "write in place": ("kill", "worker write run/commits 2"),
    "created under its final name, then written": ("kill", "worker write run/commits 2"),
    "commit before data": ("kill", "worker link run/shards 2"),
    "no file sync": ("power", "driver rename out 1"),
    "no folder sync": ("power", "driver rename out 1"),
    "attempt-named records and a listing": ("late", "worker fsync run/shards/ 2"),
}
"""A mode and a point at which each planted bug is found."""
assert REVEALING.keys() == PLANTS.keys()


class Benches:
    """The benches of a laboratory, each made when it is first needed."""

    def __init__(self, lab: Laboratory, base: Path) -> None:
        self.laboratory, self._base = lab, base
        self._benches: dict[tuple[str, str], Bench] = {}

    def get(self, scenario: str, worker: str = INSTANT) -> Bench:
        """The bench of a scenario and worker."""
        key = scenario, worker
        if key not in self._benches:
            base = self._base / f"{scenario}-{'real' if worker == REAL else 'instant'}"
            self._benches[key] = Bench(self.laboratory, Scenario.of(scenario, base, worker))
        return self._benches[key]

    def judge(self, trial: Trial) -> Verdict:
        """Bring one trial about."""
        return self.get(trial.scenario, trial.worker).judge(trial)


@contextmanager
def benches(scratch: Path, jobs: int) -> Iterator[list[Benches]]:
    """Benches to work at side by side, in one laboratory."""
    with laboratory(scratch / "laboratory") as lab:
        yield [Benches(lab, scratch / f"benches-{number}") for number in range(jobs)]


def sample(
    places: Benches, seed: int, counts: Mapping[str, int], *, scenarios: Sequence[str] = SCENARIOS
) -> list[Trial]:
    """So many trials of each mode, drawn from the points of undisturbed runs, none twice; some with the model."""
    choose = random.Random(seed)
    trials: list[Trial] = []
    for mode, count in counts.items():
        pools = {
            name: _shuffled(places, name, mode, choose) for name in (scenarios if mode != "late" else scenarios[:1])
        }
        while count and any(pools.values()):
            for name, pool in pools.items():
                if pool and count:
                    # The calls of the bundled model's workers are the same; its runs take longer.
                    real = scenarios == SCENARIOS and name == "folder" and count % 3 == 0
                    worker = REAL if real else INSTANT
                    trials.append(Trial(name, mode, pool.pop(), choose.randrange(10_000), worker=worker))
                    count -= 1
    return trials


def run(places: Sequence[Benches], trials: Sequence[Trial]) -> Iterator[Verdict]:
    """The verdicts, as they come."""
    free: SimpleQueue[Benches] = SimpleQueue()
    for place in places:
        free.put(place)

    def judge(trial: Trial) -> Verdict:
        place = free.get()
        try:
            return place.judge(trial)
        finally:
            free.put(place)

    with ThreadPoolExecutor(len(places)) as threads:
        yield from threads.map(judge, trials)


def revealing(plant: str) -> Trial:
    """The trial that is known to find a planted bug."""
    mode, point = REVEALING[plant]
    return Trial("folder", mode, Point.parse(point), 0, plant)


def _shuffled(places: Benches, scenario: str, mode: str, choose: random.Random) -> list[Point]:
    """The points of a scenario, those to be taken first last: every sort of call once before any sort twice."""
    points = list(places.get(scenario).points)
    if mode == "late":
        points = [point for point in points if point.who == "worker" and point.place.startswith(("run/c", "run/s"))]
    choose.shuffle(points)
    seen: Counter[tuple[str, str, str]] = Counter()
    turns: list[tuple[int, Point]] = []
    for point in points:
        turns.append((seen[point[:3]], point))
        seen[point[:3]] += 1
    return [point for _, point in sorted(turns, key=lambda turn: turn[0], reverse=True)]
