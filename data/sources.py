"""The files behind `input.path`: a file, a folder, a glob or an fsspec URL, listed in one order that never changes.

A folder is read recursively in bytewise order of the relative path. Names that begin with `_` or `.` are skipped (they
are markers and temporary files everywhere in this field) and `k=v` folders become partition columns, as in Hive. A
thing that is not a regular file is refused here, because opening a FIFO would wait for ever. What is inside the files
is left to `data.formats` and the readers.
"""

from __future__ import annotations

import glob
import os
import re
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO, TypeAlias, cast
from urllib.parse import unquote

import fsspec

from data.errors import InputError

Partition: TypeAlias = tuple[tuple[str, str | None], ...]

SCHEMES = ("file", "local", "s3", "s3a", "gs", "gcs", "hf", "az", "abfs", "memory")
"""Only these are opened; http and chained URLs are not, so that a setting cannot reach where nobody meant it to."""

REMEDY = "write or copy it again"
"""What to do about a file that is not whole."""

HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
_MAGIC = re.compile(r"[*?[]")


@dataclass(frozen=True, slots=True)
class Source:
    """One file that exists. `relative` is its path below the folder or the fixed part of the glob."""

    path: str
    relative: str
    size: int
    partition: Partition = ()
    filesystem: Any = field(default=None, compare=False, repr=False)  # None: the local disk

    def open(self) -> BinaryIO:
        """The raw bytes, unbuffered on the local disk. InputError if the file is gone or may not be read."""
        try:
            if self.filesystem is None:
                return cast(BinaryIO, open(self.path, "rb", buffering=0))
            return cast(BinaryIO, self.filesystem.open(self.path, "rb"))
        except failures() as error:
            raise unreadable(self.path, error) from error

    def version(self) -> str | None:
        """What an object store calls this version of the object (version id or etag), None where it has no such thing.

        The local disk and stores without versions are fingerprinted from their bytes instead.
        """
        if self.filesystem is None:
            return None
        try:
            info = self.filesystem.info(self.path)
        except failures() as error:
            raise unreadable(self.path, error) from error
        for key in ("VersionId", "version_id", "generation", "ETag", "etag", "blob_id"):
            if info.get(key):
                return f"{key.lower()}:{str(info[key]).strip(chr(34))}"
        return None

    def stamp(self) -> tuple[int | str | None, ...]:
        """Differs if the file was replaced or appended to: size, mtime and inode, or on a store size and version."""
        try:
            if self.filesystem is not None:
                return int(self.filesystem.info(self.path)["size"] or 0), self.version()
            status = os.stat(self.path)
        except failures() as error:
            raise unreadable(self.path, error) from error
        return status.st_size, status.st_mtime_ns, status.st_ino


def failures() -> tuple[type[Exception], ...]:
    """What reading can raise: OSError, and of a store's client in use what is none (no credentials, no way to it)."""
    botocore = sys.modules.get("botocore.exceptions")
    return (OSError,) if botocore is None else (OSError, botocore.BotoCoreError)


def unreadable(path: str, error: Exception) -> InputError:
    """The one-line error for a file that the system does not let us read."""
    if isinstance(error, FileNotFoundError):
        return InputError(f"{path} does not exist")
    if isinstance(error, PermissionError):
        return InputError(f"no permission to read {path}")
    return InputError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}")


def list_sources(path: str) -> tuple[Source, ...]:
    """The files of `path` in order. InputError if there are none, or one that cannot be input."""
    if not path:
        raise InputError("input.path is not set: name a file, a folder, a glob or a URL with --input")
    scheme = path.split("://", 1)[0] if "://" in path else ""
    if "::" in path or (scheme and scheme not in SCHEMES):
        raise InputError(f"{path}: only {', '.join(SCHEMES)} URLs are read")
    if scheme in ("", "file", "local"):
        found = list(_local(path[len(scheme) + 3 :] if scheme else path))
    else:
        found = list(_remote(path))
    if not found:
        raise InputError(f"{path} holds no input file (names beginning with _ or . are skipped)")
    for source in found:
        if any("\ud800" <= character <= "\udfff" for character in source.relative):
            raise InputError(f"{source.path}: the name is not UTF-8, so that no message or column could hold it")
    return tuple(sorted(found, key=lambda source: os.fsencode(source.relative)))


def partition_of(relative: str) -> Partition:
    """Hive partition columns from the folders of a relative path: `day=1/part.parquet` gives (("day", "1"),)."""
    pairs: list[tuple[str, str | None]] = []
    for folder in relative.split("/")[:-1]:
        key, equals, value = folder.partition("=")
        if equals and key:
            pairs.append((unquote(key), None if value == HIVE_NULL else unquote(value)))
    names = [name for name, _ in pairs]
    if len(set(names)) != len(names):
        raise InputError(f"{relative}: a partition column occurs twice in the path")
    return tuple(pairs)


def _skipped(relative: str) -> bool:
    return any(part[:1] in ("_", ".") for part in relative.split("/"))


def _local(path: str) -> Iterator[Source]:
    if not os.path.lexists(path) and _MAGIC.search(path):
        root = os.path.dirname(path[: _MAGIC.search(path).start()])  # type: ignore[union-attr]
        for match in glob.glob(path, recursive=True):
            relative = os.path.relpath(match, root or ".")
            if not _skipped(relative):
                yield from _local_below(match, relative)
        return
    try:
        is_folder = stat.S_ISDIR(os.stat(path).st_mode)
    except OSError as error:
        raise unreadable(path, error) from error
    yield from _local_below(path, "" if is_folder else os.path.basename(path))


def _local_below(path: str, relative: str) -> Iterator[Source]:
    """`path` itself, or everything below it. A folder that a glob matched twice (`**`) is listed by its files only."""
    try:
        status = os.stat(path)
        if stat.S_ISREG(status.st_mode):
            yield Source(path, relative, status.st_size, partition_of(relative))
            return
        if not stat.S_ISDIR(status.st_mode):
            raise InputError(f"{path} is not a regular file or folder")
        if relative and os.path.islink(path):
            raise InputError(f"{path} is a symbolic link to a folder: name the folder itself")
        names = os.listdir(path)
    except OSError as error:
        raise unreadable(path, error) from error
    for name in names:
        if name[:1] not in ("_", "."):
            yield from _local_below(os.path.join(path, name), f"{relative}/{name}" if relative else name)


def open_filesystem(url: str) -> tuple[Any, str]:
    """The filesystem of a URL and the path in it. It remembers no listing: what is asked again is looked at again."""
    try:
        filesystem, path = fsspec.core.url_to_fs(url, use_listings_cache=False)
    except ImportError as error:
        raise InputError(f"{url} needs a package that is not installed: {error}") from error
    return filesystem, path


def _remote(url: str) -> Iterator[Source]:
    filesystem, path = open_filesystem(url)
    try:
        if filesystem.isfile(path):
            root, found = path.rsplit("/", 1)[0], {path: filesystem.info(path)}
        elif _MAGIC.search(path):
            root = path[: _MAGIC.search(path).start()].rsplit("/", 1)[0]  # type: ignore[union-attr]
            found = filesystem.glob(path, detail=True)
        else:
            root, found = path.rstrip("/"), filesystem.find(path, detail=True)
    except failures() as error:
        raise unreadable(url, error) from error
    if not found and not filesystem.exists(path):
        raise InputError(f"{url} does not exist")
    for name, info in found.items():
        relative = name[len(root) :].lstrip("/") if root else name
        if info["type"] == "file" and not _skipped(relative):
            yield Source(name, relative, int(info["size"] or 0), partition_of(relative), filesystem)
