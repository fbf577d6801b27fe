"""Runs that want the same devices take turns: pools of real workers leave them at a shard border and come back."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest

from data.claim_file import ClaimFile
from data.errors import Held
from engine.supervisor import Child
from tasks.deadline import FIXED_SECONDS, Deadline, OutOfTime
from tasks.display import progress_line
from tasks.endings import Interrupted
from tasks.milestones import milestone
from tasks.pool import WorkerPool
from tasks.progress import Progress
from tasks.settings import Settings
from tasks.turns import Turn, turn_of

ROOT = Path(__file__).parent.parent.parent
GPU = frozenset({"gpu"})
LATER = 5.0  # more than a look, the start of a worker, and its end


class Run:
    """A run of obedient workers on one device."""

    def __init__(self, folder: Path, urgency: int = 0, **options: Any) -> None:
        self.events: list[dict[str, Any]] = []
        self.claim = ClaimFile(folder / "claims", f"run{urgency}", urgency, GPU, False)
        logs = folder / f"logs{id(self)}"
        logs.mkdir()

        def start(index: int) -> Child:
            name = "tests.tasks.obedient_worker:main"
            return Child(name, environment={"PYTHONPATH": str(ROOT)}, log=logs / f"{index}.log", beats=True)

        turn = Turn(self.claim, self.events.append)
        limits = {"stall_timeout": 60.0, "retries": 1, **options}
        self.pool = WorkerPool(2, 1, start, turn=turn, on_event=self.events.append, **limits)
        self.submitted = 0

    def submit(self, seconds: float) -> Any:
        """A shard that takes so long."""
        self.submitted += 1
        return self.pool.submit({"id": f"s{self.submitted}", "do": "work", "seconds": seconds})

    def kinds(self, *kinds: str) -> list[str]:
        """The events of these kinds, in order."""
        return [event["event"] for event in self.events if event["event"] in kinds]

    def workers(self) -> list[psutil.Process]:
        """Its workers that live."""
        pids = [event["pid"] for event in self.events if event["event"] == "started"]
        return [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Callable[..., Run]]:
    runs: list[Run] = []

    def make(urgency: int = 0, **options: Any) -> Run:
        runs.append(Run(tmp_path, urgency, **options))
        return runs[-1]

    yield make
    for made in runs:
        made.pool.close()


@pytest.fixture
def urgent(tmp_path: Path) -> Iterator[ClaimFile]:
    """A more urgent claim on the same device, which is not made yet."""
    claim = ClaimFile(tmp_path / "claims", "urgent", 9, GPU, False)
    yield claim
    claim.withdraw()


def wait_until(condition: Callable[[], Any], seconds: float = 40) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


def test_a_run_gives_way_at_a_shard_border_and_goes_on_later(run: Callable[..., Run], urgent: ClaimFile) -> None:
    """The stall limit is shorter than the wait: nobody is killed, and no death is counted, because of waiting."""
    mine = run(stall_timeout=LATER / 2, retries=0)
    futures = [mine.submit(1.5) for _ in range(4)]
    wait_until(lambda: mine.kinds("ready") == ["ready"] * 2)
    time.sleep(0.3)
    assert urgent.look(), "shards are in flight"
    wait_until(lambda: urgent.look() == [])
    assert [future.done() for future in futures] == [True, True, False, False], "what was in flight is finished"
    assert mine.workers() == [], "they have left before the devices are given up"
    assert mine.pool.open
    time.sleep(LATER)
    assert mine.workers() == []
    urgent.withdraw()
    assert [future.result(timeout=40)["shard"] for future in futures] == ["s1", "s2", "s3", "s4"]
    assert mine.kinds("yielding", "waiting", "going_on", "died") == ["yielding", "waiting", "going_on"]
    assert mine.kinds("started", "left") == ["started"] * 2 + ["left"] * 2 + ["started"] * 2


def test_the_urgent_run_comes_in_between_and_both_finish(run: Callable[..., Run]) -> None:
    patient = run()
    slow = [patient.submit(0.5) for _ in range(8)]
    slow[0].result(timeout=40)
    hurried = run(1)
    fast = [hurried.submit(0.1) for _ in range(4)]
    fast[0].result(timeout=40)
    assert patient.workers() == []
    for future in fast:
        future.result(timeout=40)
    assert not slow[-1].done()
    hurried.pool.close()
    for future in slow:
        future.result(timeout=40)
    assert hurried.kinds("waiting", "going_on", "yielding") == ["waiting", "going_on"]


def test_runs_of_the_same_urgency_wait_for_the_first_to_end(run: Callable[..., Run]) -> None:
    first = run()
    first.pool.begin()
    wait_until(lambda: first.kinds("ready") == ["ready"] * 2)
    second = run()
    future = second.submit(0.1)
    time.sleep(LATER / 2)
    assert second.kinds("started") == []
    first.pool.dismiss()  # as before publishing: nobody waits for that
    assert future.result(timeout=40)


def test_a_driver_that_is_killed_is_not_waited_for(run: Callable[..., Run], tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from data.claim_file import ClaimFile\n"
        "claim = ClaimFile(Path(sys.argv[1]), 'dead', 9, frozenset({'gpu'}), False)\n"
        "print(claim.look(), flush=True); time.sleep(1000)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "claims")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout is not None
        assert driver.stdout.readline() == "[]\n"
        mine = run()
        future = mine.submit(0.0)
        wait_until(lambda: mine.kinds("waiting"))
        time.sleep(1)
        assert mine.kinds("started") == []
        driver.kill()
    assert future.result(timeout=40)


def test_the_deadline_ends_the_waiting(run: Callable[..., Run], urgent: ClaimFile) -> None:
    assert urgent.look() == []
    mine = run(deadline=Deadline(datetime.now(UTC) + timedelta(seconds=3 + FIXED_SECONDS)))
    started = time.monotonic()
    with pytest.raises(OutOfTime):
        mine.submit(0.0).result(timeout=20)
    assert time.monotonic() - started < 10
    assert mine.pool.late
    assert mine.kinds("started") == []


def test_an_interrupt_ends_the_waiting_at_once(run: Callable[..., Run], urgent: ClaimFile, tmp_path: Path) -> None:
    assert urgent.look() == []
    mine = run()
    stopped = mine.submit(0.0)
    wait_until(lambda: mine.kinds("waiting"))
    mine.pool.drain()
    with pytest.raises(Interrupted):
        stopped.result(timeout=5)
    mine.pool.close()
    mine = run()
    future = mine.submit(0.0)
    wait_until(lambda: mine.kinds("waiting"))
    started = time.monotonic()
    mine.pool.close(patience=10)
    assert time.monotonic() - started < 2
    with pytest.raises(Interrupted):
        future.result(timeout=1)
    assert not list((tmp_path / "claims").glob("*.waits")), "it wants nothing any more"


def test_a_worker_that_dies_on_the_way_out_is_not_replaced_before_its_turn(
    run: Callable[..., Run], urgent: ClaimFile
) -> None:
    mine = run()
    future = mine.submit(3.0)
    wait_until(lambda: mine.kinds("ready") == ["ready"] * 2)
    time.sleep(0.3)
    assert urgent.look()
    wait_until(lambda: mine.kinds("yielding"))
    for worker in mine.workers():
        worker.kill()
    wait_until(lambda: urgent.look() == [])
    assert future.exception(timeout=10) is not None
    assert mine.kinds("started") == ["started"] * 2
    urgent.withdraw()
    assert mine.submit(0.0).result(timeout=40)


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def asked(**schedule: Any) -> Settings:
    return Settings.model_validate({"schedule": schedule})


def test_an_overlap_is_refused_where_that_is_asked_for(home: Path) -> None:  # noqa: ARG001
    told: list[dict[str, Any]] = []
    refuse = asked(overlap="refuse")
    with turn_of("first", refuse, GPU, told.append):
        with (
            pytest.raises(Held, match=f"gpu are in use by run first, process {os.getpid()}"),
            turn_of("second", refuse, GPU, told.append),
        ):
            pass
        with turn_of("urgent", asked(overlap="refuse", urgency=1), GPU, told.append) as urgent:
            assert not urgent.ours(), "the less urgent one is waited for, not refused to"
        with turn_of("elsewhere", refuse, frozenset({"other"}), told.append) as elsewhere:
            assert elsewhere.ours()
    with turn_of("third", refuse, GPU, told.append) as third:
        assert third.ours()


def test_a_cpu_is_shared_and_a_gpu_is_not_unless_said_otherwise(home: Path) -> None:  # noqa: ARG001
    def together(devices: frozenset[str], **schedule: Any) -> bool:
        told: list[dict[str, Any]] = []
        one = turn_of("one", asked(**schedule), devices, told.append)
        two = turn_of("two", asked(**schedule), devices, told.append)
        with one as first, two as second:
            return first.ours() and second.ours()

    assert together(frozenset({"cpu"}))
    assert not together(frozenset({"cpu"}), overlap="wait")
    assert not together(GPU)
    assert together(GPU, overlap="share")


def test_where_claims_cannot_be_kept_the_run_goes_on_and_warns(home: Path) -> None:
    (home / "overnight").write_text("a file where the folder belongs")
    told: list[dict[str, Any]] = []
    with turn_of("one", asked(), GPU, told.append) as turn:
        assert turn.ours()
        assert turn.ours()
    assert [event["code"] for event in told] == ["turns"]


def test_waiting_is_shown() -> None:
    progress = Progress()
    event = {"event": "waiting", "run": "ab12", "process": 7, "urgency": 5, "devices": ["cpu"]}
    progress.tell({"event": "run_started", "run": "cd", "folder": "/run", "workers": 1, "device": "cpu"})
    progress.tell({"event": "started", "worker": 0, "pid": 7})
    progress.tell({"event": "left", "worker": 0})
    progress.tell(event)
    assert progress.waits_for == "run ab12 (process 7, urgency 5)"
    assert [worker.state for worker in progress.workers] == ["away"]
    assert "waits for run ab12 (process 7, urgency 5)" in progress_line(progress)
    line = milestone(event)
    assert line is not None
    assert line[0] == "Waits for run ab12 (process 7, urgency 5) to leave the CPU"
    progress.tell({"event": "going_on"})
    assert progress.waits_for is None
