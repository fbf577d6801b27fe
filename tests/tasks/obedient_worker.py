"""A worker process for tests of the pool: it does what the shard it is given says."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time

from engine.child import Mailbox


def main(mailbox: Mailbox) -> None:
    """Answer each message by its `do`."""
    mailbox.send({"event": "ready", "pid": os.getpid()})
    hoard: list[bytes] = []
    while True:
        message = mailbox.receive(wait=True)
        assert message is not None
        if message["do"] == "die":
            time.sleep(message.get("seconds", 0))
            print("about to die", flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        if message["do"] == "hang":
            time.sleep(1000)
        if message["do"] == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        if message["do"] == "hold":
            ctypes.PyDLL(None).sleep(1000)  # and no other thread can run
        if message["do"] == "leak":
            hoard.append(b"x" * (1 << 20))
        if message["do"] == "twice":
            mailbox.send({"event": "done", "shard": message["id"], "pid": os.getpid(), "seconds": 0})
        if message["do"] == "fail":
            mailbox.send({"event": "failed", "shard": message["id"], "message": "disk full"})
            continue
        time.sleep(message.get("seconds", 0))
        seconds = message.get("seconds", 0)
        mailbox.send({"event": "done", "shard": message["id"], "pid": os.getpid(), "seconds": seconds})


def refusing(mailbox: Mailbox) -> None:
    """A worker whose model does not load."""
    mailbox.send({"event": "refused", "message": "no such model"})


def dying(_mailbox: Mailbox) -> None:
    """A worker that never comes up."""
    sys.exit(1)


def doubting(mailbox: Mailbox) -> None:
    """A worker whose canaries disagree with those of the first one, which is worker 0 of the pool."""
    if "OVERNIGHT_FIRST" in os.environ:
        time.sleep(float(os.environ.get("OVERNIGHT_LATE", "0")))
        main(mailbox)
    time.sleep(0.5)
    certain = "OVERNIGHT_CERTAIN" in os.environ
    mailbox.send({"event": "refused", "message": "other answers", "canary": True, "certain": certain})
