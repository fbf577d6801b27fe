"""How many rows a second this machine plans, to be seen beside what a device answers: no GPU is to wait for a plan.

Short messages from a seed, each with a number of its own, are read from JSONL, rendered, tokenized with the bundled
model's tokenizer, folded, ordered and written as a plan. The driver of a run does the same.
"""

from __future__ import annotations

import json
import os
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import data
from data.checkpoint import Checkpoint
from data.dataset import Dataset
from data.plan import plan_windows
from data.prompts import Prompter
from data.run_folder import RunFolder
from data.settings import InputSettings, JobSettings
from data.sharding import PlanOptions

ROWS = 50_000
_ANSWER = 32
_MODELS = Path(data.__file__).parent / "models"
_WORDS = ("order", "refund", "late", "parcel", "invoice", "card", "login", "blue", "box", "size", "return", "thanks")


def measure_planning(rows: int = ROWS) -> dict[str, Any]:
    """One line of the benchmark: seconds, and rows and prompt tokens a second."""
    with tempfile.TemporaryDirectory(prefix="overnight-plan-") as name:
        source = Path(name) / "rows.jsonl"
        _write(source, rows)
        dataset = Dataset.open(InputSettings(path=str(source)))
        dataset.fingerprint()
        checkpoint = Checkpoint.open(str(min(_MODELS.glob("*/config.json")).parent), None, False)
        prompter = Prompter(JobSettings(prompt="{{ text }}"), "error", checkpoint, _ANSWER)
        folder = RunFolder.create(Path(name) / "run", {"rows": rows})
        options = PlanOptions(kind="generate", max_tokens=_ANSWER, fold=True)
        start = time.perf_counter()
        tokens = sum(window.input_tokens for window in plan_windows(folder, dataset, prompter, "rate", options))
        seconds = time.perf_counter() - start
    return {
        "workload": f"plan:{rows}",
        "s": round(seconds, 3),
        "rows_s": round(rows / seconds),
        "in_tok_s": round(tokens / seconds),
        "cores": len(os.sched_getaffinity(0)),
    }


def _write(path: Path, rows: int) -> None:
    choose = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for number in range(rows):
            words = " ".join(choose.choices(_WORDS, k=choose.randint(4, 16)))
            file.write(json.dumps({"text": f"{words} {number}"}) + "\n")
