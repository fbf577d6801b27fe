"""The second night: only what is new is computed, and the published bytes are those of computing all of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.flows.conftest import Overnight, messages, write_rows


def computed(tmp_path: Path, run: str) -> int:
    """Sequences that the workers of a run have answered."""
    events = map(json.loads, (tmp_path / run / "events.jsonl").open())
    return sum(event["rows"] for event in events if event["event"] == "done")


def parts(output: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(output.glob("part-*"))]


def test_a_second_run_computes_only_changed_rows(overnight: Overnight, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [*messages(99), {"id": 99, "text": ""}]
    first = write_rows(tmp_path / "first.jsonl", rows)
    rows[40] = {"id": 40, "text": "Something else altogether"}
    second = write_rows(tmp_path / "second.jsonl", rows)
    cache = ("--set", "cache.enabled=true", "--set", "cache.path=cache")
    wide = ("--set", "output.error_budget=0.5", "--set", "workers.dp_degree=1", "--output", "out", "--fresh")
    assert overnight("infer", "--input", first, *wide, *cache, "--run-dir", "a").returncode == 0
    assert computed(tmp_path, "a") == 99
    done = overnight("infer", "--input", second, *wide, *cache, "--run-dir", "b")
    assert done.returncode == 0
    assert computed(tmp_path, "b") == 1
    assert "98 prompts answered by earlier runs" in done.stdout
    manifest = json.loads((tmp_path / "out" / "_manifest.json").read_text())
    assert manifest["hits"]["cached"] == 98
    assert manifest["tokens"]["computed_input"] < manifest["tokens"]["input"] / 50
    assert "98 of earlier runs" in overnight("status", "b").stdout
    cached = parts(tmp_path / "out")

    # The same table on the next night, to a place of its own: nothing is computed.
    nightly = ("--set", "output.error_budget=0.5", "--set", "workers.dp_degree=1", "--output", "night-2")
    assert overnight("infer", "--input", second, *nightly, *cache, "--run-dir", "b").returncode == 0
    assert computed(tmp_path, "b") == 0
    assert '"started"' not in (tmp_path / "b" / "events.jsonl").read_text(), "no worker was needed"
    assert parts(tmp_path / "night-2") == cached
    assert overnight("audit", "night-2").returncode == 0

    shown = overnight("cache", *cache)
    assert "messages-4m" in shown.stdout
    assert " 0 answers" in overnight("cache", "--clear", *cache).stdout
    assert not list((tmp_path / "cache" / "answers").iterdir())
