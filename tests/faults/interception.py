"""System calls of a process and all its descendants, held by the kernel until this process has answered each.

The kernel's own facility (seccomp user notification, Linux 5.9) reached through ctypes, so that nothing needs to be
installed: the filter outlives fork and exec, counts calls of C code and of Python alike, and lets the holder kill the
caller before the call happens, fail the call with any errno, or let only a part of a write through. Which calls are to
be disturbed, and what they touch, is for `supervision` to say.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import select
import struct
from dataclasses import dataclass

AT_FDCWD = -100
_BY_MACHINE = {
    "x86_64": {
        "write": (1, 18, 20, 296), "fsync": (74, 75), "truncate": (77,), "link": (86, 265),
        "rename": (82, 264, 316), "unlink": (87, 263), "mkdir": (83, 258), "rmdir": (84,),
    },
    "aarch64": {
        "write": (64, 68, 66, 70), "fsync": (82, 83), "truncate": (46,), "link": (37,),
        "rename": (38, 276), "unlink": (35,), "mkdir": (34,), "rmdir": (),
    },
}  # fmt: skip
_SECCOMP = {"x86_64": 317, "aarch64": 277}
_WITH_FOLDERS = {"x86_64": {265, 264, 316, 263, 258}, "aarch64": {37, 38, 276, 35, 34}}
"""Calls whose paths are each preceded by the descriptor of a folder."""
AT_REMOVEDIR = 0x200

_PR_SET_NO_NEW_PRIVS, _SET_MODE_FILTER, _NEW_LISTENER = 38, 1, 8
_LOAD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_USER_NOTIFY, _ALLOW = 0x7FC00000, 0x7FFF0000
_NOTIFICATION, _ANSWER = struct.Struct("QIIiIQ6Q"), struct.Struct("Qqii")
_RECEIVE = (3 << 30) | (_NOTIFICATION.size << 16) | (0x21 << 8)
_SEND = (3 << 30) | (_ANSWER.size << 16) | (0x21 << 8) | 1
_CONTINUE = 1
_PIDFD_GETFD = 438
_PR_SET_CHILD_SUBREAPER = 36


class _Instruction(ctypes.Structure):
    _fields_ = (("code", ctypes.c_ushort), ("yes", ctypes.c_ubyte), ("no", ctypes.c_ubyte), ("k", ctypes.c_uint))


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.POINTER(_Instruction)))


_libc = ctypes.CDLL(None, use_errno=True)
_NAMES = {number: name for name, numbers in _BY_MACHINE[platform.machine()].items() for number in numbers}


def intercept() -> int:
    """Hold those calls of this process and its descendants from now on; the descriptor on which they are answered."""
    numbers = sorted(_NAMES)
    lines = [_Instruction(_LOAD, 0, 0, 0)]
    lines += [_Instruction(_JUMP_IF_EQUAL, len(numbers) - at, 0, number) for at, number in enumerate(numbers)]
    lines += [_Instruction(_RETURN, 0, 0, _ALLOW), _Instruction(_RETURN, 0, 0, _USER_NOTIFY)]
    program = _Program(len(lines), (_Instruction * len(lines))(*lines))
    if _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_NO_NEW_PRIVS)")
    seccomp = _SECCOMP[platform.machine()]
    descriptor: int = _libc.syscall(seccomp, _SET_MODE_FILTER, _NEW_LISTENER, ctypes.byref(program))
    if descriptor < 0:
        raise OSError(ctypes.get_errno(), "seccomp user notification, which the fault harness needs (Linux 5.9)")
    return descriptor


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent ends, instead of the machine's first process."""
    if _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


@dataclass(frozen=True, slots=True)
class HeldCall:
    """A call that waits for its answer. `paths` are absolute; link and rename have two, the old and the new."""

    id: int
    thread: int
    name: str
    paths: tuple[str, ...]
    arguments: tuple[int, ...]


