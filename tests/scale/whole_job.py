"""`overnight infer` over a small labelling job with a large model, from process start to exit.

Run as `make job`, or `python -m tests.scale.whole_job [MODEL [ROWS [RUNS]]]`, MODEL as in `overnight bench`. The
checkpoint has random weights in four safetensors files and the bundled model's tokenizer; it is written first, so it is
in the page cache. Prints a JSON line a run: the seconds from process start to exit and to the milestones between.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import save_file

from engine.random_model import build_random_model, read_config
from engine.workloads import Workload

ROOT = Path(__file__).parent.parent.parent
BUNDLED = ROOT / "data" / "models" / "messages-4m"
FILES = 4
LONGEST_ANSWER = 48


def write_checkpoint(model: str, folder: Path) -> int:
    """A checkpoint of the named shape with random weights in bfloat16; the size of its vocabulary."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = read_config(model)
    weights = list(build_random_model(config, dtype=torch.bfloat16, device=device).state_dict().items())
    folder.mkdir(parents=True)
    places = {}
    for number in range(FILES):
        name = f"model-{number + 1:05d}-of-{FILES:05d}.safetensors"
        part = {key: weight.contiguous().cpu() for key, weight in weights[number::FILES]}
        save_file(part, folder / name, metadata={"format": "pt"})
        places.update(dict.fromkeys(part, name))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    config.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(BUNDLED / name, folder / name)
    return int(config.get_text_config().vocab_size)


def write_rows(path: Path, rows: int, vocabulary: int) -> None:
    """The prompts of the label workload."""
    prompts = [row.prompt for row in Workload.parse(f"label:{rows}").rows(vocabulary)]
    pq.write_table(pa.table({"ids": pa.array(prompts, pa.list_(pa.int32()))}), path)


def answer(folder: Path) -> dict[str, Any]:
    """One run on a new run folder: its exit status, and seconds to its milestones."""
    for name in ("out", ".overnight"):
        shutil.rmtree(folder / name, ignore_errors=True)
    sets = [f"model.path={folder / 'model'}", "job.prompt_ids=ids", f"sampling.max_tokens={LONGEST_ANSWER}"]
    command = [sys.executable, "-c", "from flows.cli import main; main()", "infer"]
    command += ["--input", str(folder / "rows.parquet"), "--output", str(folder / "out")]
    command += [word for text in sets for word in ("--set", text)]
    start = time.time()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    figures: dict[str, Any] = {"status": done.returncode, "seconds": round(time.time() - start, 2)}
    for file in folder.glob(".overnight/*/events.jsonl"):
        for event in map(json.loads, file.read_text().splitlines()):
            figures[event["event"]] = round(datetime.fromisoformat(event["time"]).timestamp() - start, 2)
    if done.returncode:
        print(done.stderr, file=sys.stderr)
    return figures


def main(model: str = "r1-7b", rows: str = "1000", runs: str = "3") -> int:
    """Print the figures of every run; the first one digests the weights, and may compile kernels and bytecode."""
    with tempfile.TemporaryDirectory(prefix="overnight-job-") as name:
        vocabulary = write_checkpoint(model, Path(name) / "model")
        write_rows(Path(name) / "rows.parquet", int(rows), vocabulary)
        found = [answer(Path(name)) for _ in range(int(runs))]
    for figures in found:
        print(json.dumps(figures))
    return max(figures["status"] for figures in found)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
