"""Processes that say something and then do not go on."""

from __future__ import annotations

import os
import signal
import sys
import time

from engine.child import Mailbox


def dying(mailbox: Mailbox) -> None:
    """Ends with an error."""
    mailbox.send({"rows": 1})
    sys.exit("the disk is on fire")


def stopped(mailbox: Mailbox) -> None:
    """Stops as a debugger would stop it."""
    mailbox.send({"rows": 1})
    os.kill(os.getpid(), signal.SIGSTOP)


def idle(mailbox: Mailbox) -> None:
    """Lives, and does nothing."""
    mailbox.send({"rows": 1})
    time.sleep(600)


def loading(mailbox: Mailbox) -> None:
    """Needs longer for its start than it may be silent afterwards."""
    time.sleep(6)
    mailbox.send({"ready": True})
    mailbox.send({"done": True})


def diligent(mailbox: Mailbox) -> None:
    """Needs longer than the others may be silent, and says so."""
    for row in range(6):
        time.sleep(0.5)
        mailbox.send({"rows": row})
    mailbox.send({"done": True})
