"""The memory that this process may use: the machine's, or less where a control group, as of a container, limits it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil

GROUPS = Path("/proc/self/cgroup")
MOUNT = Path("/sys/fs/cgroup")


class Memory(NamedTuple):
    """Bytes."""

    total: int
    available: int


def host_memory() -> Memory:
    """The least of what the machine has and of what each group around this process allows."""
    machine = psutil.virtual_memory()
    total, available = machine.total, machine.available
    for limit, used in _limits():
        total, available = min(total, limit), min(available, max(0, limit - used))
    return Memory(total, available)


def _limits() -> Iterator[tuple[int, int]]:
    """Limit and use of the groups that have a limit, of either version. A group is limited by those above it, too."""
    try:
        lines = GROUPS.read_text().splitlines()
    except OSError:  # no Linux, or no /proc
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            mount, names, idle = MOUNT, ("memory.max", "memory.current"), "inactive_file"
        elif "memory" in controllers.split(","):
            mount, idle = MOUNT / "memory", "total_inactive_file"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
        else:
            continue
        group = mount / path.lstrip("/")
        for folder in (group, *group.parents):
            limit, used = (_number(folder / name) for name in names)
            if limit is not None:
                yield limit, (used or 0) - _idle(folder, idle)
            if folder == mount:
                break


def _number(path: Path) -> int | None:
    """None where there is no limit or no such group, as inside a container whose group has another name outside."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _idle(folder: Path, name: str) -> int:
    """Bytes of files kept in memory that are given up when they are needed."""
    try:
        fields = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return int(fields.get(name, 0))
    except (OSError, ValueError):
        return 0
