"""Points at which a run is disturbed, named so that the same name means the same moment in every run.

A point is the n-th call of one kind on one sort of place by the driver or by its workers: "worker link run/commits 3".
A plain count over all calls would mean something else each time, since the processes run side by side.
"""

from __future__ import annotations

import os
from typing import NamedTuple


class Point(NamedTuple):
    """The n-th `call` of `who` (driver, worker) on `place`, counted from 1; 0 stands for each of them."""

    who: str
    call: str
    place: str
    nth: int

    @classmethod
    def parse(cls, text: str) -> Point:
        who, call, place, nth = text.split()
        return cls(who, call, place, int(nth))

    def __str__(self) -> str:
        return f"{self.who} {self.call} {self.place} {self.nth}"


def place_of(path: str, root: str) -> str | None:
    """The sort of place of a path below `root`, without the random and content-made parts of names; None elsewhere."""
    if path == root:
        return "."
    if not path.startswith(root + "/"):
        return None
    first, *rest = path[len(root) + 1 :].split("/")
    if first == "run":
        return "/".join(["run", *rest[:1]])
    for role in (".new-", ".old-"):
        if first.startswith(".") and role in first:
            return role.strip(".-")
    if first.startswith(".overnight-probe"):
        return "probe"
    if first == "cache":
        return "cache"
    return "/".join([first, *(name for name in rest if name.startswith("_"))])


def folder_or_file(path: str, place: str) -> str:
    """The same with a slash behind a folder: syncing names is another thing than syncing contents."""
    return place + "/" if os.path.isdir(path) else place
