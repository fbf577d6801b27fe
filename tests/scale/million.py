"""A million short rows from JSONL to published Parquet with an engine that answers at once.

Run as `make scale`. Prints seconds and the driver's peak memory as one JSON line; exit status 1 if a target is missed
(600 s and 1.5 GB on two cores).
"""

from __future__ import annotations

import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROWS = 1_000_000
MAX_SECONDS, MAX_BYTES = 600, 1_500_000_000
ROOT = Path(__file__).parent.parent.parent
MODEL = next(path.parent for path in sorted((ROOT / "data" / "models").glob("*/config.json")))
WORDS = (
    *("order", "refund", "late", "parcel", "invoice", "card", "login", "blue"),
    *("box", "size", "return", "never", "arrived", "thanks", "broken", "please"),
)


def write_rows(path: Path, rows: int) -> None:
    """Short messages from a seed, each with a number of its own."""
    choose = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for number in range(rows):
            text = " ".join(choose.choices(WORDS, k=choose.randint(4, 16)))
            file.write(json.dumps({"id": number, "text": f"{text} {number}"}) + "\n")


def drive(folder: Path, rows: int) -> None:
    """The driver itself: this process becomes `overnight infer` with the instant worker."""
    import tasks.run
    from flows.cli import app

    os.environ["PYTHONPATH"] = str(ROOT)  # where the worker processes find their target
    tasks.run.WORKER_TARGET = "tests.scale.instant_worker:main"
    arguments = ["infer", "--input", str(folder / "in.jsonl"), "--output", str(folder / "out")]
    sets = [f"model.path={MODEL}", "job.prompt={{ text }}", "sampling.max_tokens=8", "workers.dp_degree=2"]
    started = time.monotonic()
    status = app([*arguments, *(word for text in sets for word in ("--set", text))], standalone_mode=False)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    seconds = time.monotonic() - started
    print(json.dumps({"rows": rows, "seconds": round(seconds, 1), "driver_peak_bytes": peak, "status": status}))
    sys.exit(0 if not status and seconds <= MAX_SECONDS and peak <= MAX_BYTES else 1)


def main() -> None:
    """Generate the input, then run the driver in a process of its own, so that its peak is its own."""
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else ROWS
    with tempfile.TemporaryDirectory() as name:
        write_rows(Path(name) / "in.jsonl", rows)
        sys.exit(subprocess.call([sys.executable, "-m", "tests.scale.million", str(rows), name], cwd=ROOT))


if __name__ == "__main__":
    if len(sys.argv) == 3:
        drive(Path(sys.argv[2]), int(sys.argv[1]))
    main()
