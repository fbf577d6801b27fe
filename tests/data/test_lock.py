"""One holder at a time; a dead holder holds nothing; a child that the holder starts does not inherit the lock."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data.errors import Held
from data.lock import locked

HOLD = """
import sys, time
sys.path.insert(0, {root!r})
from pathlib import Path
from data.lock import locked
with locked(Path({path!r}), "the run"):
    print("held", flush=True)
    time.sleep(60)
"""


def holder(path: Path) -> subprocess.Popen[str]:
    program = HOLD.format(root=str(Path(__file__).parents[2]), path=str(path))
    child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n"
    return child


def test_a_second_process_is_told_who_holds_it_until_that_one_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    child = holder(path)
    try:
        with pytest.raises(Held, match=rf"the run is in use by process {child.pid} on"), locked(path, "the run"):
            pass
    finally:
        child.kill()
        child.wait()
    with locked(path, "the run"):
        assert path.exists()
    assert not path.exists()


def test_it_is_exclusive_within_a_process_and_released_by_an_error(tmp_path: Path) -> None:
    path = tmp_path / "lock"

    def fail() -> None:
        with locked(path, "x"):
            with pytest.raises(Held), locked(path, "x"):
                pass
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    with locked(path, "x"):
        pass


def test_a_program_started_by_the_holder_does_not_keep_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with locked(path, "x"):
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], close_fds=False)
    try:
        time.sleep(0.1)
        assert child.poll() is None
        with locked(path, "x"):
            pass
    finally:
        child.kill()
        child.wait()


def test_a_lock_whose_file_is_removed_while_it_is_taken_is_taken_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, real = tmp_path / "lock", fcntl.flock
    removed = False

    def after_its_holder_left(descriptor: int, operation: int) -> None:
        nonlocal removed
        if not removed:
            removed = True
            path.unlink()
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", after_its_holder_left)
    with locked(path, "x"):
        assert path.exists()
        with pytest.raises(Held), locked(path, "x"):
            pass


def test_releasing_leaves_the_lock_of_a_new_folder_alone(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    with locked(run / "lock", "old"):
        run.rename(tmp_path / "aside")
        run.mkdir()
        with locked(run / "lock", "new"):
            pass
        (run / "lock").write_text("of another driver")
    assert (run / "lock").exists()


def test_a_lock_file_that_cannot_be_removed_holds_nobody_up_and_hides_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "lock"

    def refuse(name: Path) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(name))

    monkeypatch.setattr(os, "unlink", refuse)
    with locked(path, "x"):
        pass
    assert [str(path) in text for text in caplog.messages] == [True]
    with pytest.raises(KeyError, match="of the block"), locked(path, "x"):
        raise KeyError("of the block")
    monkeypatch.undo()
    with locked(path, "x"):
        pass
    assert not path.exists()
