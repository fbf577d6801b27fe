"""The place where a result is published, a folder or one file: its names, hidden siblings, and what is there now."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data.durable import digest_file, link_file, move, sync_folder
from data.errors import InputError, RunError
from data.lock import locked
from data.manifest import Manifest, content_digest

Format = Literal["parquet", "jsonl"]


@dataclass(frozen=True, slots=True)
class Target:
    """An output path. A `.parquet` or `.jsonl` name is one file, any other name a folder of parts."""

    path: Path

    @classmethod
    def at(cls, path: Path | str) -> Target:
        """InputError for a URL, an empty path, or something at the path that is of the other sort."""
        if not str(path) or "://" in str(path):
            raise InputError(f"output.path {str(path)!r} is not a local path; set it to a folder or a file")
        target = cls(Path(os.path.abspath(path)))
        if target.path.exists() and target.path.is_dir() == target.single:
            found = "a folder" if target.single else "a file"
            raise InputError(f"output.path {target.path} is {found}; set it to another name")
        return target

    @property
    def single(self) -> bool:
        return self.path.suffix in (".parquet", ".jsonl")

    def format(self, of_folder: Format) -> Format:
        """The format of its files; `of_folder` is the setting for folders."""
        if not self.single:
            return of_folder
        return "jsonl" if self.path.suffix == ".jsonl" else "parquet"

    @property
    def manifest(self) -> Path:
        if self.single:
            return self.path.with_name(f"_{self.path.name}.manifest.json")
        return self.path / "_manifest.json"

    def lock(self) -> AbstractContextManager[None]:
        """Exclude other drivers that publish here; Held if there is one."""
        return locked(self.path.with_name(f".{self.path.name}.lock"), f"the output {self.path}")

    def hidden(self, run: str, role: Literal["new", "old"]) -> Path:
        """A fresh name beside the path for a run's new result, or for the one that it replaces."""
        return self.path.with_name(f".{self.path.name}.{run}.{role}-{secrets.token_hex(4)}{self._suffix}")

    def siblings(self, run: str, role: Literal["new", "old"]) -> list[Path]:
        """The hidden names of `hidden` that exist."""
        start = f".{self.path.name}.{run}.{role}-"
        with os.scandir(self.path.parent) as entries:
            return sorted(Path(entry.path) for entry in entries if entry.name.startswith(start))

    @property
    def _suffix(self) -> str:
        return self.path.suffix if self.single else ""

    @property
    def occupied(self) -> bool:
        """Whether anything is there: the file, its manifest, or a folder that is not empty."""
        if self.single:
            return self.path.exists() or self.manifest.exists()
        return self.path.is_dir() and any(os.scandir(self.path))

    def read_manifest(self) -> Manifest | None:
        """The manifest, or None where there is none. RunError if it is damaged."""
        try:
            return Manifest.from_bytes(self.manifest.read_bytes(), str(self.manifest))
        except (FileNotFoundError, NotADirectoryError):
            return None

    def parts(self, place: Path | None = None) -> dict[str, Path]:
        """The data files of the result here or in a hidden sibling, by the names that a manifest uses."""
        place = place or self.path
        if self.single:
            return {self.path.name: place} if place.exists() else {}
        if not place.is_dir():
            return {}
        names = sorted(name for name in os.listdir(place) if not name.startswith(("_", ".")))
        return {name: place / name for name in names}

    def digest(self, place: Path | None = None) -> str | None:
        """Digest of the data files, comparable with `Manifest.digest`; None if there are none."""
        parts = self.parts(place)
        if not parts or not all(path.is_file() and not path.is_symlink() for path in parts.values()):
            return None
        return content_digest({name: digest_file(path) for name, path in parts.items()})

    def place(self, new: Path) -> None:
        """Move an assembled result from its hidden name to the path, which must be free. RunError if it is not."""
        try:
            if self.single:
                if not link_file(new, self.path):
                    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
                new.unlink()
            else:
                os.rename(new, self.path)
        except OSError as error:
            raise RunError(f"cannot move the result to {self.path}: {error.strerror}") from error
        sync_folder(self.path.parent)

    def set_aside(self, run: str) -> None:
        """Move what is at the path to hidden siblings, a file's manifest first: never a manifest without its data."""
        for path in (self.manifest, self.path) if self.single else (self.path,):
            if path.exists():
                move(path, self.hidden(run, "old"))

    def clean(self, run: str) -> None:
        """Remove the hidden siblings of a run."""
        for path in [*self.siblings(run, "new"), *self.siblings(run, "old")]:
            remove(path)


def remove(path: Path) -> None:
    """Remove a file or a folder."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
