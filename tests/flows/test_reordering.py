"""Folding, shared beginnings and another order change nothing: each published text is that of its row alone."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from data.checkpoint import Checkpoint
from data.prompts import Prompter
from data.settings import JobSettings
from engine.generation import Generator
from engine.model import load_model
from engine.request import Request, run
from engine.settings import EngineSettings, SamplingSettings
from tests.flows.conftest import MODEL, Overnight, write_rows

SAMPLE = MODEL.parent.parent / "sample" / "messages.jsonl"
PROMPT = [
    {"role": "system", "content": "Give the intent and the sentiment of the message as JSON."},
    {"role": "user", "content": "{{ text }}"},
]
MAX_TOKENS = 32


def alone(texts: list[str]) -> list[str]:
    """The answer to each text where there is no other, so that nothing is folded, shared or batched."""
    checkpoint = Checkpoint.open(str(MODEL), None, False)
    prompts = Prompter(JobSettings(prompt=PROMPT), "error", checkpoint, MAX_TOKENS).encode([{"text": t} for t in texts])
    engine = Generator(
        load_model(MODEL, dtype=torch.float32, device=torch.device("cpu")),
        SamplingSettings(max_tokens=MAX_TOKENS),
        EngineSettings(),  # deterministic on CPU: it forgets each prompt before the next one
        stop_ids=sorted(checkpoint.stop_ids),
        token_bytes=(),
        context_length=checkpoint.context_length,
    )
    answers = [next(run(engine, [Request(0, ids)])).token_ids for ids in prompts.ids]
    assert engine.statistics()["shared_tokens"] == engine.statistics()["folded"] == 0
    return [checkpoint.tokenizer().decode(ids) for ids in answers]


def test_each_row_has_the_answer_that_it_has_alone(overnight: Overnight, tmp_path: Path) -> None:
    texts = [json.loads(line)["text"] for line in SAMPLE.read_text("utf-8").splitlines()[:36]]
    texts += texts[5:17][::-1]
    source = write_rows(tmp_path / "rows.jsonl", [{"id": i, "text": text} for i, text in enumerate(texts)])
    config = tmp_path / "greedy.toml"
    messages = ", ".join(f"{{role = {json.dumps(m['role'])}, content = {json.dumps(m['content'])}}}" for m in PROMPT)
    config.write_text(
        f"[job]\nprompt = [{messages}]\n[model]\npath = {json.dumps(str(MODEL))}\n"
        f"[sampling]\nmax_tokens = {MAX_TOKENS}\n[workers]\ndp_degree = 2\n"
    )
    done = overnight(
        "infer", "--input", source, "--output", "out.jsonl", "--config", config, "--set", "schedule.priority=id"
    )
    assert done.returncode == 0
    published = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text("utf-8").splitlines()]
    assert [row["id"] for row in published] == list(range(len(texts)))
    assert [row["output"] for row in published] == alone(texts)