class Listener:
    """The end of `intercept` in another process."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLIN)
        self.gone = False
        """Whether every intercepted process has ended."""

    def receive(self, seconds: float) -> HeldCall | None:
        """The next call, None if there is none in that time or every process has ended."""
        events = self._poll.poll(seconds * 1000)
        if not events:
            return None
        if not events[0][1] & select.POLLIN:
            self.gone = True
            return None
        buffer = bytearray(_NOTIFICATION.size)
        try:
            fcntl.ioctl(self._descriptor, _RECEIVE, buffer)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EINTR):  # killed before it was received
                return None
            raise
        identity, thread, _, number, _, _, *arguments = _NOTIFICATION.unpack(buffer)
        name = _NAMES[number]
        if name == "unlink" and number in _WITH_FOLDERS[platform.machine()] and arguments[2] & AT_REMOVEDIR:
            name = "rmdir"
        try:
            paths = _paths(thread, number, name, arguments)
        except (FileNotFoundError, ProcessLookupError, PermissionError):  # killed meanwhile
            paths = ()
        return HeldCall(identity, thread, name, paths, tuple(arguments))

    def proceed(self, call: HeldCall) -> None:
        """Let the call happen."""
        self._answer(call, 0, 0, _CONTINUE)

    def fail(self, call: HeldCall, code: int) -> None:
        """Let it fail with an errno, without happening."""
        self._answer(call, 0, -code, 0)

    def shorten(self, call: HeldCall) -> None:
        """Let half of a write happen, at least one byte, on the very file position of the caller."""
        descriptor, address, count = call.arguments[:3]
        with open(f"/proc/{call.thread}/mem", "rb", buffering=0) as memory:
            content = os.pread(memory.fileno(), max(1, count // 2), address)
        pidfd = os.pidfd_open(process_of(call.thread))
        ours: int = _libc.syscall(_PIDFD_GETFD, pidfd, _signed(descriptor), 0)
        try:
            written = os.write(ours, content)
        finally:
            os.close(ours)
            os.close(pidfd)
        self._answer(call, written, 0, 0)

    def close(self) -> None:
        os.close(self._descriptor)

    def _answer(self, call: HeldCall, value: int, error: int, flags: int) -> None:
        try:
            fcntl.ioctl(self._descriptor, _SEND, bytearray(_ANSWER.pack(call.id, value, error, flags)))
        except FileNotFoundError:  # the caller was killed, or a signal makes it begin anew
            return


def process_of(thread: int) -> int:
    """The process that a thread belongs to."""
    with open(f"/proc/{thread}/status", encoding="ascii") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("Tgid:"))


def _signed(value: int) -> int:
    return ctypes.c_int(value & 0xFFFFFFFF).value


def _paths(thread: int, number: int, name: str, arguments: list[int]) -> tuple[str, ...]:
    if name in ("write", "fsync", "truncate"):
        return (os.readlink(f"/proc/{thread}/fd/{_signed(arguments[0])}"),)
    count = 2 if name in ("link", "rename") else 1
    if number in _WITH_FOLDERS[platform.machine()]:
        pairs = [(_signed(arguments[2 * at]), arguments[2 * at + 1]) for at in range(count)]
    else:
        pairs = [(AT_FDCWD, arguments[at]) for at in range(count)]
    return tuple(_path(thread, folder, address) for folder, address in pairs)


def _path(thread: int, folder: int, address: int) -> str:
    with open(f"/proc/{thread}/mem", "rb", buffering=0) as memory:
        content = b""
        while b"\0" not in content and len(content) < 4096:  # a path may end just before memory does
            end = 4096 - (address + len(content)) % 4096
            piece = os.pread(memory.fileno(), end, address + len(content))
            if not piece:
                raise ProcessLookupError(f"thread {thread} has no memory left")
            content += piece
    text = os.fsdecode(content.partition(b"\0")[0])
    below = os.readlink(f"/proc/{thread}/" + ("cwd" if folder == AT_FDCWD else f"fd/{folder}"))
    return os.path.normpath(os.path.join(below, text))
