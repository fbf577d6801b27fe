"""`overnight plan`: what a job will take, before it runs; and budgets, which refuse it then."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.flows.conftest import Overnight, messages, write_rows


@pytest.fixture
def environment(environment: dict[str, str], tmp_path: Path) -> dict[str, str]:
    """A user who has not run anything yet."""
    return {**environment, "XDG_CACHE_HOME": str(tmp_path / "cache")}


def test_infer_uses_the_plan_and_the_next_plan_knows_what_it_took(overnight: Overnight, tmp_path: Path) -> None:
    rows = [*messages(40), {"id": 40, "text": "  "}, *messages(4)]
    source = write_rows(tmp_path / "in.jsonl", rows)
    job = ["--input", source, "--output", "out", "--config", tmp_path / "config.toml"]
    job += ["--set", "output.error_budget=1", "--set", "job.budget=45 rows"]
    planned = overnight("plan", *job)
    assert planned.returncode == 0
    (run,) = (tmp_path / ".overnight").iterdir()
    for words in ("Folded", "4  8.89 %", "blank_prompt", "40", "Tokens of a prompt", "KV of a row"):
        assert words in planned.stdout
    for words in ("sampling.max_tokens = 8", "no run of this model", f"overnight infer --input {source}"):
        assert words in planned.stdout
    assert not (run / "events.jsonl").exists()
    assert not (run / "workers").exists(), "no worker was started"
    before = {path: path.stat().st_ino for path in sorted(run.glob("plan/*"))}
    prompts = {path.name for path in run.glob("prompts/*")}
    assert prompts

    assert overnight("infer", *job).returncode == 0
    assert {path: path.stat().st_ino for path in sorted(run.glob("plan/*"))} == before
    assert {path.stem for path in run.glob("commits/*")} == {Path(name).stem for name in prompts}
    manifest = json.loads((tmp_path / "out" / "_manifest.json").read_text())
    assert (manifest["rows"], manifest["ok"]) == (45, 44)

    again = overnight("plan", *job)
    assert again.returncode == 0
    for words in ("published already", "in 0 shards"):
        assert words in again.stdout
    fewer = overnight("plan", *job, "--limit", "30", "--output", "other")
    assert fewer.returncode == 0
    for words in ("from 40 answers of this job", "measured: 1 run of this model"):
        assert words in fewer.stdout


def test_more_bad_rows_than_the_error_budget_allows_are_told(overnight: Overnight, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "in.jsonl", [*messages(6), *({"id": 6 + n, "text": ""} for n in range(3))])
    refused = overnight("plan", "--input", source, "--output", "out", "--config", tmp_path / "config.toml")
    assert refused.returncode == 1
    assert "To run this plan" in refused.stdout
    assert "3 of 9 rows cannot be asked (blank_prompt 3), more than output.error_budget = 0.01" in refused.stderr
    assert "output.error_budget=0.334" in refused.stderr


def test_a_budget_refuses_before_anything_starts(overnight: Overnight, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "in.jsonl", list(messages(40)))
    config = tmp_path / "config.toml"
    for command in ("infer", "plan"):
        job = [command, "--input", source, "--output", "out", "--config", config]
        refused = overnight(*job, "--set", "job.budget=30 rows")
        assert refused.returncode == 2
        assert "--limit 30" in refused.stderr
    assert "To run this plan" in refused.stdout
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".overnight/*/workers"))
    unpriced = overnight("infer", "--input", source, "--output", "out", "--set", "job.budget=1 EUR")
    assert unpriced.returncode == 2
    assert "workers.hourly_price" in unpriced.stderr
