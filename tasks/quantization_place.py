"""Where a quantized checkpoint is made, kept and published.

It is made in a work folder, `.overnight/quantize-NAME` beside the output, and gets the output's name by a rename when
all is done and judged. One that is refused is renamed to NAME.refused, which nobody takes by accident. What it replaces
has a hidden name meanwhile, and is put back if the end did not come. One driver at a time, by a lock. Which flow runs
have begun afresh is kept beside the work folder, so that a retry goes on with what the attempt before has done.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.durable import make_folder, stage, sync_folder, write_file
from data.errors import InputError
from data.lock import locked
from engine.quantizer_report import REPORT_NAME

_BEGUN = "work.json"


@dataclass(frozen=True)
class QuantizationPlace:
    """The names around `path`, the output, which is absolute."""

    path: Path

    @property
    def work(self) -> Path:
        """The work folder; it is there as long as something is to be done."""
        return self.path.parent / ".overnight" / f"quantize-{self.path.name}"

    @property
    def candidate(self) -> Path:
        """The checkpoint before it is judged; whole if it is there."""
        return self.work / self.path.name

    @property
    def refused(self) -> Path:
        """The checkpoint if it is not good enough."""
        return self.path.with_name(f"{self.path.name}.refused")

    @property
    def _replaced(self) -> Path:
        return self.path.with_name(f".{self.path.name}.replaced")

    def lock(self) -> AbstractContextManager[None]:
        """Exclude other drivers; Held if there is one. InputError if nothing can be written there."""
        try:
            make_folder(self.work.parent, 0o700)
        except OSError as error:
            raise InputError(f"quantize.output {self.path} cannot be written: {error.strerror}") from error
        return locked(self.work.with_name(f"{self.work.name}.lock"), f"quantize.output {self.path}")

    def begin(self, identity: Mapping[str, Any], *, fresh: bool) -> None:
        """Begin the work, or go on with it; under the lock and after `settle`.

        A refused checkpoint of this very work is a candidate again. InputError if the work begun is another, or the
        output exists and neither `fresh` nor an earlier `fresh` of this work allows to replace it.
        """
        if self._replaced.exists():
            shutil.rmtree(self._replaced)
        if fresh and self.work.exists():
            old = self.work.with_name(f"{self.work.name}.old")
            shutil.rmtree(old, ignore_errors=True)
            os.rename(self.work, old)
            shutil.rmtree(old)
        found = self._begun()
        self._check_free(fresh or (found or {}).get("replace", False))
        make_folder(self.work, 0o700)
        if found is None:
            begun = {"identity": identity, "replace": fresh, "replaces": self._there() if fresh else None}
            content = json.dumps(begun, indent=1).encode()
            write_file(self.work, self.work / _BEGUN, lambda file: file.write(content))
        elif differ := sorted(key for key in identity if found["identity"].get(key) != identity[key]):
            raise InputError(
                f"the unfinished work in {self.work} was begun with another {', '.join(differ)}: go on with the same, "
                "or drop that work with --fresh"
            )
        if not fresh and not self.candidate.exists() and identity_of(self.refused) == identity:
            self._rename(self.refused, self.candidate)

    def to_be_replaced(self, identity: Mapping[str, Any]) -> bool:
        """Whether what is at the output is what this very work, begun afresh, has yet to replace; after `settle`."""
        found = self._begun() or {}
        replaces = found.get("replaces")
        return found.get("identity") == identity and replaces is not None and replaces == self._there()

    def _begun(self) -> dict[str, Any] | None:
        record = self.work / _BEGUN
        return dict(json.loads(record.read_bytes())) if record.exists() else None

    def _there(self) -> int | None:
        """The inode of the output, which a rename keeps; None if nothing is there."""
        return self.path.stat().st_ino if _occupied(self.path) else None

    def started_afresh(self, flow_run: str | None) -> bool:
        """Whether a flow run has had its fresh start here, whatever became of it; a command has one each time."""
        return flow_run is not None and flow_run in self._fresh_starts()

    def remember_fresh_start(self, flow_run: str | None) -> None:
        """Keep that a flow run has begun afresh, beyond the work itself; after `begin`, under the lock."""
        if flow_run is not None:
            content = "".join(f"{known}\n" for known in (*self._fresh_starts(), flow_run)).encode()
            os.replace(stage(self.work, lambda file: file.write(content)), self._fresh)
            sync_folder(self._fresh.parent)

    def _fresh_starts(self) -> list[str]:
        try:
            return self._fresh.read_text(encoding="utf-8").split()
        except FileNotFoundError:
            return []

    @property
    def _fresh(self) -> Path:
        return self.work.with_name(f"{self.work.name}.fresh")

    def record(self, report: Mapping[str, Any]) -> None:
        """Write the candidate's report in place of the one that it has."""
        content = (json.dumps(report, indent=2, ensure_ascii=False) + "\n").encode()
        staged = stage(self.work, lambda file: file.write(content), mode=0o644)
        os.replace(staged, self.candidate / REPORT_NAME)
        sync_folder(self.candidate)

    def publish(self) -> None:
        """Give the candidate the output's name, in place of what has it, and end the work."""
        if _occupied(self.path):
            self._rename(self.path, self._replaced)
        self._rename(self.candidate, self.path)
        self.finish()

    def finish(self) -> None:
        """Remove what is left of the work once the output is there."""
        for folder in (self._replaced, self.work):
            if folder.exists():
                shutil.rmtree(folder)

    def refuse(self) -> None:
        """Keep the candidate under a name that nobody takes by accident, and end the work."""
        shutil.rmtree(self.refused, ignore_errors=True)
        self._rename(self.candidate, self.refused)
        shutil.rmtree(self.work)

    def settle(self) -> None:
        """Take back a replacement that a kill has interrupted; under the lock."""
        if self._replaced.exists() and not _occupied(self.path):
            self._rename(self._replaced, self.path)

    def _check_free(self, replace: bool) -> None:
        for path, needed in ((self.path, "config.json"), (self.refused, REPORT_NAME)):
            if path.is_symlink() or (path.exists() and not path.is_dir()):
                raise InputError(f"quantize.output: {path} is no folder: move it away, or name another with --output")
            if _occupied(path) and not (path / needed).is_file():
                raise InputError(
                    f"{path} holds something else than a checkpoint: move it away, or name another --output"
                )
        if _occupied(self.path) and not replace:
            raise InputError(
                f"{self.path} exists already: name another folder with --output, or replace it with --fresh once the "
                "new one is done"
            )

    def _rename(self, source: Path, target: Path) -> None:
        if target.is_dir() and not _occupied(target):
            target.rmdir()
        os.rename(source, target)
        for folder in {source.parent, target.parent}:
            sync_folder(folder)


def report_of(folder: Path) -> dict[str, Any] | None:
    """The report in a checkpoint's folder; None if there is none that can be read."""
    try:
        found = json.loads((folder / REPORT_NAME).read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def identity_of(folder: Path) -> dict[str, Any] | None:
    """What the checkpoint in a folder was made of, as its report has it."""
    found = (report_of(folder) or {}).get("identity")
    return found if isinstance(found, dict) else None


def _occupied(path: Path) -> bool:
    return path.is_dir() and any(path.iterdir())
