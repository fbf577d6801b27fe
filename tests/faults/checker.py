"""The invariants, checked from the files alone by code that shares nothing with the product.

I1 ok + error = rows in. I2 each row once, in order. I3 a commit implies durable data of the hash that it names.
I4 a complete manifest is written once and refers to verified files. I5 a late attempt changes nothing. I6 what is
committed is not computed again, and the published bytes are those of an undisturbed run. I7 every wait ends.
I8 status 0 only with a verified manifest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from tests.faults.order import Outcome
from tests.faults.scenario import Scenario

PATIENCE_SECONDS = 15.0
"""For workers, once their driver has ended."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What is there after a crash and must still be there, unchanged, after the run was resumed."""

    commits: dict[str, bytes]
    attempts: frozenset[str]
    manifest: bytes | None

    @property
    def shards(self) -> set[str]:
        return {name.split(".")[0] for name in self.commits}


NOTHING = Seen({}, frozenset(), None)


def look(scenario: Scenario) -> Seen:
    """Take down the ledger and the manifest as they are now."""
    run = scenario.run
    commits = {path.name: path.read_bytes() for path in run.glob("commits/*")}
    attempts = frozenset(path.name for path in run.glob("attempts/*"))
    content = scenario.manifest.read_bytes() if scenario.manifest.exists() else None
    if scenario.replaces and content == scenario.earlier.read_bytes():
        content = None  # which is to be replaced
    return Seen(commits, attempts, content)


def after_crash(scenario: Scenario, outcome: Outcome) -> Iterator[str]:
    """What is wrong with what a crash has left."""
    if outcome.timed_out:
        yield f"I7 the run had not ended after {outcome.limit:g} s"
    if outcome.survivors > PATIENCE_SECONDS:
        yield f"I7 a worker ended {outcome.survivors:.1f} s after its driver"
    yield from ledger(scenario)
    seen = look(scenario)
    for shard in set(outcome.told) - seen.shards:
        yield f"I3 a shard that was reported as done is not committed: {shard}"
    if scenario.manifest.exists():
        yield from files(scenario, json.loads(scenario.manifest.read_bytes()))
    elif scenario.replaces and not kept(scenario):
        yield "I4 the older result is gone before the new one is complete"


def ledger(scenario: Scenario) -> Iterator[str]:
    """Every commit is whole, the only one of its shard, and its data are there unless they were published."""
    run = scenario.run
    published = [path for path in run.glob("publications/*.json") if path.name != "replace.json"]
    elsewhere = published and (scenario.manifest.exists() or (scenario.retries and kept(scenario)))
    shards: set[str] = set()
    for path in sorted(run.glob("commits/*")):
        try:
            commit = json.loads(path.read_bytes())
            shard, sha256, rows = commit["shard"], commit["sha256"], commit["rows"]
        except (ValueError, KeyError, TypeError):
            yield f"I3 {path.name} is torn"
            continue
        if shard in shards:
            yield f"I5 {shard} is committed twice"
        shards.add(shard)
        data = run / "shards" / f"{sha256}.parquet"
        if not data.exists():
            if not elsewhere:
                yield f"I3 {path.name} has no data"
        elif hashlib.sha256(data.read_bytes()).hexdigest() != sha256:
            yield f"I3 the data of {path.name} are not those of its hash"
        elif pq.read_metadata(data).num_rows != rows:
            yield f"I3 the data of {path.name} have other rows"


def after_resume(scenario: Scenario, outcome: Outcome, before: Seen, expected: dict[str, str]) -> Iterator[str]:
    """What is wrong once the run was resumed and ended; `expected` are the digests of an undisturbed run."""
    if outcome.timed_out:
        yield f"I7 the resumed run had not ended after {outcome.limit:g} s"
    if outcome.status != 0:
        yield f"I8 the resumed run ended with status {outcome.status}: {outcome.output[-600:]}"
        return
    yield from result(scenario)
    if digests(scenario) != expected:
        yield "I6 other bytes than those of an undisturbed run"
    after = look(scenario)
    for name, content in before.commits.items():
        if after.commits.get(name) != content:
            yield f"I5 the commit {name} has changed"
    for name in after.attempts - before.attempts:
        if name.split(".")[0] in before.shards:
            yield f"I6 a committed shard was computed again: {name}"
    if before.manifest is not None and after.manifest != before.manifest:
        yield "I4 a complete manifest has changed"
    yield from ledger(scenario)
    hidden = [path.name for path in scenario.root.iterdir() if path.name.startswith(".")]
    left = [
        *hidden,
        *(path.name for folder in ("tmp", "shards", "prompts") for path in (scenario.run / folder).iterdir()),
    ]
    if left:
        yield f"left behind: {left}"


def result(scenario: Scenario) -> Iterator[str]:
    """What is wrong with the published result, from its bytes."""
    if not scenario.manifest.exists():
        yield "I8 status 0 without a manifest"
        return
    content = json.loads(scenario.manifest.read_bytes())
    yield from files(scenario, content)
    rows = published(scenario)
    if [row["id"] for row in rows] != list(range(scenario.rows)):
        yield "I2 the rows are not those of the input, each once and in order"
    failed = [row["id"] for row in rows if row["status"] == "error" and row["error"]["code"]]
    answered = sum(row["status"] == "ok" and row["output"] is not None for row in rows)
    if failed != scenario.expected_errors or answered + len(failed) != scenario.rows:
        yield f"I1 {answered} answers and the errors {failed} of {scenario.rows} rows"
    if not content["complete"] or (content["rows"], content["ok"]) != (scenario.rows, answered):
        yield "I4 the manifest tells other counts"


def files(scenario: Scenario, manifest: dict[str, Any]) -> Iterator[str]:
    """What is wrong with the files that a manifest names."""
    for file in manifest["files"]:
        if not _is_there(scenario, scenario.output, file):
            yield f"I4 {file['name']} is not the file that the manifest names"


def kept(scenario: Scenario) -> bool:
    """Whether each file of the older result lies at the output or was moved aside."""
    earlier = json.loads(scenario.earlier.read_bytes())
    places = [scenario.output, *scenario.root.glob(f".{scenario.output.name}.*.old-*")]
    return all(any(_is_there(scenario, place, file) for place in places) for file in earlier["files"])


def _is_there(scenario: Scenario, place: Path, file: dict[str, Any]) -> bool:
    """Whether a file of a manifest is in a result, with its bytes."""
    path = place if scenario.single else place / file["name"]
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == file["sha256"]


def published(scenario: Scenario) -> list[dict[str, Any]]:
    """The rows at the output."""
    if scenario.single:
        return [json.loads(line) for line in scenario.output.read_text(encoding="utf-8").splitlines()]
    parts = sorted(scenario.output.glob("part-*.parquet"))
    return [row for part in parts for row in pq.read_table(part).to_pylist()]


def digests(scenario: Scenario) -> dict[str, str]:
    """The SHA-256 of each published file but the manifest, which tells of times."""
    paths = [scenario.output] if scenario.single else sorted(scenario.output.glob("part-*"))
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
