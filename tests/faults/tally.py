"""What a campaign has counted, as the table at its end."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from tests.faults.plants import PLANTS
from tests.faults.soak import Soak
from tests.faults.trial import Verdict


@dataclass
class Tally:
    """Points reached and invariants violated by mode, planted bugs found, the soak. `asked`: points by mode."""

    asked: dict[str, int]
    verdicts: list[Verdict] = field(default_factory=list)
    plants: list[Verdict] = field(default_factory=list)
    soak: Soak | None = None

    @property
    def well(self) -> bool:
        """Whether nothing was violated, every planted bug found, and as many points reached as were asked for."""
        reached = Counter(verdict.trial.mode for verdict in self.verdicts if verdict.reached)
        return (
            not any(verdict.problems for verdict in self.verdicts)
            and all(verdict.problems for verdict in self.plants)
            and all(reached[mode] >= count for mode, count in self.asked.items())
            and (self.soak is None or (self.soak.kills > 0 and not self.soak.problems))
        )

    def table(self, seed: int, seconds: float) -> str:
        """The rows of what was counted, and what the points were."""
        lines = ["| what | points reached | violations | seconds each |", "|---|---|---|---|"]
        for mode in self.asked:
            found = [verdict for verdict in self.verdicts if verdict.trial.mode == mode and verdict.reached]
            mean = sum(verdict.seconds for verdict in found) / max(1, len(found))
            violated = sum(bool(verdict.problems) for verdict in found)
            lines.append(f"| {mode} | {len(found)} of {self.asked[mode]} asked | {violated} | {mean:.1f} |")
        if self.plants:
            found = [verdict for verdict in self.plants if verdict.problems]
            lines.append(f"| planted bugs | {len(found)} of {len(PLANTS)} found | | |")
        if self.soak is not None:
            lines.append(f"| soak | {self.soak.kills} kills of 4 workers | {len(self.soak.problems)} | |")
        points = [verdict.trial for verdict in self.verdicts if verdict.reached]
        for what, values in (
            ("calls", [f"{trial.point.who} {trial.point.call}" for trial in points]),
            ("jobs", [trial.scenario for trial in points]),
        ):
            lines.append(f"{what}: " + ", ".join(f"{name} {count}" for name, count in Counter(values).most_common()))
        return "\n".join([*lines, f"seed {seed}, {seconds:.0f} s in all"])
