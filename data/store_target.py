"""A place on an object store where a result is published: content-named parts, then the manifest.

A store renames nothing, so nothing is moved into place. Each part has its digest in its name: two attempts that write
one name write the same bytes, and the parts of a new result lie beside those of the one that it replaces without
touching them. The manifest is the one name that changes. It is put on the condition that there is none, or that it is
still the one that this run may replace; the store decides that for all drivers alike, so that a reader who goes by the
manifest sees the one result or the other, and nothing between. What was replaced is deleted afterwards.

The result is assembled in the run folder, on a local disk, and its parts are sent from there. Objects that are no part
of a result are never deleted, with `--fresh` neither.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, Literal, cast

from data.bucket import Bucket, Expired, Missing, Refused, StoreError, Unanswered
from data.durable import make_folder, sync_folder, write_file
from data.errors import InputError, RunError
from data.lease import leased
from data.manifest import Manifest, PartFile, content_digest
from data.run_folder import RunFolder
from data.staged import staged_digest, staged_sizes
from data.target import Format, remove

UPLOADS = 4
"""Parts that are sent at once."""

_PART = re.compile(r"part-\d{5,}-[0-9a-f]{16}\.(parquet|jsonl)")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")


@dataclass(frozen=True, slots=True)
class StoreTarget:
    """An output URL that is a folder of parts. `run` is needed to publish, and not to read."""

    bucket: Bucket
    prefix: str
    """Without slashes at its ends."""
    run: RunFolder | None = None

    single = False
    content_named = True

    @classmethod
    def at(cls, url: str, run: RunFolder | None = None) -> StoreTarget:
        """InputError for a URL of another scheme, or without a bucket or prefix."""
        scheme, _, rest = url.partition("://")
        bucket, _, prefix = rest.partition("/")
        prefix = prefix.strip("/")
        if scheme not in ("s3", "s3a"):
            raise InputError(f"output.path has the scheme {scheme}://; a result is published to a local path or s3://")
        if not _BUCKET.fullmatch(bucket):  # not repeated: keys are sometimes written there
            raise InputError("output.path names no bucket: write s3://BUCKET/PREFIX, and credentials nowhere in it")
        if not prefix or re.search(r"[*?\[\]#]|//|(^|/)[._]", prefix):
            raise InputError(f"output.path {url} needs a prefix of its own, of plain names: s3://BUCKET/PREFIX")
        return cls(Bucket(bucket), prefix, run)

    @property
    def name(self) -> str:
        return self.bucket.url(self.prefix)

    @property
    def manifest_name(self) -> str:
        return self.bucket.url(self._manifest)

    @property
    def _manifest(self) -> str:
        return self._key("_manifest.json")

    @property
    def _lease(self) -> str:
        return self._key("_lease.json")

    def _key(self, name: str) -> str:
        """The key of an object that belongs to the output."""
        return f"{self.prefix}/{name}"

    def format(self, of_folder: Format) -> Format:
        """The format of its files, which is the setting for folders."""
        return of_folder

    def lock(self) -> AbstractContextManager[None]:
        """Exclude other drivers that publish here; Held if there is one."""
        return leased(self.bucket, self._lease, self._owner, f"the output {self.name}")

    @property
    def _owner(self) -> str:
        """What tells this run folder from every other one, of the same run too."""
        run = self._run
        path = run.path / "owner"
        write_file(run.tmp, path, lambda file: file.write(secrets.token_hex(16).encode()))
        return hashlib.sha256(path.read_bytes()).hexdigest()[:32]

    def preflight(self) -> None:
        """Prove with a probe that the store keeps the conditions of a put, and delete those that a crash has left.

        A store that ignores them would let two runs replace each other's manifest. The caller holds the run's lock.

        Raises:
            InputError: it ignores them, or refuses its use. Unanswered, Expired: another try may find it in order.
        """
        probe = self._key(f"_probe-{self._owner[:16]}-")
        key = f"{probe}{secrets.token_hex(4)}"
        try:
            for name in self.bucket.list_folder(probe):
                self.bucket.delete(f"{probe}{name}")
            etag = self.bucket.put(key, b"probe")
            try:
                kept = self._refuses(key) and self._refuses(key, '"0123456789abcdef0123456789abcdef"')
                self.bucket.put(key, b"replaced", replaces=etag)
            finally:
                self.bucket.delete(key)
        except (Unanswered, Expired):
            raise
        except StoreError as error:
            raise InputError(f"output.path {self.name} cannot be used: {error}") from error
        if not kept:
            raise InputError(f"output.path {self.name}: the store ignores the conditions of a put (If-None-Match)")

    def _refuses(self, key: str, etag: str | None = None) -> bool:
        try:
            self.bucket.put(key, secrets.token_bytes(16), replaces=etag)
        except Refused:
            return True
        return False

    # What is there.

    def sizes(self, place: Path | None = None) -> dict[str, int | None]:
        """Bytes of the data files here, or of those assembled at `place`; None for what is no file."""
        if place is not None:
            return staged_sizes(place)
        found = self.bucket.list_folder(self._key(""))
        return {name: size for name, size in sorted(found.items()) if name[0] not in "._"}

    @property
    def occupied(self) -> bool:
        """Whether there is a manifest or anything like data."""
        return bool(self.sizes()) or self.manifest_digest() is not None

    def foreign(self) -> list[str]:
        """Objects that are no part of any result, which nothing here may delete."""
        return [self.path_of(name) for name in self.sizes() if not _PART.fullmatch(name)]

    def read_manifest(self) -> Manifest | None:
        """The manifest, or None where there is none. RunError if it is damaged."""
        try:
            return Manifest.from_bytes(self.bucket.read(self._manifest)[0], self.manifest_name)
        except Missing:
            return None

    def manifest_digest(self) -> str | None:
        """SHA-256 of the manifest's bytes, None where there is none."""
        try:
            return hashlib.sha256(self.bucket.read(self._manifest)[0]).hexdigest()
        except Missing:
            return None

    def path_of(self, name: str) -> str:
        """A data file's URL."""
        return self.bucket.url(self._key(name))

    def sha256(self, name: str, *, read: bool = False) -> str:
        """SHA-256 of a data file: the store's own, or with `read` and where it has none, of the bytes as they come."""
        return self.bucket.digest(self._key(name), read=read)

    def digest(self, place: Path | None = None) -> str | None:
        """Digest of the data files, comparable with `Manifest.digest`; None if there are none."""
        if place is not None:
            return staged_digest(place)
        sizes = self.sizes()
        return None if not sizes or None in sizes.values() else content_digest({n: self.sha256(n) for n in sizes})

    def open(self, name: str) -> BinaryIO:
        """A data file to read, of which only the ranges that are asked for are fetched."""
        from data.sources import open_filesystem

        filesystem, path = open_filesystem(self.path_of(name))
        return cast(BinaryIO, filesystem.open(path, "rb"))

    # How a result comes to be there.

    def hidden(self, role: Literal["new", "old"]) -> Path:
        """A fresh folder of the run, to assemble a result in."""
        make_folder(self._staging, 0o700)
        return self._staging / f"{role}-{secrets.token_hex(4)}"

    def siblings(self, role: Literal["new", "old"]) -> list[Path]:
        """The folders of `hidden` that exist."""
        return sorted(self._staging.glob(f"{role}-*"))

    def named(self, place: Path, files: tuple[PartFile, ...]) -> tuple[PartFile, ...]:
        """Give the assembled parts their published names, which hold their digests."""
        renamed = []
        for file in files:
            stem, dot, suffix = file.name.partition(".")
            name = f"{stem}-{file.sha256[:16]}{dot}{suffix}"
            (place / file.name).rename(place / name)
            renamed.append(replace(file, name=name))
        sync_folder(place)
        return tuple(renamed)

    def put(self, place: Path, manifest: Manifest, replaced: str | None, /) -> None:
        """Send the parts assembled at `place`, those that are not there yet, then the manifest."""
        present = self.sizes()
        with ThreadPoolExecutor(UPLOADS, thread_name_prefix="upload") as pool:
            sent = [pool.submit(self._send, place, file, present) for file in manifest.files]
            try:
                for upload in sent:
                    upload.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        self.write_manifest(manifest, replaced)

    def _send(self, place: Path, file: PartFile, present: Collection[str]) -> None:
        key = self._key(file.name)
        if file.name not in present:
            self.bucket.put_file(key, place / file.name, file.sha256)
        elif self.bucket.digest(key) != file.sha256:
            raise RunError(f"{self.path_of(file.name)} holds other content than its name says: delete it and run again")

    def write_manifest(self, manifest: Manifest, replaced: str | None, /) -> None:
        """Put the manifest if there is none, or still the one whose bytes have the digest `replaced`.

        RunError: another one is there, and stays.
        """
        etag = None
        if replaced is not None:
            try:
                content, etag = self.bucket.read(self._manifest)
            except Missing:
                raise RunError(f"{self.manifest_name} was deleted meanwhile; run again") from None
            if hashlib.sha256(content).hexdigest() != replaced:
                raise RunError(f"{self.manifest_name} was replaced by another run meanwhile; it stays as it is")
        try:
            self.bucket.put(self._manifest, manifest.to_bytes(), replaces=etag)
        except Refused as error:
            raise RunError(f"{self.manifest_name} was written by another run meanwhile; it stays as it is") from error

    def sync_manifest(self) -> None:
        """Nothing: what a store shows is durable."""

    def restore(self, place: Path, /) -> None:
        """Nothing: what is replaced in a bucket lies beside the new parts, and is never moved."""

    def restore_manifest(self) -> Manifest | None:
        """None: a manifest in a bucket is replaced or deleted, and never moved."""
        return None

    def drop(self, names: Collection[str]) -> None:
        """Delete parts that belong to no result any more."""
        for name in self.sizes():
            if name in names:
                self.bucket.delete(self._key(name))

    def clean(self) -> None:
        """Remove what was assembled."""
        for path in self._staging.glob("*"):
            remove(path)

    @property
    def _run(self) -> RunFolder:
        assert self.run is not None, "publishing needs the run's folder"
        return self.run

    @property
    def _staging(self) -> Path:
        return self._run.path / "staged"
