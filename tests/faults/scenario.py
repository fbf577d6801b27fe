"""The job that is disturbed: a few dozen rows in several shards, with bad rows and repeated ones among them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from tests.faults.laboratory import Laboratory
from tests.faults.order import Order

MODEL = next(path.parent for path in sorted((Path(__file__).parents[2] / "data" / "models").glob("*/config.json")))
INSTANT, PACED, REAL = "tests.scale.instant_worker:main", "tests.faults.paced_worker:main", "tasks.worker:main"
FAILING = "tests.faults.paced_worker:failing"
ROWS = 100
SCENARIOS = ("folder", "file", "fresh", "cached", "partial", "retry")
REPLACING = ("fresh", "partial", "retry")
DEADLINE = "15s"


@dataclass(frozen=True, slots=True)
class Scenario:
    """One way to run the job below `base`, which holds the input beside the watched folder.

    `folder` publishes a folder, `file` one JSONL file, `fresh` replaces an older result, `cached` takes and keeps
    answers in the cache, `partial` completes what a deadline has left undone, `retry` computes failed rows again.
    """

    name: str
    base: Path
    worker: str = INSTANT
    rows: int = ROWS
    workers: int = 2
    max_tokens: int = 8
    sets: tuple[str, ...] = ()

    @property
    def root(self) -> Path:
        return self.base / "watched"

    @property
    def output(self) -> Path:
        return self.root / ("out.jsonl" if self.name == "file" else "out")

    @property
    def run(self) -> Path:
        return self.root / "run"

    @property
    def expected_errors(self) -> list[int]:
        """The rows that cannot be answered."""
        return [self.rows // 2]

    def write_input(self) -> None:
        """The input, and an empty watched folder."""
        self.root.mkdir(parents=True)
        with (self.base / "in.jsonl").open("w", encoding="utf-8") as file:
            for number in range(self.rows):
                repeated = number % (self.rows * 9 // 10)
                text = (
                    ""
                    if number in self.expected_errors
                    else f"Order {repeated} is late{', very late' * (repeated % 5)}."
                )
                file.write(json.dumps({"id": number, "text": text}) + "\n")

    def arguments(self, *more: str, seed: int = 0) -> tuple[str, ...]:
        """The command line of the job."""
        sets = (
            f"model.path={MODEL}", "job.prompt={{ text }}", f"sampling.max_tokens={self.max_tokens}",
            f"sampling.seed={seed}", f"workers.dp_degree={self.workers}", "output.error_budget=0.5",
            f"cache.enabled={str(self.name == 'cached').lower()}", f"cache.path={self.root / 'cache'}", *self.sets,
        )  # fmt: skip
        places = ("--input", str(self.base / "in.jsonl"), "--output", str(self.output), "--run-dir", str(self.run))
        return ("infer", *places, *(word for text in sets for word in ("--set", text)), *more)

    def order(self, *more: str, **fields: object) -> Order:
        """A drive of the job; `fields` are those of Order."""
        given = {"root": str(self.root), "arguments": self.arguments(*more), "worker": self.worker, **fields}
        return Order.model_validate(given)

    def prepare(self, laboratory: Laboratory) -> None:
        """The input, and what is there before the run that is disturbed."""
        self.write_input()
        before = self.order()
        if self.name == "fresh":
            before = self._elsewhere(self.arguments(seed=99), "--run-dir")
        elif self.name == "cached":
            before = self._elsewhere((*self.arguments(), "--limit", "20"), "--run-dir", "--output")
        elif self.name == "partial":
            pace = {"FAULTS_FREE": "1", "FAULTS_PACE": "600"}
            before = self.order("--set", f"schedule.deadline={DEADLINE}", worker=PACED, environment=pace)
        elif self.name == "retry":
            before = self.order(worker=FAILING)
        else:
            return
        outcome = laboratory.run(before)
        assert outcome.status == (3 if self.name == "partial" else 0), outcome.output
        if self.name in REPLACING:
            self.earlier.write_bytes((self.output / "_manifest.json").read_bytes())

    def _elsewhere(self, arguments: tuple[str, ...], *options: str) -> Order:
        words = list(arguments)
        for option in options:
            words[words.index(option) + 1] = str(self.root / f"before{option}")
        return self.order().model_copy(update={"arguments": tuple(words)})

    @property
    def earlier(self) -> Path:
        """The manifest of the result that the run replaces."""
        return self.base / "earlier.json"

    @property
    def first(self) -> tuple[str, ...]:
        """What is added to the command line the first time."""
        return ("--fresh",) if self.name == "fresh" else self.again

    @property
    def again(self) -> tuple[str, ...]:
        """What is added when the run is resumed."""
        return ("--retry-errors",) if self.name == "retry" else ()
