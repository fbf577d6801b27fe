"""Reading a checkpoint's safetensors files straight onto a device, one tensor at a time, from several threads.

transformers' loader takes any object that gives its tensor for `source[...]`, asks for each from a pool of threads, and
itself renames, fuses, converts, ties and reports. So this module holds only the reading. On CPU a source is
safetensors' own slice, a view of the mapped file. On a GPU transformers would copy from mapped, pageable memory;
here each thread reads pieces of the file into a few pinned buffers that all threads share, and while one piece is on
its way to the device the next is read. No host copy of the checkpoint exists at any time. Such reading can begin before
anybody asks, and before transformers, which takes seconds, is imported: it is imported here only where it is needed.
Which tensors a model needs, and what they mean, is left to the caller.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from queue import SimpleQueue
from threading import Lock
from types import EllipsisType
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open

_PIECE = 16 * 2**20  # bytes of one pinned buffer: 0.3 ms of copying, long against the cost of a system call
_PIECE_AHEAD = 64 * 2**20  # beside a thread that imports, which gives the interpreter up once in 5 ms
_BUFFERS = 8  # two for each of the four threads with which transformers reads
_THREADS_AHEAD = 4

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class Source(Protocol):
    """A tensor not read yet. Reading it twice gives two tensors; it can be read from any thread."""

    def get_shape(self) -> list[int]: ...
    def get_dtype(self) -> str: ...
    def __getitem__(self, index: EllipsisType) -> torch.Tensor: ...


def checkpoint_files(path: str, *, revision: str = "main", local_files_only: bool = False) -> list[str]:
    """The safetensors files of the folder or hub id `path`: the single one, else those that its index names.

    Raises ValueError where there are none, OSError where the hub does not answer.
    """
    from transformers.utils.hub import cached_file, get_checkpoint_shard_files

    where = {"revision": revision, "local_files_only": local_files_only}
    single = cached_file(path, "model.safetensors", _raise_exceptions_for_missing_entries=False, **where)
    if single is not None:
        return [single]
    index = cached_file(path, "model.safetensors.index.json", _raise_exceptions_for_missing_entries=False, **where)
    if index is None:
        raise ValueError(f"model.path {path} has no model.safetensors; convert its weights (pickled ones are refused)")
    files, _ = get_checkpoint_shard_files(path, index, **where)  # type: ignore[no-untyped-call]
    return list(files)


@contextmanager
def open_weights(
    files: Sequence[str | Path], device: torch.device, *, ahead: bool = False
) -> Iterator[dict[str, Source]]:
    """The sources of every tensor in `files` by name, to be read inside the context, each giving a tensor on `device`.

    With `ahead` other threads start at once to read all tensors onto a GPU, unless they fill more than half of what is
    free there. On leaving, every tensor read is complete on the device. CPU tensors are views of the mapped files and
    stay valid.
    Raises ValueError for a file that is not whole or holds a dtype that torch lacks, OSError for one that is absent.
    """
    sources: dict[str, Source] = {}
    with ExitStack() as opened:
        staging = Staging(device, piece=_PIECE_AHEAD if ahead else _PIECE) if device.type != "cpu" else None
        for file in files:
            try:
                mapped = opened.enter_context(safe_open(file, framework="pt"))
            except SafetensorError as error:
                raise ValueError(f"{file} is not a whole safetensors file ({error}); fetch it again") from error
            if staging is None:
                sources |= {name: mapped.get_slice(name) for name in mapped.keys()}  # noqa: SIM118
            else:
                descriptor = os.open(file, os.O_RDONLY)
                opened.callback(os.close, descriptor)
                sources |= staged_sources(descriptor, staging)
        if ahead and device.type == "cuda":
            threads = ThreadPoolExecutor(_THREADS_AHEAD, thread_name_prefix="weights")
            opened.callback(threads.shutdown, cancel_futures=True)
            threads.submit(_read_ahead, threads, list(sources.values()), device)
        yield sources
        if device.type == "cuda":
            torch.cuda.synchronize(device)


class Staging:
    """A few pinned host buffers through which file pieces pass on their way to `device`, shared by threads."""

    def __init__(self, device: torch.device, *, piece: int = _PIECE, buffers: int = _BUFFERS) -> None:
        self.device = device
        self._piece, self._buffers = piece, buffers
        self._free: SimpleQueue[tuple[torch.Tensor, torch.cuda.Event | None]] = SimpleQueue()
        self._lock, self._allocated = Lock(), False

    def _allocate(self) -> None:
        """By the first reader, since it may create the device's context, which takes a while."""
        with self._lock:
            if self._allocated:
                return
            pinned = self.device.type == "cuda"
            memory = torch.empty(self._piece * self._buffers, dtype=torch.uint8, pin_memory=pinned)
            for buffer in memory.view(self._buffers, self._piece):
                event = torch.cuda.Event() if pinned else None  # type: ignore[no-untyped-call]
                self._free.put((buffer, event))
            self._allocated = True

    def read(self, descriptor: int, offset: int, target: torch.Tensor) -> None:
        """Fill `target` (flat uint8 on the device) with the file's bytes from `offset` on.

        The copies are queued on the device's current stream. Raises OSError for a file that ends early.
        """
        self._allocate()
        for start in range(0, target.numel(), self._piece):
            part = target[start : start + self._piece]
            buffer, copied = self._free.get()  # waited longest; every reader puts its own back, whatever happens
            try:
                if copied is not None:
                    copied.synchronize()
                filled = buffer[: part.numel()]
                _read_whole(descriptor, filled, offset + start)
                part.copy_(filled, non_blocking=True)
                if copied is not None:
                    copied.record(torch.cuda.current_stream(self.device))
            finally:
                self._free.put((buffer, copied))


