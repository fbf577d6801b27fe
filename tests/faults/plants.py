"""Bugs of the kinds that the harness is there to find, planted into a driver and its workers."""

from __future__ import annotations

import json
import os
import stat
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import data.durable
import data.ledger
import engine.child
import tasks.worker
from data.ledger import Commit

PLANTS: dict[str, Callable[[], None]] = {}


def plant(name: str) -> None:
    """Plant the bug of this name; none for an empty one."""
    if name:
        PLANTS[name]()


def planted(name: str) -> Callable[[Callable[[], None]], Callable[[], None]]:
    def keep(function: Callable[[], None]) -> Callable[[], None]:
        PLANTS[name] = function
        return function

    return keep


@planted("write in place")
def _write_in_place() -> None:
    def write_file(tmp: Path, target: Path, write: Any, *, check: Any = None, **_: Any) -> bool:  # noqa: ARG001
        with open(target, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        if check is not None:
            check(target)
        data.durable.sync_folder(target.parent)
        return True

    _replace("write_file", write_file)


@planted("created under its final name, then written")
def _created_then_written() -> None:
    def write_file(tmp: Path, target: Path, write: Any, *, check: Any = None, **_: Any) -> bool:  # noqa: ARG001
        try:
            file = open(target, "xb")  # noqa: SIM115
        except FileExistsError:
            return False
        with file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        if check is not None:
            check(target)
        data.durable.sync_folder(target.parent)
        return True

    _replace("write_file", write_file)


@planted("commit before data")
def _commit_before_data() -> None:
    commit, link = data.ledger.commit_shard, data.ledger.link_file

    def commit_shard(run: Any, *arguments: Any, **options: Any) -> Any:
        held: list[tuple[Path, Path]] = []

        def hold(staged: Path, target: Path, **_: Any) -> bool:
            again = staged.with_suffix(".held")
            os.link(staged, again)
            held.append((again, target))
            return True

        data.ledger.link_file = hold
        result = commit(run, *arguments, **options)
        for staged, target in held:
            link(staged, target, same=True)
            staged.unlink()
        return result

    tasks.worker.commit_shard = commit_shard


@planted("no file sync")
def _no_file_sync() -> None:
    _skip_sync(lambda mode: not stat.S_ISDIR(mode))


@planted("no folder sync")
def _no_folder_sync() -> None:
    _skip_sync(stat.S_ISDIR)


@planted("attempt-named records and a listing")
def _attempt_named() -> None:
    def path_of(run: Any, shard: str) -> Path:
        found = sorted(run.commits.glob(f"{shard}.*.json"))
        return found[-1] if found else run.commits / f"{shard}.0.json"

    def record_commit(run: Any, commit: Commit) -> Commit:
        path = run.commits / f"{commit.shard}.{commit.attempt}.json"
        data.durable.write_file(run.tmp, path, lambda file: file.write(commit.to_bytes()))
        return commit

    def refresh(ledger: Any) -> None:
        for path in sorted(ledger.run.commits.glob("*.json")):
            alias = path.with_name(path.name.split(".")[0] + ".json")
            content = path.read_bytes()
            ledger._commits[alias.stem] = _read(alias, content)

    def _read(alias: Path, content: bytes) -> Commit:
        hidden = alias.parent.parent / "tmp" / alias.name
        hidden.write_bytes(content)
        try:
            return Commit.read(hidden)
        finally:
            hidden.unlink()

    def committed(ledger: Any, shard: str) -> bool:
        refresh(ledger)
        return shard in ledger._commits

    data.ledger._commit_path = path_of
    _replace("record_commit", record_commit)
    data.ledger.Ledger.refresh = refresh  # type: ignore[method-assign]
    data.ledger.Ledger.committed = committed  # type: ignore[method-assign]


def deafen() -> None:
    """Have workers that go on when their driver is gone, until they have something to say to it."""

    def read(self: Any) -> None:
        while True:
            try:
                text = self._connection.recv_bytes()
            except (EOFError, OSError):
                time.sleep(600)
                os._exit(3)
            self._inbox.put(json.loads(text))

    engine.child.Mailbox._read = read  # type: ignore[method-assign]
    engine.child.Mailbox.beat = lambda *_: None  # type: ignore[method-assign]
    engine.child._watch = os.close


def _skip_sync(skipped: Callable[[int], bool]) -> None:
    sync = os.fsync

    def fsync(descriptor: int) -> None:
        if not skipped(os.fstat(descriptor).st_mode):
            sync(descriptor)

    os.fsync = fsync  # type: ignore[assignment]


def _replace(name: str, function: Any) -> None:
    """Under this name in every module that has it from the one that defines it."""
    before = next(getattr(module, name) for module in (data.durable, data.ledger) if hasattr(module, name))
    for module in list(sys.modules.values()):
        if module.__name__.startswith(("data.", "tasks.")) and getattr(module, name, None) is before:
            setattr(module, name, function)
