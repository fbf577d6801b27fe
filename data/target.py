"""The place on the local disk where a result is published, a folder or one file: its names, and what is there now."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Collection
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Literal

from data import publications
from data.durable import digest_file, link_file, move, sync_folder, write_file
from data.errors import InputError, RunError
from data.lock import locked
from data.manifest import Manifest, PartFile
from data.run_folder import RunFolder, preflight
from data.staged import staged_digest, staged_sizes

Format = Literal["parquet", "jsonl"]
_PART = re.compile(r"part-\d{5,}\.(parquet|jsonl)")
_MANIFEST = ".manifest"
"""The suffix of a file's manifest that was set aside."""


@dataclass(frozen=True, slots=True)
class Target:
    """An output path. A `.parquet` or `.jsonl` name is one file, any other name a folder of parts."""

    path: Path
    run: RunFolder | None = field(default=None, compare=False)

    content_named = False

    @classmethod
    def at(cls, path: Path | str, run: RunFolder | None = None) -> Target:
        """InputError for a URL, an empty path, or something at the path that is of the other sort."""
        if not str(path) or "://" in str(path):
            raise InputError(f"output.path {str(path)!r} is not a local path; set it to a folder or a file")
        target = cls(Path(os.path.abspath(path)), run)
        if target.path.exists() and target.path.is_dir() == target.single:
            found = "a folder" if target.single else "a file"
            raise InputError(f"output.path {target.path} is {found}; set it to another name")
        return target

    @property
    def name(self) -> str:
        return str(self.path)

    @property
    def manifest_name(self) -> str:
        return str(self.manifest)

    @property
    def single(self) -> bool:
        """Whether it is one file."""
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

    def preflight(self) -> None:
        """Prove with probes that a result of the run can be written here (`run_folder.preflight`).

        What is there is made durable: who wrote the manifest may have been killed before it had seen to its name.
        """
        preflight(self._run, self.path)
        if self.path.is_dir():
            sync_folder(self.path)

    def hidden(self, role: Literal["new", "old"]) -> Path:
        """A fresh name beside the path for the run's new result, or for the one that it replaces."""
        return self.path.with_name(f".{self.path.name}.{self._run.id}.{role}-{secrets.token_hex(4)}{self._suffix}")

    def siblings(self, role: Literal["new", "old"]) -> list[Path]:
        """The hidden names of `hidden` that exist."""
        start = f".{self.path.name}.{self._run.id}.{role}-"
        with os.scandir(self.path.parent) as entries:
            return sorted(Path(entry.path) for entry in entries if entry.name.startswith(start))

    @property
    def _run(self) -> RunFolder:
        assert self.run is not None, "publishing needs the run's folder"
        return self.run

    @property
    def _single_name(self) -> str | None:
        return self.path.name if self.single else None

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

    def manifest_digest(self) -> str | None:
        """SHA-256 of the manifest's bytes, None where there is none."""
        try:
            return hashlib.sha256(self.manifest.read_bytes()).hexdigest()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def sizes(self, place: Path | None = None) -> dict[str, int | None]:
        """Bytes of the data files here or in a hidden sibling, by their published names; None for what is no file."""
        return staged_sizes(place or self.path, self._single_name)

    def digest(self, place: Path | None = None) -> str | None:
        """Digest of the data files, comparable with `Manifest.digest`; None if there are none."""
        return staged_digest(place or self.path, self._single_name)

    def foreign(self) -> list[str]:
        """What is no part of a result, so that `--fresh` may not replace it: files of a user who named the wrong place.

        A single file is one of a result if its manifest lies beside it.
        """
        if self.single:
            return [self.path.name] if self.path.exists() and not self.manifest.exists() else []
        if not self.path.is_dir():
            return []
        with os.scandir(self.path) as entries:
            return sorted(entry.name for entry in entries if not self._ours(entry))

    def _ours(self, entry: os.DirEntry[str]) -> bool:
        named = entry.name == self.manifest.name or _PART.fullmatch(entry.name) is not None
        return named and entry.is_file(follow_symlinks=False)

    def path_of(self, name: str) -> str:
        """A data file's path."""
        return str(self.path if self.single else self.path / name)

    def sha256(self, name: str, *, read: bool = False) -> str:  # noqa: ARG002 - a disk has no word but the bytes
        """SHA-256 of a data file's bytes."""
        return digest_file(Path(self.path_of(name)))

    def open(self, name: str) -> BinaryIO:
        """A data file to read."""
        return open(self.path_of(name), "rb")

    def named(self, _place: Path, files: tuple[PartFile, ...]) -> tuple[PartFile, ...]:
        """The assembled files under their published names, which they have already."""
        return files

    def put(self, place: Path, manifest: Manifest, replaced: str | None, /) -> None:
        """Move what is here aside, the assembled result into place, and write its manifest.

        RunError: what is here is not what this run may replace, a manifest with the digest `replaced`, and stays.
        """
        seen = self.manifest_digest()
        bare = seen is None and self.occupied
        if seen != replaced or (bare and not publications.permitted(self._run, self, None)):
            raise RunError(f"{self.path} was written by another run meanwhile; it stays as it is")
        if self.occupied:
            self.set_aside()
        self.place(place)
        self.write_manifest(manifest, replaced)

    def write_manifest(self, manifest: Manifest, _replaced: str | None, /) -> None:
        """Write the manifest beside the files in place; one that is there must be the same."""
        sync_folder(self.path.parent)
        content = manifest.to_bytes()
        write_file(self._run.tmp, self.manifest, lambda file: file.write(content), same=True, mode=0o666)

    def sync_manifest(self) -> None:
        """Make the name of the manifest durable: who wrote it may have died before that."""
        sync_folder(self.manifest.parent)

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

    def set_aside(self) -> None:
        """Move what is at the path to hidden siblings, a file's manifest first: never a manifest without its data."""
        if self.single and self.manifest.exists():
            move(self.manifest, self.hidden("old").with_suffix(_MANIFEST))
        if self.path.exists():
            move(self.path, self.hidden("old"))

    def restore(self, place: Path, /) -> None:
        """Move data that were set aside back to the path, which must be free."""
        self.place(place)

    def restore_manifest(self) -> Manifest | None:
        """Give the file at the path its manifest back, if this run was cut off when that alone had been set aside."""
        for aside in self.siblings("old"):
            if aside.suffix == _MANIFEST and self._told_by(aside):
                link_file(aside, self.manifest)
                aside.unlink()
                return self.read_manifest()
        return None

    def _told_by(self, aside: Path) -> bool:
        try:
            manifest = Manifest.from_bytes(aside.read_bytes(), str(aside))
        except RunError:  # it was damaged before it was set aside
            return False
        sizes = {file.name: file.bytes for file in manifest.files}
        return sizes == self.sizes() and manifest.digest == self.digest()

    def drop(self, names: Collection[str]) -> None:
        """Nothing: what was replaced is in a hidden sibling, whole."""

    def clean(self) -> None:
        """Remove the run's hidden siblings."""
        for path in [*self.siblings("new"), *self.siblings("old")]:
            remove(path)


def remove(path: Path) -> None:
    """Remove a file or a folder."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
