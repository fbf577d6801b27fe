"""A run's folder on disk: its layout, its identity, its lock, and whether the filesystem can keep the protocol.

The id of a run is a digest of its identity, a plain mapping of everything that decides its answers. It is written once
in run.json; a folder that holds another identity is refused with the differences listed. The folder is private (0700),
because prompts and answers lie in it.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

from data.durable import make_folder, move, stage, sync_folder, write_file
from data.errors import InputError
from data.lock import locked

_FOLDERS = ("plan", "prompts", "shards", "commits", "attempts", "publications", "tmp")


def run_id(identity: Mapping[str, Any]) -> str:
    """The run's id: 16 hexadecimal digits of the digest of its identity, whatever the order of the keys."""
    return hashlib.sha256(_canonical(identity)).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class RunFolder:
    """An existing run folder. `create` is for the driver, `open` for everyone else."""

    path: Path
    id: str
    made: tuple[Path, ...] = field(default=(), compare=False, repr=False)
    """The folder and those above it that `create` had to make; empty if the folder was there before."""

    @classmethod
    def create(cls, path: Path | str, identity: Mapping[str, Any]) -> RunFolder:
        """Create the folder or go on with the one of the same identity. InputError: another run's, or not writable."""
        path = Path(path).absolute()
        try:
            made = tuple(takewhile(lambda folder: not folder.exists(), (path, *path.parents)))
            if path.is_dir() and not (path / "run.json").exists():
                _refuse_foreign(path)
            make_folder(path, 0o700)
            for name in _FOLDERS:
                make_folder(path / name, 0o700)
            content = json.loads(_canonical(identity))
            record = json.dumps({"id": run_id(identity), "identity": content}, indent=1, sort_keys=True).encode()
            if not write_file(path / "tmp", path / "run.json", lambda file: file.write(record)):
                made = ()
                _refuse_other(path, content)
        except OSError as error:
            raise _unwritable(path, error) from error
        return cls(path, run_id(identity), made)

    @classmethod
    def open(cls, path: Path | str) -> RunFolder:
        """An existing run folder, whatever its identity. InputError if there is none."""
        path = Path(path).absolute()
        return cls(path, str(_read_identity(path)["id"]))

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the run's answers, as it was when the folder was created."""
        identity: dict[str, Any] = _read_identity(self.path)["identity"]
        return identity

    @property
    def plan(self) -> Path:
        return self.path / "plan"

    @property
    def prompts(self) -> Path:
        return self.path / "prompts"

    @property
    def shards(self) -> Path:
        return self.path / "shards"

    @property
    def commits(self) -> Path:
        return self.path / "commits"

    @property
    def attempts(self) -> Path:
        return self.path / "attempts"

    @property
    def publications(self) -> Path:
        """One record for each result that was assembled, written before it is renamed into place."""
        return self.path / "publications"

    @property
    def tmp(self) -> Path:
        return self.path / "tmp"

    @property
    def events(self) -> Path:
        return self.path / "events.jsonl"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Exclude other drivers of this run; Held if there is one.

        A folder that was made for a run which an InputError refuses before it has begun anything goes again.
        """
        with locked(self.path / "lock", f"the run folder {self.path}"):
            try:
                yield
            except InputError:
                with suppress(OSError):  # an empty folder does no harm, and what was refused is to be told
                    if self.made and not self._begun:
                        self._discard()
                raise

    @property
    def _begun(self) -> bool:
        """Whether there is more in the folder than what names the run."""
        folders = (self.path / name for name in _FOLDERS if name != "tmp")
        return self.events.exists() or any(any(folder.iterdir()) for folder in folders)

    def _discard(self) -> None:
        """Remove the folder, at once for whoever looks, and those above it that were made for it and are empty."""
        gone = self.path.with_name(f".{self.path.name}.gone-{secrets.token_hex(4)}")
        os.rename(self.path, gone)
        shutil.rmtree(gone)
        for folder in self.made[1:]:
            folder.rmdir()

    def sweep(self) -> None:
        """Remove what dead processes left in tmp. Under the lock; a live attempt of a lost worker fails at its link."""
        for entry in os.scandir(self.tmp):
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                Path(entry.path).unlink(missing_ok=True)


def set_aside(path: Path | str) -> Path | None:
    """Rename a run folder to `<name>.old-N`, for a run that starts afresh. None if there is none; Held if in use.

    InputError: it is none, or its disk cannot be written.
    """
    path = Path(path).absolute()
    if not path.exists():
        return None
    if not (path / "run.json").exists():
        raise InputError(f"{path} is not a run folder: it has no run.json")
    number = 0
    while (target := path.with_name(f"{path.name}.old-{number}")).exists():
        number += 1
    try:
        with locked(path / "lock", f"the run folder {path}"):
            move(path, target)
        (target / "lock").unlink(missing_ok=True)
    except OSError as error:
        raise _unwritable(path, error) from error
    return target


def preflight(run: RunFolder, output: Path) -> None:
    """Prove with probes that results can be written beside `output` and that files of the run can be linked there.

    Creates the missing parents of the output. The caller holds the lock of the run. InputError names the folder and the
    remedy.
    """
    parent = output.absolute().parent
    start = f".overnight-probe-{run.id}-"
    probe = parent / f"{start}{secrets.token_hex(8)}"
    try:
        make_folder(parent)
        for dead in parent.glob(f"{start}*"):  # of a start of this run that was killed
            dead.unlink(missing_ok=True)
        staged = stage(run.tmp, lambda file: file.write(b"probe"))
        try:
            if os.stat(run.tmp).st_dev != os.stat(parent).st_dev:
                raise InputError(f"{parent} is on another filesystem than {run.path}; set --run-dir to one beside it")
            os.link(staged, probe)
            os.rename(probe, probe.with_suffix(".renamed"))
            sync_folder(parent)
        finally:
            for leftover in (staged, probe, probe.with_suffix(".renamed")):
                leftover.unlink(missing_ok=True)
    except OSError as error:
        message = f"cannot write, link and rename in {parent}: {error.strerror}; set output.path to a folder that can"
        raise InputError(message) from error


def _unwritable(path: Path, error: OSError) -> InputError:
    at = f"{error.filename}: " if error.filename is not None else ""
    return InputError(
        f"the run folder {path} cannot be written: {at}{error.strerror}. Set --run-dir to a folder that can, on the "
        "disk of the output; or choose another --output, beside which the run folder then lies"
    )


def _canonical(identity: Mapping[str, Any]) -> bytes:
    return json.dumps(identity, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _read_identity(path: Path) -> dict[str, Any]:
    try:
        record = json.loads((path / "run.json").read_bytes())
    except FileNotFoundError:
        raise InputError(f"{path} is not a run folder: it has no run.json") from None
    except ValueError:
        raise InputError(f"{path / 'run.json'} is damaged; set the folder aside with --fresh") from None
    if not isinstance(record, dict) or record.get("id") != run_id(record.get("identity", {})):
        raise InputError(f"{path / 'run.json'} is damaged; set the folder aside with --fresh")
    return record


def _refuse_foreign(path: Path) -> None:
    foreign = sorted(set(os.listdir(path)) - {*_FOLDERS, "lock", "events.jsonl"})
    if foreign:
        raise InputError(f"{path} is not a run folder and not empty (it holds {foreign[0]}); set --run-dir")


def _refuse_other(path: Path, identity: dict[str, Any]) -> None:
    theirs = dict(_flatten(_read_identity(path)["identity"]))
    ours = dict(_flatten(identity))
    names = sorted(name for name in {*theirs, *ours} if theirs.get(name) != ours.get(name))
    if names:
        differences = "; ".join(_difference(name, theirs.get(name), ours.get(name)) for name in names)
        raise InputError(f"{path} belongs to another run: {differences}. Set --run-dir, or use --fresh")


def _flatten(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flatten(inner, f"{name}.{key}" if name else key)
    else:
        yield name, value


def _difference(name: str, theirs: Any, ours: Any) -> str:
    # Prompts and other long texts stay out of messages, which end up in logs.
    short = all(isinstance(value, int | float | None) or (isinstance(value, str) and len(value) <= 64)
                for value in (theirs, ours))  # fmt: skip
    if not short or name.startswith("job.prompt"):
        return f"{name} differs"
    return f"{name} was {json.dumps(theirs)}, is {json.dumps(ours)}"
