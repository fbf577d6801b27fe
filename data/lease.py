"""A lease on an object store: what an flock is on a disk, so that two drivers do not prepare to publish in one place.

It is an object with the holder's name that is written again every minute, and is free when it was not for five. The
ages are those of the store's own clock. A driver that died and is started again has the same name, the one of its run
folder, and need not wait. No invariant rests on it: the manifest's conditional put decides who publishes.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from data.bucket import Bucket, Missing, Refused, StoreError
from data.errors import Held

RENEW_SECONDS = 60.0
FREE_SECONDS = 300.0
END_SECONDS = 5.0
"""What giving a lease up may take, first for the renewal under way, then for the deletion."""

logger = logging.getLogger(__name__)


@contextmanager
def leased(bucket: Bucket, key: str, owner: str, what: str) -> Iterator[None]:
    """Hold the lease at `key` for the block. Held, naming `what` and the holder, if another owner has it."""
    etag = _acquire(bucket, key, owner, what)
    renewal = _Renewal(bucket, key, owner, etag)
    renewal.start()
    try:
        yield
    finally:
        renewal.end()


def _acquire(bucket: Bucket, key: str, owner: str, what: str) -> str:
    replaces = None
    try:
        content, etag = bucket.read(key)
        holder, age = json.loads(content), bucket.stored(key).age
        if holder["owner"] != owner and age < FREE_SECONDS:
            raise Held(f"{what} is in use by {holder['holder']}, or was {age:.0f} s ago; it is free after 300 s")
        replaces = etag
    except Missing:
        pass
    except (ValueError, TypeError, KeyError):
        raise Held(f"{what} has a damaged lease: delete {bucket.url(key)} if no other run publishes there") from None
    try:
        return bucket.put(key, _content(owner), replaces=replaces)
    except Refused as error:
        raise Held(f"{what} was just taken by another driver") from error


def _content(owner: str) -> bytes:
    # Different each time, so that who wrote it knows its own from another's.
    holder = f"process {os.getpid()} on {socket.gethostname()}"
    return json.dumps({"owner": owner, "holder": holder, "token": secrets.token_hex(8)}).encode()


class _Renewal(threading.Thread):
    """Writes the lease again until it ends; a lease that was lost or cannot be written is left alone."""

    def __init__(self, bucket: Bucket, key: str, owner: str, etag: str) -> None:
        super().__init__(name="lease", daemon=True)
        self._bucket, self._key, self._owner, self._etag = bucket, key, owner, etag
        self._ended = threading.Event()
        self._lost = False

    def run(self) -> None:
        while not self._ended.wait(RENEW_SECONDS):
            try:
                self._etag = self._bucket.put(self._key, _content(self._owner), replaces=self._etag)
            except Refused:
                logger.warning("%s was taken by another driver", self._bucket.url(self._key))
                self._lost = True
                return
            except StoreError as error:  # the next one may succeed, and publishing will tell
                logger.warning("the lease was not renewed: %s", error)

    def end(self) -> None:
        """Give the lease up, if it is still this one.

        A store that does not answer is not waited for: the lease is free after a while, and whoever ends the run, with
        Ctrl-C perhaps, wants it to end.
        """
        self._ended.set()
        self.join(END_SECONDS)
        if self.is_alive():
            logger.warning("the lease was not given up: the store does not answer")
        elif not self._lost:
            deletion = threading.Thread(target=self._delete, name="lease's end", daemon=True)
            deletion.start()
            deletion.join(END_SECONDS)
            if deletion.is_alive():
                logger.warning("the lease was not given up in time")

    def _delete(self) -> None:
        try:
            self._bucket.delete(self._key, etag=self._etag)
        except StoreError as error:  # what the run has to say is more important
            logger.warning("the lease was not given up: %s", error)
