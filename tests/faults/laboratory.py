"""A place to disturb runs: one Prefect server, one warm process, and drives of a run started there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from select import select

from tasks.local_server import local_server
from tests.faults.descent import signal_below
from tests.faults.order import Order, Outcome

REPOSITORY = Path(__file__).parent.parent.parent
WARM_SECONDS = 120.0
SLACK_SECONDS = 60.0


class Drive:
    """A driver that was started."""

    def __init__(self, order: Order, place: Path, pid: int, supervision: int) -> None:
        self.order, self.pid, self._place, self._supervision = order, pid, place, supervision

    def signal(self, number: int) -> None:
        """Send a signal to the driver alone."""
        os.kill(self.pid, number)

    def kill_all(self) -> None:
        """Kill the driver and its workers, whichever are left."""
        signal_below(self._supervision, signal.SIGKILL)

    @property
    def ended(self) -> bool:
        """Whether the driver has ended."""
        return self._place.with_suffix(".driver").exists()

    def outcome(self, phase: str = "all") -> Outcome:
        """Wait for the end of the driver, or (`all`) of its last worker too."""
        path = self._place.with_suffix(f".{phase}")
        deadline = time.monotonic() + self.order.seconds + SLACK_SECONDS
        while not path.exists():
            if (broken := self._place.with_suffix(".broken")).exists():
                raise RuntimeError(broken.read_text(encoding="utf-8"))
            assert time.monotonic() < deadline, f"no outcome of {shown(self.order)}"
            time.sleep(0.01)
        return Outcome.model_validate_json(path.read_text(encoding="utf-8"))


@dataclass
class Laboratory:
    """Starts drives; `api` is the URL of the Prefect server that they share, `environment` theirs."""

    scratch: Path
    api: str
    environment: dict[str, str]
    _process: subprocess.Popen[str]
    _count: int = 0
    _asking: threading.Lock = field(default_factory=threading.Lock)

    def start(self, order: Order) -> Drive:
        """Start a driver and return at once. May be called from any thread."""
        message = order.model_dump()
        message["environment"] = {"PREFECT_API_URL": self.api, **order.environment}
        assert self._process.stdin is not None
        with self._asking:
            self._count += 1
            place = self.scratch / f"drive-{self._count}"
            self._process.stdin.write(json.dumps({"place": str(place), "order": message}) + "\n")
            self._process.stdin.flush()
            driver, supervision = map(int, self._answer().split())
        return Drive(order, place, driver, supervision)

    def run(self, order: Order) -> Outcome:
        """Start a driver and wait until it and its workers have ended."""
        return self.start(order).outcome()

    def await_warmth(self) -> None:
        """Wait until drives can be started."""
        assert self._answer() == "ready"

    def _answer(self) -> str:
        assert self._process.stdout is not None
        ready, _, _ = select([self._process.stdout], [], [], WARM_SECONDS)
        line = self._process.stdout.readline().strip() if ready else ""
        assert line, f"the warm process does not answer; its words are in {self.scratch / 'warm.log'}"
        return line


@contextmanager
def laboratory(scratch: Path) -> Iterator[Laboratory]:
    """A laboratory whose files are in `scratch`; its Prefect server and its warm process start side by side."""
    scratch.mkdir(parents=True, exist_ok=True)
    environment = _environment(scratch)
    with local_server(scratch / "prefect") as server, open(scratch / "warm.log", "wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.warm"],
            cwd=REPOSITORY, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
        )  # fmt: skip
        try:
            made = Laboratory(scratch, server.wait(), environment, process)
            made.environment["PREFECT_API_URL"] = made.api
            made.await_warmth()
            yield made
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.kill()
            process.wait()


def _environment(scratch: Path) -> dict[str, str]:
    kept = {name: text for name, text in os.environ.items() if not name.startswith(("PREFECT_", "OVERNIGHT_"))}
    return {
        **kept,
        "PREFECT_HOME": str(scratch / "home"),
        "PREFECT_LOGGING_LEVEL": "CRITICAL",
        "PREFECT_LOGGING_TO_API_ENABLED": "false",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "XDG_CACHE_HOME": str(scratch / "cache"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "PYTHONPATH": str(REPOSITORY),
        "NO_COLOR": "1",
        "COLUMNS": "160",
    }


def shown(order: Order) -> str:
    """An order for a message."""
    return order.model_dump_json(exclude_defaults=True)
