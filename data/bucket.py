"""An S3 bucket as the publish protocol needs it: conditional puts, checksums, and errors that say what to do.

boto3 does the work: it streams a file from disk, signs with whatever credentials the machine has, and repeats what
failed on the way (500, 503, time-outs, lost connections) with a growing delay that is capped. A put that is repeated
may meet its own earlier success, so that a refused or unanswered one is judged by what the store then holds. Nothing
here is repeated beyond that: the error names the object, and the same command run again goes on.

Credentials are never passed in: boto3 reads them from the environment, and no message holds any.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from functools import cache, cached_property
from pathlib import Path
from typing import Any, BinaryIO

from data.errors import InputError, RunError

ATTEMPTS = 6
"""Tries of one request, unless AWS_MAX_ATTEMPTS says otherwise. The delays between them double up to 20 s."""

CONNECT_SECONDS = 10
ANSWER_SECONDS = 60

_EXPIRED = {"ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired"}
_FORBIDDEN = {"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "401", "403", "Forbidden"}


class StoreError(RunError):
    """An object store did not do what was asked of it."""


class Missing(StoreError):
    """The object, or its bucket, is not there."""


class Refused(StoreError):
    """A conditional put found something else than its condition."""


class Unanswered(StoreError):
    """Every try failed on the way or in the store: what was asked may have been done all the same."""


class Expired(StoreError):
    """The credentials were good and are no more."""


@dataclass(frozen=True, slots=True)
class Stored:
    """An object as the store describes it. `age` is in seconds, by the store's own clock."""

    size: int
    etag: str
    sha256: str | None
    """As the store computed it, None where it does not."""
    age: float


@dataclass(frozen=True)
class Bucket:
    """A bucket by name. Making one asks nothing of the store."""

    name: str

    @cached_property
    def _client(self) -> Any:
        try:
            import boto3
            import botocore.session
            from botocore.config import Config
            from botocore.exceptions import BotoCoreError
        except ImportError as error:
            raise InputError(f"s3://{self.name} needs boto3: pip install 'overnight[s3]'") from error
        config = Config(
            connect_timeout=CONNECT_SECONDS,
            read_timeout=ANSWER_SECONDS,
            retries={"mode": "standard", "total_max_attempts": _attempts()},
            request_checksum_calculation="when_required",  # each put brings a SHA-256 of its own,
            response_checksum_validation="when_required",  # and what is read is compared with the manifest's
        )
        try:
            session = botocore.session.Session()  # its own, with the credentials that there are now
            session.register_component("data_loader", _descriptions())
            return boto3.session.Session(botocore_session=session).client("s3", config=config)
        except (BotoCoreError, ValueError) as error:
            raise StoreError(f"s3://{self.name} cannot be reached: {error}") from error

    def url(self, key: str) -> str:
        return f"s3://{self.name}/{key}"

    def list_folder(self, prefix: str) -> dict[str, int | None]:
        """Sizes of the objects whose keys begin with a prefix, by the rest; None for a folder, named with a slash."""
        found: dict[str, int | None] = {}
        with self._explained(prefix):
            pages = self._client.get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=self.name, Prefix=prefix, Delimiter="/"):
                found |= {entry["Prefix"][len(prefix) :]: None for entry in page.get("CommonPrefixes", ())}
                found |= {entry["Key"][len(prefix) :]: int(entry["Size"]) for entry in page.get("Contents", ())}
        found.pop("", None)  # what consoles put there to show a folder
        return found

    def stored(self, key: str) -> Stored:
        """Raises Missing if there is no such object."""
        with self._explained(key):
            head = self._client.head_object(Bucket=self.name, Key=key, ChecksumMode="ENABLED")
        headers = head["ResponseMetadata"]["HTTPHeaders"]
        now = parsedate_to_datetime(headers["date"]) if "date" in headers else datetime.now(head["LastModified"].tzinfo)
        age = (now - head["LastModified"]).total_seconds()
        return Stored(int(head["ContentLength"]), head["ETag"], _hex(head.get("ChecksumSHA256")), age)

    def read(self, key: str) -> tuple[bytes, str]:
        """The bytes of a small object, and its etag. Raises Missing."""
        with self._explained(key):
            answer = self._client.get_object(Bucket=self.name, Key=key)
            return answer["Body"].read(), answer["ETag"]

    def digest(self, key: str, *, read: bool = False) -> str:
        """SHA-256 of an object, by the store's word where it has computed one and not `read`; else from its bytes."""
        told = None if read else self.stored(key).sha256
        if told is not None:
            return told
        from boto3.s3.transfer import TransferConfig

        sink = _Digest()
        with self._explained(key):
            self._client.download_fileobj(self.name, key, sink, Config=TransferConfig(use_threads=False))
        return sink.sha256.hexdigest()

    def put(self, key: str, content: bytes, *, replaces: str | None = None) -> str:
        """Write a small object that must not exist, or must still have the etag `replaces`; returns the new etag.

        Raises:
            Refused: there is something else, which stays. Unanswered: nobody knows.
        """
        sha256 = hashlib.sha256(content).hexdigest()
        try:
            return self._put(key, content, sha256, replaces)
        except (Refused, Unanswered) as error:
            try:
                found, etag = self.read(key)
            except Missing:
                raise error from None
            if found != content:
                raise
            return etag

    def put_file(self, key: str, path: Path, sha256: str, *, replaces: str | None = None) -> None:
        """Write an object from a file, unless it is there already, and make sure that the store has these bytes.

        With `replaces`, in place of the object that still has that etag.

        Raises:
            Refused: the object is there with other content, or was stored with it. Unanswered: it is not there.
        """
        try:
            with path.open("rb") as file:
                self._put(key, file, sha256, replaces)
        except (Refused, Unanswered) as error:
            try:
                found = self.stored(key)
            except Missing:
                raise error from None
            if found.etag == replaces:
                raise
        if self.digest(key) != sha256:
            raise Refused(f"{self.url(key)} holds other content than was written: delete it, and run again")

    def delete(self, key: str, *, etag: str | None = None) -> None:
        """Delete an object if it is there; with `etag`, only that version of it where the store can tell."""
        with self._explained(key):
            condition = {"IfMatch": etag} if etag else {}
            self._client.delete_object(Bucket=self.name, Key=key, **condition)

    def _put(self, key: str, body: bytes | BinaryIO, sha256: str, replaces: str | None) -> str:
        condition = {"IfMatch": replaces} if replaces else {"IfNoneMatch": "*"}
        checksum = base64.b64encode(bytes.fromhex(sha256)).decode()
        with self._explained(key, put=True):
            answer = self._client.put_object(
                Bucket=self.name, Key=key, Body=body, ChecksumSHA256=checksum, ChecksumAlgorithm="SHA256", **condition
            )
        return str(answer["ETag"])

    @contextmanager
    def _explained(self, key: str, *, put: bool = False) -> Iterator[None]:
        """Turn what boto3 raises into a StoreError about this object."""
        _ = self._client  # says what to install, before anything else of it is imported
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError
        from botocore.exceptions import ConnectionError as Unreachable

        url = self.url(key)
        try:
            yield
        except ClientError as error:
            raise _explain(url, error.response, put=put) from error
        except (HTTPClientError, Unreachable, Boto3Error) as error:
            raise Unanswered(f"{url}: {error}: run again to resume") from error
        except BotoCoreError as error:  # no credentials, an incomplete configuration
            raise StoreError(f"{url}: {error}") from error


