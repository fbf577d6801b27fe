"""Children and what they have started end with their parent, however it ends, and whatever they are at."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from engine.child import FAULT, Mailbox
from engine.supervisor import Child

ROOT = Path(__file__).parent.parent.parent
DRIVER = (
    "import sys, time; from pathlib import Path; from engine.supervisor import Child\n"
    "child = Child(sys.argv[1], environment={}, log=Path(sys.argv[2]))\n"
    "print(child.pid, child.receive()['grandchild'], flush=True); child.send({}); time.sleep(1000)\n"
)


def family(target: str, log: Path) -> tuple[subprocess.Popen[bytes], psutil.Process, psutil.Process]:
    """A driver, its worker, and a process that the worker has started."""
    command = [sys.executable, "-c", DRIVER, f"tests.tasks.troubled_worker:{target}", str(log)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    driver = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=subprocess.PIPE)
    assert driver.stdout is not None
    worker, grandchild = (psutil.Process(int(pid)) for pid in driver.stdout.readline().split())
    time.sleep(0.5)  # it is in its call by then
    return driver, worker, grandchild


@pytest.mark.parametrize("kind", ["holding", "parent"])
def test_a_worker_and_what_it_has_started_end_with_a_killed_driver(tmp_path: Path, kind: str) -> None:
    """Also one that is in a call that holds the interpreter."""
    driver, worker, grandchild = family(kind, tmp_path / "log")
    with driver:
        driver.kill()
    worker.wait(timeout=10)
    grandchild.wait(timeout=10)


@pytest.mark.parametrize("by", ["end", "death"])
def test_what_a_worker_has_started_ends_with_it(tmp_path: Path, by: str) -> None:
    child = Child("tests.tasks.troubled_worker:parent", environment={"PYTHONPATH": str(ROOT)}, log=tmp_path / "log")
    message = child.receive()
    assert message is not None
    grandchild = psutil.Process(message["grandchild"])
    if by == "death":
        psutil.Process(child.pid).kill()
    assert child.end() == "killed by SIGKILL"
    grandchild.wait(timeout=10)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_how_a_stop_ends_a_worker_is_for_its_driver_to_say(tmp_path: Path, number: int) -> None:
    """A batch system signals every process of a job: the worker finishes what its driver waits for."""
    child = Child("tests.engine.test_child:echo", environment={"PYTHONPATH": str(ROOT)}, log=tmp_path / "log")
    try:
        assert child.receive() == {"event": "ready"}
        os.killpg(child.pid, number)
        assert child.send({"word": 1})
        assert child.receive() == {"word": 1}
    finally:
        assert child.end() == "killed by SIGKILL"


def test_files_in_the_folder_of_the_user_do_not_stand_in_for_the_programs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("engine.py", "tasks.py", "data.py", "json.py"):
        (tmp_path / name).write_text("raise SystemExit('the wrong file')\n")
    monkeypatch.chdir(tmp_path)
    child = Child("tests.tasks.obedient_worker:main", environment={"PYTHONPATH": str(ROOT)}, log=tmp_path / "log")
    message = child.receive()
    child.end()
    assert message is not None, (tmp_path / "log").read_text()
    assert message["event"] == "ready"


def test_a_parent_that_is_gone_when_its_child_begins_is_noticed() -> None:
    lifeline, other = os.pipe()
    os.close(other)
    command = [sys.executable, "-m", "engine.child", "time:sleep", "0", str(lifeline), "silent"]
    done = subprocess.run(command, cwd=ROOT, timeout=30, check=False, start_new_session=True, pass_fds=[lifeline])
    os.close(lifeline)
    assert done.returncode == -9


def test_a_fault_of_the_device_has_a_status_and_last_words_of_its_own(tmp_path: Path) -> None:
    environment = {"PYTHONPATH": str(ROOT)}
    for target, how, words in (
        ("faulty", "a fault of its device", "ended by an illegal memory access"),
        ("wrong", "exit status 1", "ValueError (its message is left out: it may quote a row)"),
    ):
        child = Child(f"tests.engine.test_child:{target}", environment=environment, log=tmp_path / target)
        assert child.end(patience=30) == how
        assert child.last_words() == words
    assert FAULT not in (0, 1, 3)


def test_a_thread_of_a_worker_that_fails_quotes_no_row(tmp_path: Path) -> None:
    target = "tests.engine.test_child:threaded"
    child = Child(target, environment={"PYTHONPATH": str(ROOT)}, log=tmp_path / "log")
    assert child.end(patience=30) == "exit status 0"
    log = (tmp_path / "log").read_text()
    assert "ValueError" in log
    assert "a private text" not in log


def threaded(_mailbox: object) -> None:
    thread = threading.Thread(target=lambda: int("a private " + "text"))
    thread.start()
    thread.join()


def echo(mailbox: Mailbox) -> None:
    mailbox.send({"event": "ready"})
    while (message := mailbox.receive(wait=True)) is not None:
        mailbox.send(message)


def faulty(_mailbox: object) -> None:
    raise RuntimeError("CUDA error: an illegal memory access was encountered\nCompile with `TORCH_USE_CUDA_DSA`")


def wrong(_mailbox: object) -> None:
    raise ValueError("no")
