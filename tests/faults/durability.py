"""What a power cut would leave of a folder: contents and names that were synced, and by chance some that were not.

Told of each sync before it happens. A file's durable content is what it held when it was last synced; a folder's
durable names are those that it held then. Everything else may be lost: all of it, or, with a seed, each unsynced name
and content on its own, a content also in part, as a disk writes in the order that it likes.
"""

from __future__ import annotations

import os
import random
import shutil
import stat
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Durable:
    """The durable state of everything below `root`; all that is there at the start is durable."""

    root: Path
    _contents: dict[int, bytes] = field(default_factory=dict)  # by inode
    _names: dict[int, dict[str, int]] = field(default_factory=dict)  # by inode of the folder
    _folders: set[int] = field(default_factory=set)
    _kept: dict[int, int] = field(default_factory=dict)  # open descriptors, so that no inode number is used again

    def __post_init__(self) -> None:
        for folder, _, files in os.walk(self.root):
            self.synced(folder)
            for name in files:
                self.synced(os.path.join(folder, name))

    def synced(self, path: str) -> None:
        """A file or folder is made durable."""
        self.keep(path)
        try:
            status = os.stat(path)
            if stat.S_ISDIR(status.st_mode):
                self._folders.add(status.st_ino)
                self._names[status.st_ino] = _listing(Path(path))
            elif stat.S_ISREG(status.st_mode):
                self._contents[status.st_ino] = Path(path).read_bytes()
        except FileNotFoundError:  # removed while it was open
            return

    def keep(self, path: str) -> None:
        """A name is about to go, and with it perhaps the inode."""
        try:
            descriptor = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        inode = os.fstat(descriptor).st_ino
        if inode in self._kept:
            os.close(descriptor)
        else:
            self._kept[inode] = descriptor

    def release(self) -> None:
        for descriptor in self._kept.values():
            os.close(descriptor)
        self._kept.clear()

    def cut(self, seed: int) -> None:
        """Leave of `root` what a power cut leaves: only what was synced if the seed is even, by chance more if odd."""
        chance = random.Random(seed) if seed % 2 else None
        inode = self.root.stat().st_ino
        after = self.root.with_name(self.root.name + ".after")
        after.mkdir(mode=stat.S_IMODE(self.root.stat().st_mode))
        self._restore(inode, self.root, after, chance)
        shutil.rmtree(self.root)
        after.rename(self.root)

    def _restore(self, inode: int, current: Path | None, after: Path, chance: random.Random | None) -> None:
        durable = self._names.get(inode, {})
        volatile = _listing(current) if current is not None and current.is_dir() else {}
        for name in sorted({*durable, *volatile}):
            kept = volatile.get(name) if chance is not None and chance.random() < 0.5 else durable.get(name)
            if kept is None:
                continue
            where = current / name if current is not None and volatile.get(name) == kept else None
            if self._is_folder(kept) or (where is not None and where.is_dir()):
                (after / name).mkdir(mode=0o700)
                self._restore(kept, where, after / name, chance)
            else:
                (after / name).write_bytes(self._content(kept, where, chance))

    def _is_folder(self, inode: int) -> bool:
        gone = self._kept.get(inode)
        return inode in self._folders or (gone is not None and stat.S_ISDIR(os.fstat(gone).st_mode))

    def _content(self, inode: int, where: Path | None, chance: random.Random | None) -> bytes:
        durable = self._contents.get(inode, b"")
        if chance is None or where is None:
            return durable
        volatile = where.read_bytes()
        if volatile == durable:
            return durable
        torn = volatile[: chance.randrange(len(volatile) + 1)]
        return chance.choice([durable, volatile, torn])


def _listing(folder: Path) -> dict[str, int]:
    with os.scandir(folder) as entries:
        return {entry.name: entry.inode() for entry in entries}
