"""A driver that takes its turn some times, as a process for tests: `claiming.py FOLDER MARK URGENCY TURNS DEATHS`.

While it has the device it makes the file MARK, which must not be there, and takes it away again. At each of the first
DEATHS turns it is killed instead: the file is left, with its process id.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parents[2]))

from data.claim_file import ClaimFile


def mark(path: Path) -> None:
    """Make the file; fail if that of another process that lives is there."""
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except FileExistsError:
        owner = int(path.read_text() or 0)
        deadline = time.monotonic() + 20  # its lock goes a moment before it is seen to be dead
        while owner == 0 or (psutil.pid_exists(owner) and psutil.Process(owner).status() != psutil.STATUS_ZOMBIE):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        path.unlink()
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    os.write(descriptor, str(os.getpid()).encode())
    os.close(descriptor)


def main(folder: Path, path: Path, urgency: int, turns: int, deaths: int) -> None:
    """Take the turns."""
    print("ready", flush=True)
    sys.stdin.readline()
    for _ in range(turns):
        claim = ClaimFile(folder, "r", urgency, frozenset({"gpu"}), False)
        while claim.look() != []:
            time.sleep(random.uniform(0, 0.004))
        mark(path)
        time.sleep(random.uniform(0, 0.004))
        if deaths:
            os.kill(os.getpid(), signal.SIGKILL)
        path.unlink()
        claim.withdraw()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:]))
