"""A pointer leads to a checkpoint at every moment, whatever is killed; a rollback goes only where it has led."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data.checkpoint import Checkpoint
from data.errors import Held, InputError
from data.lock import locked
from data.pointer import Pointer, promote

ROOT = Path(__file__).parents[2]
BUNDLED = ROOT / "data" / "models" / "messages-4m"
CALLS = ("fsync", "symlink", "rename", "unlink")


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the checkpoints a, b and c, whose digests differ."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "models"
    for number, name in enumerate("abc"):
        (folder / name).mkdir(parents=True)
        for path in BUNDLED.iterdir():
            os.link(path, folder / name / path.name)
        change(folder / name, number)
    return folder


def change(checkpoint: Path, number: int) -> None:
    """Give a checkpoint another digest."""
    path = checkpoint / "generation_config.json"
    content = json.loads((BUNDLED / path.name).read_text())
    path.unlink()
    path.write_text(json.dumps({**content, "top_k": number}))


def at(pointer: Path) -> str:
    """The name of the checkpoint that any program finds there."""
    assert (pointer / "config.json").exists()
    return Path(os.path.realpath(pointer)).name


def history(models: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (models / ".current.history.jsonl").read_text().splitlines()]


def refused(match: str, call: Callable[[], object]) -> None:
    with pytest.raises(InputError, match=match):
        call()


def test_a_promotion_moves_a_relative_link_and_writes_it_down(models: Path) -> None:
    pointer = models / "current"
    promote(pointer, models / "a")
    promote(str(pointer), str(models / "b"))
    assert os.readlink(pointer) == "b"
    digests = {name: Checkpoint.open(str(models / name)).digests() for name in "ab"}
    first, second = history(models)
    assert (first["to"], first["before"]) == ({"path": "a", "digests": digests["a"]}, None)
    assert (second["to"], second["before"]) == ({"path": "b", "digests": digests["b"]}, first["to"])
    assert second["time"].endswith("+00:00")
    assert promote(pointer, models / "b") is None
    assert len(history(models)) == 2
    models.rename(models.parent / "moved")
    assert at(models.parent / "moved" / "current") == "b"
    assert sorted(os.listdir(models.parent / "moved")) == [".current.history.jsonl", "a", "b", "c", "current"]


def test_the_link_is_right_from_another_folder_and_through_a_linked_one(models: Path, tmp_path: Path) -> None:
    (tmp_path / "live" / "deep").mkdir(parents=True)
    (tmp_path / "short").symlink_to("live/deep")
    promote(tmp_path / "short" / "current", models / "a")
    assert os.readlink(tmp_path / "live" / "deep" / "current") == "../../models/a"


def test_rollbacks_lead_through_the_checkpoints_before(models: Path) -> None:
    pointer = Pointer(models / "current")
    for name in "abcab":
        pointer.promote(models / name)
    seen = [at(pointer.link)]
    for _ in range(3):
        pointer.roll_back()
        seen.append(at(pointer.link))
    assert seen == ["b", "a", "c", "b"]
    pointer.promote(models / "c")
    pointer.roll_back()
    assert at(pointer.link) == "b", "the one before this promotion, not one that was left by a rollback"
    pointer.roll_back()
    assert at(pointer.link) == "a"
    refused("no checkpoint before", pointer.roll_back)


def test_a_rollback_goes_to_nothing_that_is_gone_or_changed(models: Path) -> None:
    pointer = Pointer(models / "current")
    for name in "abc":
        pointer.promote(models / name)
    (models / "b").rename(models / "elsewhere")
    refused(r"models/b, is gone: put it back, or name another one with overnight promote", pointer.roll_back)
    (models / "elsewhere").rename(models / "b")
    pointer.roll_back()
    change(models / "a", 7)
    refused("its digest has changed", pointer.roll_back)
    assert (at(pointer.link), len(history(models))) == ("b", 4)


def test_a_checkpoint_that_was_changed_in_place_is_a_promotion_of_its_own(models: Path) -> None:
    pointer = Pointer(models / "current")
    pointer.promote(models / "a")
    pointer.promote(models / "b")
    change(models / "b", 8)
    pointer.promote(models / "b")
    assert len(history(models)) == 3
    refused("its digest has changed", pointer.roll_back)
    change(models / "b", 1)
    pointer.roll_back()
    pointer.roll_back()
    assert at(pointer.link) == "a"


def test_a_link_that_was_moved_by_hand_is_what_was_before(models: Path) -> None:
    pointer = Pointer(models / "current")
    pointer.link.symlink_to(models / "a")
    pointer.promote(models / "b")
    pointer.link.unlink()
    pointer.link.symlink_to("c")
    pointer.promote(models / "a")
    seen = []
    for _ in range(2):
        pointer.roll_back()
        seen.append(at(pointer.link))
    assert seen == ["c", "a"]


def test_a_pointer_leads_to_what_another_one_leads_to(models: Path) -> None:
    promote(models / "staging", models / "a")
    promote(models / "current", models / "staging")
    promote(models / "staging", models / "b")
    assert at(models / "current") == "a"


def test_what_no_pointer_can_be_or_lead_to(models: Path) -> None:
    promote(models / "current", models / "a")
    (models / "empty").mkdir()
    (models / "gone").symlink_to("nowhere")
    (models / "file").touch()
    (models / "bare").mkdir()
    shutil.copy(BUNDLED / "config.json", models / "bare")
    (models / "a" / "step-1").mkdir()
    for pointer, checkpoint, match in (
        ("b", "a", "is a folder, and a pointer is a link"),
        ("file", "a", "is a file, and a pointer is a link"),
        ("absent/current", "a", "is not a folder: make it first"),
        ("current", "empty", r"no config\.json"),
        ("current", "bare", "holds no weights"),
        ("current", "gone", r"gone \(a link to nowhere\) does not exist"),
        ("current", "absent", "absent does not exist"),
        ("current", "file", "is a file"),
        ("current", "current/step-1", r"lies inside .*current: name it by its real path, .*models/a/step-1"),
        ("a/current", "a", "lies inside"),
    ):
        refused(match, lambda: promote(models / pointer, models / checkpoint))  # noqa: B023
    refused("does not exist", Pointer(models / "other").roll_back)
    assert at(models / "current") == "a"


def test_a_run_that_follows_a_pointer_to_nothing_is_told_so(models: Path) -> None:
    promote(models / "current", models / "a")
    shutil.rmtree(models / "a")
    refused(r"current is a link to a, which does not exist", lambda: Checkpoint.open(str(models / "current")))
    Pointer(models / "current").promote(models / "b")
    assert at(models / "current") == "b"


PROMOTE = """
import sys
from data.pointer import promote
print("ready", flush=True)
promote(sys.argv[1], sys.argv[2])
"""


def promotion(pointer: Path, checkpoint: Path) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", PROMOTE, str(pointer), str(checkpoint)]
    child = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    return child


def test_of_two_at_once_one_waits_for_a_while(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data.pointer.WAIT_SECONDS", 0.3)
    with locked(models / ".current.lock", "the pointer"):
        waits = promotion(models / "current", models / "a")
        with pytest.raises(Held, match=f"the pointer .*current is in use by process {os.getpid()}"):
            promote(models / "current", models / "b")
    assert waits.wait(timeout=60) == 0
    assert at(models / "current") == "a"


def test_promotions_at_once_come_one_after_the_other(models: Path) -> None:
    children = [promotion(models / "current", models / name) for name in "abc"]
    assert [child.wait(timeout=60) for child in children] == [0, 0, 0]
    moves = history(models)
    assert sorted(move["to"]["path"] for move in moves) == ["a", "b", "c"]
    assert [move["before"] for move in moves] == [None, moves[0]["to"], moves[1]["to"]]
    assert at(models / "current") == moves[2]["to"]["path"]


def killed(models: Path, point: int, work: Callable[[], object], disk: Path) -> bool:
    """Do the work in a child that kills itself before its `point`-th call that changes files.

    The file `disk` then tells what a power cut at that moment, or at the end, would leave: of a file what was synced
    of it, of the folder the names that it had when it was synced.
    """
    child = os.fork()
    if child == 0:
        cut = wrap(models, point, disk)
        work()
        cut()
        os._exit(0)
    return os.waitpid(child, 0)[1] == signal.SIGKILL


def wrap(models: Path, point: int, disk: Path) -> Callable[[], None]:
    count, (names, synced) = 0, listing(models)

    def cut() -> None:
        kept = {name: synced.get(what, "") if isinstance(what, int) else what for name, what in names.items()}
        disk.write_text(json.dumps(kept))

    def wrapped(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal count, names
            count += 1
            if count == point:
                cut()
                os.kill(os.getpid(), signal.SIGKILL)
            result = real(*arguments, **options)
            if name == "fsync" and stat.S_ISDIR(os.fstat(arguments[0]).st_mode):
                names, _ = listing(models)
            elif name == "fsync":
                status = os.fstat(arguments[0])
                synced[status.st_ino] = os.pread(arguments[0], status.st_size, 0).decode()
            return result

        return call

    for name in CALLS:
        setattr(os, name, wrapped(name, getattr(os, name)))
    return cut


def listing(models: Path) -> tuple[dict[str, Any], dict[int, str]]:
    """The folder's links and files, a link as [its text], a file as its inode; and the files' content by inode."""
    entries = [entry for entry in os.scandir(models) if not entry.is_dir(follow_symlinks=False)]
    names = {e.name: [os.readlink(e.path)] if e.is_symlink() else e.inode() for e in entries}
    return names, {e.inode(): Path(e.path).read_text() for e in entries if not e.is_symlink()}


def restore(models: Path, names: dict[str, Any]) -> None:
    """Make the folder's links and files these: a link is [its text], a file its content."""
    for name in listing(models)[0]:
        os.unlink(models / name)
    for name, what in names.items():
        if isinstance(what, list):
            os.symlink(what[0], models / name)
        else:
            (models / name).write_text(what)


