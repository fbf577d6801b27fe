"""One object on an object store as the whole result: put under its own name, then the manifest beside it.

Its users ask for that name, so it holds no digest, and a store replaces nothing together with something else. As on a
local disk there is a moment without a result while one is replaced: the old manifest is deleted, the object put in
place of the old one, the new manifest put. Each step has a condition: that nothing is there, or what this run may
replace. A driver that was cut off finds by the digest which of its results is there, and takes the steps that are
missing. Another object of that name stays, and so does another manifest.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from data import publications
from data.bucket import Missing
from data.durable import make_folder
from data.errors import RunError
from data.manifest import Manifest, PartFile, content_digest
from data.staged import staged_digest, staged_sizes
from data.store_target import StoreTarget
from data.target import Format

LARGEST_BYTES = 5 << 30
"""Of one put; parts of a folder are smaller."""


@dataclass(frozen=True, slots=True)
class StoreFile(StoreTarget):
    """An output URL that ends in `.parquet` or `.jsonl`; `prefix` is the key of the object."""

    single = True
    content_named = False

    @property
    def _path(self) -> PurePosixPath:
        return PurePosixPath(self.prefix)

    @property
    def _manifest(self) -> str:
        return self._key(f"_{self._path.name}.manifest.json")

    @property
    def _lease(self) -> str:
        return self._key(f"_{self._path.name}.lease.json")

    def _key(self, name: str) -> str:
        return str(self._path.with_name(name))

    def format(self, of_folder: Format) -> Format:  # noqa: ARG002 - the name decides
        """The format that its name says."""
        return "jsonl" if self._path.suffix == ".jsonl" else "parquet"

    def sizes(self, place: Path | None = None) -> dict[str, int | None]:
        """Bytes of the object, or of the file assembled at `place`, by its name; empty if there is none."""
        if place is not None:
            return staged_sizes(place, self._path.name)
        try:
            return {self._path.name: self.bucket.stored(self.prefix).size}
        except Missing:
            return {}

    def foreign(self) -> list[str]:
        """The object, if no manifest says that it is a result, and none did before this run began to replace it."""
        if not self.sizes() or self.manifest_digest() is not None:
            return []
        ours = self.run is not None and self._begun(self.bucket.stored(self.prefix).etag)
        return [] if ours else [self.name]

    def _begun(self, etag: str) -> bool:
        """Whether this run has deleted the manifest of the object with this etag, to replace it."""
        return publications.being_replaced(self._run, self) == etag

    def digest(self, place: Path | None = None) -> str | None:
        """Digest of the object, comparable with `Manifest.digest`; None if there is none."""
        if place is not None:
            return staged_digest(place, self._path.name)
        return content_digest({self._path.name: self.sha256(self._path.name)}) if self.sizes() else None

    def hidden(self, role: Literal["new", "old"]) -> Path:
        """A fresh name in the run's folder, to assemble the file under."""
        make_folder(self._staging, 0o700)
        return self._staging / f"{role}-{secrets.token_hex(4)}{self._path.suffix}"

    def named(self, _place: Path, files: tuple[PartFile, ...]) -> tuple[PartFile, ...]:
        """The file under its published name, which it has already."""
        return files

    def put(self, place: Path, manifest: Manifest, replaced: str | None, /) -> None:
        """Send the file assembled at `place`, unless it is there, then the manifest.

        RunError: something is there that is not to be replaced, and stays; or the file is too large for a store.
        """
        (file,) = manifest.files
        if file.bytes > LARGEST_BYTES:
            raise RunError(
                f"{self.name} would have {file.bytes:,} bytes, and an object of one put has 5 GiB at most: set "
                "output.path to a prefix, s3://BUCKET/PREFIX, which gets parts; nothing is computed again"
            )
        try:
            there = self.bucket.stored(self.prefix)
        except Missing:
            self.bucket.put_file(self.prefix, place, file.sha256)
        else:
            if self.bucket.digest(self.prefix) != file.sha256:
                self._withdraw_manifest(replaced, there.etag)
                self.bucket.put_file(self.prefix, place, file.sha256, replaces=there.etag)
                replaced = None
        self.write_manifest(manifest, replaced)

    def _withdraw_manifest(self, replaced: str | None, version: str) -> None:
        """Delete the manifest with the digest `replaced`, of the object with the etag `version`.

        RunError: another manifest is there, or none although this run has deleted none of this object.
        """
        try:
            content, etag = self.bucket.read(self._manifest)
        except Missing:
            if self._begun(version):
                return
            raise RunError(f"{self.name} was written by another run meanwhile; it stays as it is") from None
        if hashlib.sha256(content).hexdigest() != replaced:
            raise RunError(f"{self.manifest_name} was replaced by another run meanwhile; it stays as it is")
        publications.replacing(self._run, self, version)
        self.bucket.delete(self._manifest, etag=etag)

    def drop(self, names: Collection[str]) -> None:
        """Nothing: what was replaced is gone with its name."""
