"""A quantized checkpoint on its way to disk, layer by layer, so that a kill at any time loses no finished layer.

Beside the output stands a hidden folder. A layer's tensors are written to a private file there, synced and renamed to
the shard's name; then, likewise, a record of the shard's digest, which is the only thing that a restart trusts. When
all shards are there, the index and the copied files follow and config.json, without which nothing is a model; then the
whole is renamed to the output. What is recorded at the start says which model, settings and rows the work belongs to,
so that shards of two different runs never meet. One process at a time works there, by a lock that dies with it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from engine.quantizer_report import REPORT_NAME

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".gguf", ".index.json")
_FOLDERS = ("additional_chat_templates",)


class QuantizedWriter:
    """Writes the folder `output`, a sibling of which holds it until it is whole. To be used as a context.

    Raises ValueError on entering where the output exists, another process is at work, or the work begun is another.
    """

    def __init__(self, output: Path, shards: int, identity: Mapping[str, Any]) -> None:
        """identity: what decides the bytes, as JSON has it."""
        self._output, self._shards, self._identity = output, shards, dict(identity)
        self._work = output.parent / f".{output.name}.quantizing"
        self._model, self._tmp = self._work / "model", self._work / "tmp"
        self._opened = ExitStack()

    def __enter__(self) -> QuantizedWriter:
        if self._output.is_file() or (self._output.is_dir() and any(self._output.iterdir())):
            if self._model.exists() or not (self._work / "identity.json").exists():
                raise ValueError(f"output {self._output} exists already; name another folder or delete it")
            self._model = self._output  # a kill came between the renaming and the cleaning up
        self._work.mkdir(parents=True, exist_ok=True)
        with self._opened:
            self._lock()
            self._check_identity()
            shutil.rmtree(self._tmp, ignore_errors=True)
            self._tmp.mkdir()
            self._model.mkdir(exist_ok=True)
            self._opened = self._opened.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def _lock(self) -> None:
        descriptor = os.open(self._work / "lock", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._opened.callback(os.close, descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"another process is quantizing to {self._output}; wait for it or stop it") from error

    def _check_identity(self) -> None:
        record = self._work / "identity.json"
        if not record.exists():
            self._tmp.mkdir(exist_ok=True)
            self._write_json(record, self._identity)
            return
        found = json.loads(record.read_text(encoding="utf-8"))
        differ = sorted(
            key for key in found.keys() | self._identity.keys() if found.get(key) != self._identity.get(key)
        )
        if differ:
            raise ValueError(
                f"the unfinished work in {self._work} was begun with another {', '.join(differ)}; "
                f"go on with the same, or delete that folder"
            )

    def finished(self, shard: int) -> dict[str, Any] | None:
        """What was said of shard `shard` when it was written; None if it is not there whole."""
        record, file = self._record(shard), self._model / self._name(shard)
        if not record.exists() or not file.exists():
            return None
        found = json.loads(record.read_text(encoding="utf-8"))
        said: dict[str, Any] | None = found["said"] if found["sha256"] == _digest(file) else None
        return said

    def write(self, shard: int, tensors: dict[str, Tensor], said: Mapping[str, Any]) -> None:
        """Make shard `shard` durable, and what is to be known of it when the work goes on."""
        file = self._model / self._name(shard)
        self._put(file, lambda path: save_file(tensors, path, {"format": "pt"}))
        self._write_json(self._record(shard), {"sha256": _digest(file), "said": said})

    def publish(self, source: Path, config: Mapping[str, Any], report: Mapping[str, Any]) -> None:
        """Add the index, the files of `source` that are no weights, the report and the config; then be the output."""
        if self._model != self._output:
            self._complete(source, config, report)
            if self._output.exists():
                self._output.rmdir()  # empty, as was checked
            os.rename(self._model, self._output)
            _sync(self._output.parent)
        shutil.rmtree(self._work)

    def _complete(self, source: Path, config: Mapping[str, Any], report: Mapping[str, Any]) -> None:
        places: dict[str, str] = {}
        total = 0
        for shard in range(self._shards):
            file = self._model / self._name(shard)
            with safe_open(file, framework="pt") as tensors:
                places |= dict.fromkeys(tensors.keys(), file.name)
            total += file.stat().st_size
        for path in sorted(source.iterdir()):
            if path.is_file() and path.name != "config.json" and not path.name.endswith(_WEIGHTS):
                self._put(self._model / path.name, partial(shutil.copyfile, path))
            elif path.is_dir() and path.name in _FOLDERS:
                shutil.copytree(path, self._model / path.name, dirs_exist_ok=True)
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
        self._write_json(self._model / "model.safetensors.index.json", index)
        self._write_json(self._model / REPORT_NAME, report)
        self._write_json(self._model / "config.json", config)

    def _name(self, shard: int) -> str:
        return f"model-{shard + 1:05d}-of-{self._shards:05d}.safetensors"

    def _record(self, shard: int) -> Path:
        return self._work / f"shard-{shard:05d}.json"

    def _write_json(self, target: Path, value: Mapping[str, Any]) -> None:
        text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
        self._put(target, lambda path: path.write_text(text, encoding="utf-8"))

    def _put(self, target: Path, write: Callable[[Path], object]) -> None:
        """Let `write` make a file, which gets its name when it is durable."""
        path = self._tmp / target.name
        path.touch()
        mode = path.stat().st_mode  # as the user has it of files; safetensors writes for the owner alone
        write(path)
        path.chmod(mode)
        _sync(path)
        os.replace(path, target)
        _sync(target.parent)


def _digest(path: Path) -> str:
    with open(path, "rb", buffering=0) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
