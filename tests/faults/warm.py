"""The warm process: everything imported once, then a fork for each drive. `python -m tests.faults.warm`.

Reads one JSON line an order, `{"place": PATH, "order": ORDER}`, and answers with the process ids of the driver
and of the process that watches it. The outcome lies at PATH with the suffix `.driver` when the driver has ended, and
`.all` when its workers have; at `.broken` lies what went wrong with the watch.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path

IMPORTED = (
    "flows.infer", "flows.cli", "tasks.worker", "tasks.job", "tasks.run", "tasks.stages", "tasks.engines",
    "engine.weights", "engine.child", "tests.faults.paced_worker", "tests.faults.supervision", "prefect.client",
    "rich.live", "data.publish", "transformers", "torch", "duckdb", "pyarrow.parquet",
)  # fmt: skip

THREADS_SECONDS = 10.0


def main() -> None:
    """Serve orders until there are no more."""
    for name in IMPORTED:
        importlib.import_module(name)
    from tests.faults.descent import signal_below
    from tests.faults.order import Order
    from tests.faults.supervision import Supervision

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    deadline = time.monotonic() + THREADS_SECONDS
    while len(threads := _threads()) != 1 and time.monotonic() < deadline:  # one that an import has started is ending
        time.sleep(0.05)
    if len(threads) != 1:  # a fork would have their locks and not them
        sys.exit(f"threads after the imports: {threads}")
    answers.write("ready\n")
    for line in sys.stdin.buffer:
        message = json.loads(line)
        if os.fork() == 0:
            sys.stdin.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            place = Path(message["place"])
            try:
                supervision = Supervision(Order.model_validate(message["order"]), place)
                answers.write(f"{supervision.driver} {os.getpid()}\n")
                answers.close()
                supervision.watch()
            except BaseException:  # noqa: BLE001 - told to whoever waits for the outcome
                place.with_suffix(".broken").write_text(traceback.format_exc(), encoding="utf-8")
                signal_below(os.getpid(), signal.SIGKILL)
            os._exit(0)


def _threads() -> list[str]:
    """The names of this process's threads, but for that of jemalloc, which looks after itself in a fork."""
    tasks = Path("/proc/self/task").iterdir()
    return [name for task in tasks if (name := (task / "comm").read_text().strip()) != "jemalloc_bg_thd"]


if __name__ == "__main__":
    main()
