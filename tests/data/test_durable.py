"""Files appear whole or not at all, the first attempt wins, and what was killed leaves nothing under a final name."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import BinaryIO

import pytest

from data.durable import digest_file, make_folder, move, write_file
from data.errors import RunError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def tmp(tmp_path: Path) -> Path:
    (tmp_path / "tmp").mkdir()
    return tmp_path / "tmp"


def test_a_file_appears_under_its_name_and_nothing_stays_in_tmp(tmp: Path) -> None:
    target = tmp.parent / "record"
    assert write_file(tmp, target, lambda file: file.write(b"whole"))
    assert target.read_bytes() == b"whole"
    assert target.stat().st_nlink == 1
    assert target.stat().st_mode & 0o777 == 0o600
    assert not list(tmp.iterdir())


def test_the_first_attempt_wins(tmp: Path) -> None:
    target = tmp.parent / "record"
    assert write_file(tmp, target, lambda file: file.write(b"first"))
    assert not write_file(tmp, target, lambda file: file.write(b"second"))
    assert target.read_bytes() == b"first"


def test_a_file_named_by_what_it_is_must_not_differ(tmp: Path) -> None:
    target = tmp.parent / "record"
    write_file(tmp, target, lambda file: file.write(b"first"), same=True)
    assert not write_file(tmp, target, lambda file: file.write(b"first"), same=True)
    with pytest.raises(RunError, match="record is damaged"):
        write_file(tmp, target, lambda file: file.write(b"other"), same=True)
    assert not list(tmp.iterdir())


def test_an_error_while_writing_or_checking_discards_the_attempt(tmp: Path) -> None:
    target = tmp.parent / "record"

    def breaks(file: BinaryIO) -> None:
        file.write(b"half")
        raise OSError("disk")

    def refuses(path: Path) -> None:
        assert path.read_bytes() == b"whole"
        raise RunError("not right")

    with pytest.raises(OSError, match="disk"):
        write_file(tmp, target, breaks)
    with pytest.raises(RunError, match="not right"):
        write_file(tmp, target, lambda file: file.write(b"whole"), check=refuses)
    assert not target.exists()
    assert not list(tmp.iterdir())


def test_a_sync_that_fails_is_an_error_and_leaves_no_file(tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(OSError, match="Input/output"):
        write_file(tmp, tmp.parent / "record", lambda file: file.write(b"whole"))
    assert not (tmp.parent / "record").exists()


@pytest.mark.parametrize("call", ["os.fsync", "os.link", "os.unlink"])
@pytest.mark.parametrize("when", [1, 2])
def test_a_killed_writer_leaves_the_whole_file_or_none(tmp: Path, call: str, when: int) -> None:
    program = f"""
import os, signal, sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from data.durable import write_file
real, count = {call}, [0]
def killed(*args, **options):
    count[0] += 1
    if count[0] == {when}:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*args, **options)
{call} = killed
write_file(Path({str(tmp)!r}), Path({str(tmp.parent / "record")!r}), lambda file: file.write(b"x" * 5_000_000))
"""
    child = subprocess.run([sys.executable, "-c", program], check=False)
    target = tmp.parent / "record"
    assert child.returncode in (0, -signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL or when == 2
    if target.exists():
        assert target.read_bytes() == b"x" * 5_000_000
    else:
        assert write_file(tmp, target, lambda file: file.write(b"again"))


def test_folders_are_made_with_their_parents(tmp: Path) -> None:
    make_folder(tmp / "a" / "b", 0o700)
    make_folder(tmp / "a" / "b", 0o700)
    assert (tmp / "a" / "b").stat().st_mode & 0o777 == 0o700


def test_a_folder_that_a_killed_process_has_made_is_made_durable(tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name is there, and a power cut would take all that is put below it."""
    (tmp / "a").mkdir()
    (tmp / "a" / "b").mkdir()
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.readlink(f"/proc/self/fd/{descriptor}")))
    make_folder(tmp / "a" / "b")
    assert synced == [str(tmp / "a")]
    make_folder(tmp / "a" / "c" / "d")
    assert synced[1:] == [str(tmp), str(tmp / "a"), str(tmp / "a" / "c")]


def test_a_temporary_file_that_cannot_be_deleted_changes_nothing(tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object, **_options: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "unlink", refuse)
    assert write_file(tmp, tmp / "x", lambda file: file.write(b"x"))
    with pytest.raises(RunError, match="not right"):
        write_file(tmp, tmp / "y", lambda file: file.write(b"y"), check=_wrong)
    with pytest.raises(RunError, match="not right"):
        write_file(tmp, tmp / "y", lambda _file: _wrong(tmp))
    assert not (tmp / "y").exists()


def _wrong(_path: Path) -> None:
    raise RunError("not right")


def test_a_folder_in_one_that_cannot_be_written_is_used(tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a user's own in /home, which may not even be read."""
    (tmp / "user").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: not (path == tmp and mode & os.W_OK))
    monkeypatch.setattr(os, "fsync", lambda _: pytest.fail("synced"))
    make_folder(tmp / "user")


def test_the_digest_is_sha256(tmp: Path) -> None:
    (tmp / "file").write_bytes(b"abc")
    assert digest_file(tmp / "file") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.mark.parametrize("call", ["fsync", "link", "open"])
def test_a_refusal_of_the_disk_is_passed_on_and_nothing_is_tried_again(
    tmp: Path, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []

    def refuses(*_: object, **__: object) -> None:
        made.append(call)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, refuses)
    with pytest.raises(OSError, match="No space left"):
        write_file(tmp, tmp.parent / "record", lambda file: file.write(b"whole"))
    monkeypatch.undo()
    assert made == [call]
    assert not list(tmp.iterdir())
    assert not (tmp.parent / "record").exists()


def test_a_name_that_cannot_be_made_durable_is_an_error(tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is there, and whoever goes on from it would lose it with the power."""
    real, synced = os.fsync, 0

    def second_fails(descriptor: int) -> None:
        nonlocal synced
        synced += 1
        if synced == 2:
            raise OSError(5, "Input/output error")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", second_fails)
    with pytest.raises(OSError, match="Input/output"):
        write_file(tmp, tmp.parent / "record", lambda file: file.write(b"whole"))
    assert synced == 2
    assert not list(tmp.iterdir())


def test_a_link_that_was_made_though_it_was_refused_counts(tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network filesystem repeats a link whose answer was lost, and finds its own name."""
    real = os.link

    def twice(staged: Path, target: Path) -> None:
        real(staged, target)
        real(staged, target)

    monkeypatch.setattr(os, "link", twice)
    assert write_file(tmp, tmp.parent / "record", lambda file: file.write(b"ours"))
    assert (tmp.parent / "record").read_bytes() == b"ours"


def test_bytes_and_names_are_there_when_they_are_synced(tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut leaves no others."""
    real = os.fsync
    sizes: list[int] = []
    names: set[Path] = set()

    def watched(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if path.is_dir():
            names.update(path.iterdir())
        else:
            sizes.append(path.stat().st_size)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    make_folder(tmp.parent / "a" / "b")
    write_file(tmp, tmp.parent / "record", lambda file: file.write(b"whole"))
    move(tmp.parent / "record", tmp.parent / "moved")
    assert sizes == [5]
    assert {tmp.parent / name for name in ("record", "moved", "a", "a/b")} <= names