@pytest.mark.parametrize("mode", ["kill", "power"])
@pytest.mark.parametrize("what", ["first", "second", "rollback"])
def test_killed_between_any_two_steps(models: Path, tmp_path: Path, what: str, mode: str) -> None:
    """The pointer leads where it did or where it was to; what was not moved is not gone back to."""
    disk, link, points = tmp_path / "disk", models / "current", 0
    before = {"first": [], "second": ["a"], "rollback": ["a", "b"]}[what]
    for name in before:
        promote(link, models / name)
    work = Pointer(link).roll_back if what == "rollback" else lambda: promote(link, models / "b")
    names, contents = listing(models)
    pristine = {name: what if isinstance(what, list) else contents[what] for name, what in names.items()}
    while killed(models, points + 1, work, disk):
        points += 1
        if mode == "power":
            restore(models, json.loads(disk.read_text()))
        here = at(link) if link.is_symlink() else None
        assert here in (before[-1] if before else None, "a" if what == "rollback" else "b")
        promote(link, models / "c")
        trail = []
        for _ in range(5):
            try:
                Pointer(link).roll_back()
            except InputError:
                break
            trail.append(at(link))
        expected = {None: [], "a": ["a"], "b": ["b", "a"] if before else ["b"]}
        assert trail == expected[here], f"point {points}"
        restore(models, pristine)
    assert points >= 5
    restore(models, json.loads(disk.read_text()))
    assert at(link) == ("a" if what == "rollback" else "b")


@pytest.mark.parametrize("length", [1, 40, -1])
def test_a_line_that_was_not_written_to_its_end_is_none(models: Path, length: int) -> None:
    pointer = Pointer(models / "current")
    pointer.promote(models / "a")
    path = models / ".current.history.jsonl"
    line = path.read_bytes()
    path.write_bytes(line + line[:length])
    assert len(pointer.moves()) == 1
    pointer.promote(models / "b")
    assert [move["to"]["path"] for move in history(models)] == ["a", "b"]
    path.write_bytes(b"{}\n" + line)
    refused("line 1, is no move of a pointer", pointer.moves)