@cache
def _descriptions() -> Any:
    """Amazon's descriptions of its services, which take longer to parse than a request takes."""
    from botocore.loaders import create_loader

    return create_loader()


def _explain(url: str, response: Any, *, put: bool) -> StoreError:
    code = str(response.get("Error", {}).get("Code", ""))
    status = int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    if code in _EXPIRED:
        return Expired(f"{url}: the credentials have expired ({code}): renew them and run again to resume")
    if code in _FORBIDDEN:
        return StoreError(f"{url}: no permission ({code}): check the credentials and run again to resume")
    if status in (409, 412) or (put and status == 404 and code == "NoSuchKey"):
        return Refused(f"{url}: the store refused a conditional put ({code}): somebody else writes there")
    if status == 404:
        return Missing(f"{url} does not exist ({code})")
    if status >= 500:
        return Unanswered(f"{url}: the store keeps failing ({status} {code}): run again to resume")
    return StoreError(f"{url}: the store answered {status} {code}")


def _attempts() -> int:
    given = os.environ.get("AWS_MAX_ATTEMPTS")
    if given is None:
        return ATTEMPTS
    if not given.isdecimal() or int(given) < 1:
        raise InputError(f"AWS_MAX_ATTEMPTS = {given!r} is no number of attempts")
    return int(given)


def _hex(checksum: str | None) -> str | None:
    """A checksum of one whole object; that of a multipart upload ends in the number of parts, and is another thing."""
    return None if checksum is None or "-" in checksum else base64.b64decode(checksum).hex()


class _Digest:
    """A file to download into that keeps the hash alone."""

    def __init__(self) -> None:
        self.sha256 = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        return len(data)
