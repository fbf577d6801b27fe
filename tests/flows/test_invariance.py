"""Batch-invariant mode from the command line."""

from __future__ import annotations

import json
from pathlib import Path

from tests.flows.conftest import Overnight, messages, write_rows

INVARIANT = ("--set", "engine.deterministic=batch-invariant")


def test_a_row_has_the_same_text_in_another_table_on_other_workers(overnight: Overnight, tmp_path: Path) -> None:
    rows = list(messages(24))
    found = []
    for name, part, workers in (("all", rows, 2), ("some", rows[:9:-1], 1)):
        source = write_rows(tmp_path / f"{name}.jsonl", part)
        workers_set = ("--set", f"workers.dp_degree={workers}")
        done = overnight("infer", "--input", source, "--output", f"{name}-out.jsonl", *INVARIANT, *workers_set)
        assert done.returncode == 0
        lines = (tmp_path / f"{name}-out.jsonl").read_text("utf-8").splitlines()
        found.append({row["id"]: row["output"] for row in map(json.loads, lines)})
    assert len(found[1]) == 14
    assert found[1] == {number: found[0][number] for number in found[1]}


def test_it_is_refused_for_what_it_does_not_hold_for(overnight: Overnight, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "rows.jsonl", messages(2))
    embed = ("--set", "job.kind=embed", "--set", "job.column=text")
    config = tmp_path / "embed.toml"
    config.write_text("")
    done = overnight(
        "infer", "--input", source, "--output", "out", "--config", config, "--model", "m", *embed, *INVARIANT
    )
    assert done.returncode == 2
    assert "batch-invariant" in done.stderr
    assert "generate" in done.stderr