class StagedSource:
    """A tensor of a file, read through the staging buffers, when asked for or before."""

    def __init__(self, descriptor: int, offset: int, dtype: str, shape: list[int], staging: Staging) -> None:
        self._descriptor, self._offset, self._staging = descriptor, offset, staging
        self._dtype, self._shape = dtype, shape
        self._lock, self._taken = Lock(), False
        self._tensor: torch.Tensor | None = None

    def get_shape(self) -> list[int]:
        return self._shape

    def get_dtype(self) -> str:
        return self._dtype

    def __getitem__(self, index: EllipsisType) -> torch.Tensor:
        with self._lock:
            self._taken = True
            tensor, self._tensor = self._tensor, None
        return self._read() if tensor is None else tensor

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        return math.prod(self._shape) * DTYPES[self._dtype].itemsize

    def prefetch(self) -> None:
        """Read the tensor now, for whoever asks for it first; nothing if somebody has. That one meets errors too."""
        with self._lock:
            if not self._taken and self._tensor is None:
                self._tensor = self._read()

    def _read(self) -> torch.Tensor:
        tensor = torch.empty(self._shape, dtype=DTYPES[self._dtype], device=self._staging.device)
        self._staging.read(self._descriptor, self._offset, tensor.view(-1).view(torch.uint8))
        return tensor


def staged_sources(descriptor: int, staging: Staging) -> dict[str, StagedSource]:
    """The sources of an open safetensors file: eight bytes of length, a JSON header, then the tensors' bytes.

    Raises ValueError for a dtype that torch lacks.
    """
    length = int.from_bytes(os.pread(descriptor, 8, 0), "little")
    header = json.loads(os.pread(descriptor, length, 8))
    header.pop("__metadata__", None)
    sources: dict[str, StagedSource] = {}
    for name, entry in header.items():
        if entry["dtype"] not in DTYPES:
            raise ValueError(f"weight {name} has dtype {entry['dtype']}, which is not supported")
        offset = 8 + length + entry["data_offsets"][0]
        sources[name] = StagedSource(descriptor, offset, entry["dtype"], entry["shape"], staging)
    return sources


def _read_ahead(threads: ThreadPoolExecutor, sources: list[Source], device: torch.device) -> None:
    staged = [source for source in sources if isinstance(source, StagedSource)]
    if 2 * sum(source.nbytes for source in staged) <= torch.cuda.mem_get_info(device)[0]:
        for source in staged:
            threads.submit(source.prefetch)


def _read_whole(descriptor: int, buffer: torch.Tensor, offset: int) -> None:
    view = memoryview(buffer.numpy().data)
    while view:
        count = os.preadv(descriptor, [view], offset)
        if count == 0:
            raise OSError(f"a weights file ended {len(view)} bytes early: it changed while it was read")
        view, offset = view[count:], offset + count
