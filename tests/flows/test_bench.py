"""`overnight bench`: the flow on a server of its own, and the benchmark in a child of it."""

from __future__ import annotations

import json
from pathlib import Path

from tests.flows.conftest import Overnight

SHAPE = {
    "model_type": "qwen3",
    "vocab_size": 199,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 1024,
}


def test_figures_on_stdout_progress_on_stderr(overnight: Overnight, tmp_path: Path) -> None:
    (tmp_path / "shape.json").write_text(json.dumps(SHAPE))
    done = overnight("bench", "label:6:seed2", "--model", "shape.json", "--device", "cpu", "--repeat", "1")
    assert done.returncode == 0
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(line["workload"], line.get("median")) for line in lines] == [
        ("label:6:seed2", None),
        ("label:6:seed2", True),
        ("plan:50000", None),
    ]
    assert lines[-1]["rows_s"] > lines[0]["rows_s"], "a plan is no bottleneck"
    assert "label:6:seed2: run 1 of 1" in done.stderr


def test_a_wrong_option_is_status_two(overnight: Overnight) -> None:
    done = overnight("bench", "--quant", "int3")
    assert done.returncode == 2
    assert "overnight bench: error: --quant" in done.stderr
    assert "Traceback" not in done.stderr


def test_what_only_the_engine_can_tell_is_status_two(overnight: Overnight, tmp_path: Path) -> None:
    (tmp_path / "shape.json").write_text(json.dumps(SHAPE | {"max_position_embeddings": 64}))
    done = overnight("bench", "label:6", "--model", "shape.json", "--device", "cpu")
    assert done.returncode == 2
    assert "raise its max_position_embeddings" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_help_names_every_option(overnight: Overnight) -> None:
    done = overnight("bench", "--help")
    assert done.returncode == 0
    for option in ("WORKLOAD", "--model", "--quant", "--kv-dtype", "--lengths", "--device", "--memory-fraction"):
        assert option in done.stdout
    for option in ("--max-batch-tokens", "--repeat", "--trace", "of_floor"):
        assert option in done.stdout
