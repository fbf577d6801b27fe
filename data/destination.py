"""Where a result is published and read: a place on the local disk or on an object store, behind one set of names."""

from __future__ import annotations

import os
from collections.abc import Collection
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO, Literal, Protocol

from data.manifest import Manifest, PartFile
from data.run_folder import RunFolder
from data.store_file import StoreFile
from data.store_target import StoreTarget
from data.target import Format, Target


class Destination(Protocol):
    """What `Target` does for paths, `StoreTarget` and `StoreFile` for URLs; their docstrings say how."""

    @property
    def name(self) -> str:
        """The absolute path, or the URL."""

    @property
    def manifest_name(self) -> str:
        """The manifest's path or URL."""

    @property
    def single(self) -> bool:
        """Whether the result is one file."""

    @property
    def content_named(self) -> bool:
        """Whether files are named by their bytes, so that parts of several results may lie side by side."""

    def format(self, of_folder: Format) -> Format: ...
    def lock(self) -> AbstractContextManager[None]: ...
    def preflight(self) -> None: ...

    @property
    def occupied(self) -> bool: ...
    def foreign(self) -> list[str]: ...
    def sizes(self, place: Path | None = None) -> dict[str, int | None]: ...
    def read_manifest(self) -> Manifest | None: ...
    def manifest_digest(self) -> str | None: ...
    def path_of(self, name: str) -> str: ...
    def sha256(self, name: str, *, read: bool = False) -> str: ...
    def digest(self, place: Path | None = None) -> str | None: ...
    def open(self, name: str) -> BinaryIO: ...

    def hidden(self, role: Literal["new", "old"], /) -> Path: ...
    def siblings(self, role: Literal["new", "old"], /) -> list[Path]: ...
    def named(self, place: Path, files: tuple[PartFile, ...], /) -> tuple[PartFile, ...]: ...
    def put(self, place: Path, manifest: Manifest, replaced: str | None, /) -> None: ...
    def write_manifest(self, manifest: Manifest, replaced: str | None, /) -> None: ...
    def sync_manifest(self) -> None: ...
    def restore(self, place: Path, /) -> None: ...
    def restore_manifest(self) -> Manifest | None: ...
    def drop(self, names: Collection[str], /) -> None: ...
    def clean(self) -> None: ...


def destination(path: Path | str, run: RunFolder | None = None) -> Destination:
    """The place at a path or URL. `run` is needed to publish there. InputError if nothing can be published there."""
    if not is_url(path):
        return Target.at(path, run)
    url = str(path)
    return (StoreFile if url.rstrip("/").endswith((".parquet", ".jsonl")) else StoreTarget).at(url, run)


def destination_name(path: str) -> str:
    """How messages and records name it, whatever is there."""
    return path if is_url(path) else os.path.abspath(path)


def is_url(path: Path | str) -> bool:
    return "://" in str(path)
