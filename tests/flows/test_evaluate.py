"""`overnight evaluate` as a user meets it: a quantized checkpoint against the one that it was made from."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import time
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch.nn.functional import kl_div
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from data.checkpoint import Checkpoint
from data.dataset import Dataset
from data.drawn_rows import draw_rows
from data.rows import Record
from data.settings import InputSettings
from engine.model import load_model
from engine.quantizer import Quantizer
from tasks.evaluation import Evaluation
from tests.flows.conftest import MODEL, ROOT, Overnight, program

SAMPLE = ROOT / "data" / "sample"
INSTRUCTION = "Give the intent and the sentiment of the message as JSON."
CPU = torch.device("cpu")
ROWS, SKIP = 24, 16


@pytest.fixture(scope="module")
def rows() -> tuple[list[Record], list[Record]]:
    """The rows to calibrate with, and those to evaluate on."""
    parts = draw_rows(Dataset.open(InputSettings(path=str(SAMPLE / "messages.jsonl"))), [SKIP, ROWS])
    return list(parts[0].records), list(parts[1].records)


@cache
def loaded_tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(MODEL)


def conversation(record: Record) -> list[int]:
    """Prompt, right answer and its end token."""
    messages = [("system", INSTRUCTION), ("user", record["text"]), ("assistant", record["expected"])]
    tokenizer = loaded_tokenizer()
    text = tokenizer.apply_chat_template([{"role": r, "content": c} for r, c in messages], tokenize=False)
    ids: list[int] = tokenizer(text.rstrip("\n"))["input_ids"]
    return ids


@pytest.fixture(scope="module")
def quantized(rows: tuple[list[Record], list[Record]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model in int4."""
    folder = tmp_path_factory.mktemp("quantized") / "awq"
    calibration = [np.array(conversation(record)) for record in rows[0]]
    Quantizer(MODEL, "awq", 4, 128, calibration=calibration, output=folder, device=CPU).apply()
    return folder


def arguments(candidate: Path, output: str) -> list[str | Path]:
    settings = [f"evaluate.rows={ROWS}", f"evaluate.skip={SKIP}", "evaluate.slices=sentiment", "workers.dp_degree=1"]
    settings += [r'evaluate.pattern=\{"intent": "\w+", "sentiment": "\w+"\}']
    words: list[str | Path] = ["evaluate", "--config", SAMPLE / "config.toml", "--input", SAMPLE / "messages.jsonl"]
    words += ["--model", candidate, "--reference", MODEL, "--output", output]
    return words + [word for setting in settings for word in ("--set", setting)]


@torch.no_grad()
def directly(candidate: PreTrainedModel, reference: PreTrainedModel, records: list[Record]) -> tuple[float, ...]:
    """Perplexity of both, share of equal argmax, and divergence, from whole logits."""
    sums = np.zeros(5)
    for record in records:
        ids = torch.tensor([conversation(record)])
        ours, theirs = (model(input_ids=ids).logits[0, :-1].double() for model in (candidate, reference))
        same = (ours.argmax(1) == theirs.argmax(1)).sum()
        ours, theirs = ours.log_softmax(1), theirs.log_softmax(1)
        sums += [
            len(ours),
            *(logs.gather(1, ids[0, 1:, None]).sum() for logs in (ours, theirs)),
            same,
            kl_div(ours, theirs, reduction="sum", log_target=True),
        ]
    tokens, candidate_sum, reference_sum, equal, divergence = sums
    perplexities = (math.exp(-candidate_sum / tokens), math.exp(-reference_sum / tokens))
    return (*perplexities, equal / tokens, divergence / tokens)


def answers(folder: Path) -> list[str]:
    found: list[str] = pq.read_table(folder / "part-00000.parquet")["output"].to_pylist()
    return found


