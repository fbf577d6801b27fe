"""The benchmark on CPU: its lines, its check of the answers, hidden lengths, and its command line."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from engine import bench, bench_subject
from engine.bench_run import check_answers, requests
from engine.bench_settings import BenchSettings, parse
from engine.request import Completion
from engine.workloads import Row, Workload, WrongAnswer

FIELDS = [
    "workload",
    "model",
    "quant",
    "kv_dtype",
    "lengths",
    "deterministic",
    "startup_s",
    "s",
    "rows_s",
    "in_tok_s",
    "out_tok_s",
    "floor_s",
    "of_floor",
    "host_share",
    "kv_occupancy",
    "rows_peak",
    "steps",
    "device",
    "copy_bytes_s",
    "matrix_flop_s",
]
SHAPE = {
    "model_type": "qwen3",
    "vocab_size": 199,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 1100,
    "tie_word_embeddings": True,
}
ROWS = [Row([1, 2], 3), Row([3, 4, 5], 1), Row([6], 3)]


@pytest.fixture
def model(tmp_path: Path) -> str:
    (tmp_path / "config.json").write_text(json.dumps(SHAPE))
    return str(tmp_path)


def measured(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, Any]]:
    """The lines of a benchmark on CPU that ends well."""
    assert bench.main([*arguments, "--device", "cpu"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_a_line_for_each_repeat_and_the_median(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    lines = measured(capsys, "label:10", "prefill:4:seed2", "--model", model, "--repeat", "3")
    assert [line["workload"] for line in lines] == ["label:10"] * 4 + ["prefill:4:seed2"] * 4
    assert ["median" in line for line in lines] == [False, False, False, True] * 2
    for line in lines:
        line.pop("median", None)
        assert list(line) == FIELDS
        assert line["startup_s"] == lines[0]["startup_s"]
        assert line["of_floor"] == pytest.approx(line["floor_s"] / line["s"], rel=1e-3)
    assert sorted(line["s"] for line in lines[:3])[1] == lines[3]["s"]
    rows = Workload.parse("label:10").rows(199)
    assert lines[0]["rows_s"] * lines[0]["s"] == pytest.approx(10, rel=1e-3)
    assert lines[0]["in_tok_s"] * lines[0]["s"] == pytest.approx(sum(len(row.prompt) for row in rows), rel=1e-3)
    assert lines[0]["out_tok_s"] * lines[0]["s"] == pytest.approx(sum(row.output for row in rows), rel=1e-3)
    assert lines[0]["rows_peak"] == 8  # two of the ten repeat others
    assert lines[0]["steps"] == lines[1]["steps"] == lines[2]["steps"]


def test_hidden_lengths_give_the_same_tokens(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    hidden, known = (
        measured(capsys, "label:10", "--model", model, "--repeat", "1", "--lengths", lengths)[-1]
        for lengths in ("hidden", "known")
    )
    assert hidden["lengths"] == "hidden"
    assert hidden["out_tok_s"] * hidden["s"] == pytest.approx(known["out_tok_s"] * known["s"], rel=1e-3)


def test_hidden_lengths_are_not_told() -> None:
    assert [(request.id, request.max_tokens) for request in requests(ROWS, 48)] == [(0, 48), (1, 48), (2, 48)]
    assert [(request.id, request.max_tokens) for request in requests(ROWS, None)] == [(0, 3), (1, 1), (2, 3)]


def answers(*lengths: int) -> list[Completion]:
    return [Completion(number, [0] * length) for number, length in enumerate(lengths)]


def test_wrong_answers_are_found() -> None:
    check_answers(ROWS, answers(3, 1, 3)[::-1])
    with pytest.raises(WrongAnswer, match="row 1 got 2 tokens instead of 1"):
        check_answers(ROWS, answers(3, 2, 3))
    with pytest.raises(WrongAnswer, match="3 rows got 2 completions"):
        check_answers(ROWS, answers(3, 1))
    with pytest.raises(WrongAnswer, match="3 rows got 3 completions, 2 of them different"):
        check_answers(ROWS, [*answers(3, 1), Completion(0, [0] * 3)])
    with pytest.raises(WrongAnswer, match="row 2 ended in an error: nan_logits"):
        check_answers(ROWS, [*answers(3, 1), Completion(2, error=("nan_logits", "not numbers"))])


def test_a_trace_of_the_middle(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "trace.json"
    measured(capsys, "label:5", "--model", model, "--repeat", "1", "--trace", str(file))
    events = json.loads(file.read_text())["traceEvents"]
    argmax = [event for event in events if event.get("name") == "aten::argmax" and event.get("ph") == "X"]
    assert len(argmax) == 30  # one for each step


def test_a_context_that_is_too_short_is_refused(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["decode:20", "--model", model, "--device", "cpu"]) == 2
    assert "raise its max_position_embeddings" in capsys.readouterr().err


def test_the_age_of_the_process() -> None:
    age = time.time() - psutil.Process().create_time()
    assert bench_subject._process_seconds() == pytest.approx(age, abs=2)  # psutil knows the boot time in whole seconds


def test_the_command_line(model: str) -> None:
    assert parse([], "bench") == BenchSettings()
    words = "decode:8 label --quant fp8 --kv-dtype fp8 --lengths hidden --memory-fraction 0.5 --repeat 2"
    settings = parse([*words.split(), "--max-batch-tokens", "4096", "--model", model], "bench")
    assert settings == BenchSettings(
        workloads=("decode:8", "label:4096"),
        model=model,
        quant="fp8",
        kv_dtype="fp8",
        lengths="hidden",
        memory_fraction=0.5,
        max_batch_tokens=4096,
        repeat=2,
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("dekode:8", "workload 'dekode:8' is not KIND"),
        ("--model r1-8b", "--model: model 'r1-8b' is none of r1-7b"),
        ("--quant int3", "--quant: input should be 'bf16', 'fp8', 'fp8-2:4', 'awq' or 'awq-packed'"),
        ("--repeat 0", "--repeat: input should be greater than or equal to 1"),
        ("--memory-fraction 1.5", "--memory-fraction: input should be less than or equal to 1"),
        ("--trace absent/trace.json", "--trace: there is no folder"),
        ("--rep 3", "unrecognized arguments: --rep"),
    ],
)
def test_a_wrong_option_is_one_line(words: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(words.split(), "bench")
    assert ended.value.code == 2
    assert f"bench: error: {message}" in capsys.readouterr().err
