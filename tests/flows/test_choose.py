"""`overnight bench --choose` on the sample: the flow, a run for each precision, and what is printed and written."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.flows.conftest import MODEL, ROOT, Overnight

SAMPLE = ROOT / "data" / "sample"


@pytest.fixture
def arguments() -> list[str]:
    words = ["--config", str(SAMPLE / "config.toml"), "--input", str(SAMPLE / "messages.jsonl"), "--model", str(MODEL)]
    for setting in ("method=rtn", "rows=8", "group_size=64"):
        words += ["--set", f"quantize.{setting}"]
    return words


def test_each_precision_is_measured_on_rows_of_the_job(
    overnight: Overnight, tmp_path: Path, arguments: list[str]
) -> None:
    done = overnight("bench", "--choose", *arguments, "--rows", "24", "--repeats", "1", timeout=500)
    assert done.returncode == 0
    choice = json.loads((tmp_path / "choice.json").read_text())
    assert [one["precision"] for one in choice["measured"]] == ["none", "fp8", "int4"]
    assert [one["computed"] for one in choice["measured"]][:2] == ["float32", "fp8 weights and activations"]
    assert "int4 weights" in choice["measured"][2]["computed"]
    none, fp8, int4 = choice["measured"]
    for one in choice["measured"]:
        (repeat,) = one["repeats"]
        assert repeat["rows"] == 24
        assert repeat["seconds"] > 0
        assert one["accuracy"]["value"] > 0.7
    assert fp8["weight_bytes"] < none["weight_bytes"]
    assert fp8["same"]["low"] <= fp8["same"]["value"] <= fp8["same"]["high"]
    assert int4["loss"]["value"] >= -0.2
    assert (choice["by"], choice["limit"], choice["device"]) == ("accuracy", 0.02, "cpu")
    assert f"{choice['chosen']}: {choice['reason']}" in done.stdout
    assert "24 rows are too few for a limit of 2.00 %" in done.stdout
    assert sorted(os.listdir(tmp_path)) == ["choice.json", "config.toml"], "nothing else is left"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--set", "job.kind=score", "--set", "job.column=text"], "bench --choose compares answers"),
        (["--output", "absent/choice.json"], "absent/choice.json cannot be written"),
        (["--rows", "0"], "--rows"),
        (["--int4", "absent"], "absent"),
    ],
)
def test_what_cannot_be_measured_is_status_two(
    overnight: Overnight, arguments: list[str], words: list[str], message: str, tmp_path: Path
) -> None:
    done = overnight("bench", "--choose", *arguments, *words)
    assert done.returncode == 2
    assert message in done.stderr
    assert sorted(os.listdir(tmp_path)) == ["config.toml"]