def test_killed_and_resumed_the_figures_are_those_of_transformers(
    overnight: Overnight,
    environment: dict[str, str],
    rows: tuple[list[Record], list[Record]],
    quantized: Path,
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    manifest = out / "answers-candidate" / "_manifest.json"
    driver = subprocess.Popen(program(*arguments(quantized, "out")), env=environment, cwd=tmp_path)
    deadline = time.monotonic() + 300
    while not manifest.exists():
        assert driver.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    assert not (out / "evaluation.json").exists()
    answered = manifest.stat().st_mtime_ns

    done = overnight(*arguments(quantized, "out"))
    assert done.returncode == 0
    assert manifest.stat().st_mtime_ns == answered, "answers that were there are not computed again"
    found = Evaluation.model_validate_json((out / "evaluation.json").read_text())
    assert found.reference is not None
    assert found.agreement is not None
    models = {"candidate": quantized, "reference": MODEL}
    assert found.digests == {name: Checkpoint.open(str(path)).digests() for name, path in models.items()}
    assert abs(datetime.now(UTC) - datetime.fromisoformat(found.ended)) < timedelta(minutes=10)
    for model in (found.candidate, found.reference):
        said = answers(out / f"answers-{model.name}")
        right = [one == record["expected"] for one, record in zip(said, rows[1], strict=True)]
        assert model.accuracy is not None
        assert model.match is not None
        assert (model.rows, model.errors) == (ROWS, 0)
        assert model.accuracy.value == sum(right) / ROWS
        assert model.match.value == 1
    same = np.mean(
        [a == b for a, b in zip(*(answers(out / f"answers-{n}") for n in ("candidate", "reference")), strict=True)]
    )
    assert found.agreement.answers is not None
    assert found.agreement.answers.value == same

    record = (out / "evaluation.json").read_bytes()
    (out / ".overnight" / "comparison-0.log").unlink()
    again = overnight(*arguments(quantized, "out"))
    assert again.returncode == 0
    assert (out / "evaluation.json").read_bytes() == record
    assert not (out / ".overnight" / "comparison-0.log").exists(), "nothing is measured twice"
    other = overnight(*arguments(quantized, "out"), "--set", "evaluate.pattern=no answer follows this")
    assert other.returncode == 0
    changed = Evaluation.model_validate_json((out / "evaluation.json").read_text())
    assert changed.candidate.match is not None
    assert changed.candidate.match.value == 0
    assert changed.candidate.perplexity == found.candidate.perplexity

    candidate = load_model(quantized, dtype=torch.float32, device=CPU)
    candidate.set_attn_implementation("sdpa")
    reference = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    ours, theirs, equal, divergence = directly(candidate, reference, rows[1])
    assert found.candidate.perplexity is not None
    assert found.reference.perplexity is not None
    assert found.perplexity_change is not None
    assert found.candidate.perplexity.value == pytest.approx(ours, rel=1e-4)
    assert found.reference.perplexity.value == pytest.approx(theirs, rel=1e-4)
    assert found.perplexity_change.value == pytest.approx(ours / theirs - 1, abs=1e-4)
    assert found.agreement.tokens.value == pytest.approx(equal, abs=2 / found.tokens)
    assert found.agreement.divergence.value == pytest.approx(divergence, abs=1e-4)
    assert sum(part.rows for part in found.slices) == ROWS
    assert found.report == str(out / "report.html")
    html = Path(found.report).read_text()
    assert "<svg" in html
    assert [record["text"] for record in rows[1] if record["text"] in html] == [], "no text of a row"
    assert "Same next token" in done.stdout
    assert found.report in done.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--reference", "absent-model"], "absent-model"),
        (["--set", "evaluate.pattern=(a"], "evaluate.pattern"),
        (["--set", "job.kind=embed"], "embed"),
    ],
)
def test_a_wrong_setting_starts_nothing(overnight: Overnight, tmp_path: Path, words: list[str], said: str) -> None:
    done = overnight(*arguments(MODEL, "out"), *words, timeout=60)
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("overnight: ")]
    assert said in line
    assert not (tmp_path / "out").exists()
