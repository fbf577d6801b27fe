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
SCENARIOS = (
    "folder", "file", "fresh", "cached", "partial", "retry", "retries", "empty",
    "file-fresh", "file-partial", "file-retry",
)  # fmt: skip
DEADLINE = "15s"


@dataclass(frozen=True, slots=True)
class Scenario:
    """One way to run the job below `base`, which holds the input beside the watched folder.

    `folder` publishes a folder, `file` one JSONL file, `fresh` replaces an older result, `cached` takes and keeps
    answers in the cache, `partial` completes what a deadline has left undone, `retry` computes failed rows again,
    `retries` those that had failed again, `empty` has no rows. `file-fresh` and the like do that to one JSONL file.
    """

    name: str
    base: Path
    worker: str = INSTANT
    rows: int = ROWS
    workers: int = 2
    max_tokens: int = 8
    sets: tuple[str, ...] = ()

    @classmethod
    def of(cls, name: str, base: Path, worker: str = INSTANT) -> Scenario:
        """The scenario of a name with its usual rows."""
        return cls(name, base, worker, 0 if name == "empty" else ROWS)

    @property
    def single(self) -> bool:
        """Whether one file is published."""
        return self.name.startswith("file")

    @property
    def work(self) -> str:
        """What is done, be it to a folder or to a file."""
        return self.name.removeprefix("file-")

    @property
    def replaces(self) -> bool:
        """Whether a result is there before."""
        return self.work in ("fresh", "partial", "retry", "retries")

    @property
    def retries(self) -> bool:
        """Whether failed rows are computed again."""
        return self.work in ("retry", "retries")

    @property
    def root(self) -> Path:
        return self.base / "watched"

    @property
    def output(self) -> Path:
        return self.root / ("out.jsonl" if self.single else "out")

    @property
    def manifest(self) -> Path:
        if self.single:
            return self.output.with_name(f"_{self.output.name}.manifest.json")
        return self.output / "_manifest.json"

    @property
    def run(self) -> Path:
        return self.root / "run"

    @property
    def expected_errors(self) -> list[int]:
        """The rows that cannot be answered."""
        return [self.rows // 2] if self.rows else []

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
        for before in self._earlier():
            outcome = laboratory.run(before)
            assert outcome.status == (3 if self.work == "partial" else 0), outcome.output
        if self.replaces:
            self.earlier.write_bytes(self.manifest.read_bytes())

    def _earlier(self) -> list[Order]:
        """The drives that leave what is there before."""
        if self.work == "fresh":  # an older result of other bytes
            return [self._elsewhere((*self.arguments(seed=99), "--limit", "20"), "--run-dir")]
        if self.work == "cached":
            return [self._elsewhere((*self.arguments(), "--limit", "20"), "--run-dir", "--output")]
        if self.work == "partial":
            pace = {"FAULTS_FREE": "1", "FAULTS_PACE": "600"}
            return [self.order("--set", f"schedule.deadline={DEADLINE}", worker=PACED, environment=pace)]
        failing = [self.order(worker=FAILING)] if self.retries else []
        if self.work == "retries":  # some fail again
            failing.append(self.order("--retry-errors", worker=FAILING, environment={"FAULTS_EVERY": "14"}))
        return failing

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
        return ("--fresh",) if self.work == "fresh" else self.again

    @property
    def again(self) -> tuple[str, ...]:
        """What is added when the run is resumed."""
        return ("--retry-errors",) if self.retries else ()
