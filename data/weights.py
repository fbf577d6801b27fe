"""The weight files of a model folder: safetensors only, each header checked before torch sees it.

A pickle checkpoint runs code when it is loaded, so it is refused. A header that claims more than the file holds is a
truncated download; found here it costs a second, found by a worker it costs the start of every worker.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from data.errors import InputError

_MAX_HEADER = 100 << 20  # the limit of the safetensors library itself
_INDEX = "model.safetensors.index.json"


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The safetensors files of a model, in name order. InputError if there are none, or a name leaves the folder."""
    index = folder / _INDEX
    if index.is_file():
        names = _indexed(index)
    elif (folder / "model.safetensors").is_file():
        names = ["model.safetensors"]
    else:
        names = sorted(path.name for path in folder.glob("*.safetensors") if not path.name.startswith("adapter"))
    if not names:
        pickles = sorted(path.name for suffix in ("bin", "pt", "pth", "ckpt") for path in folder.glob(f"*.{suffix}"))
        if pickles:
            raise InputError(f"{folder / pickles[0]} is a pickle, which can run code: convert the model to safetensors")
        raise InputError(f"{folder} holds no weights (*.safetensors)")
    return tuple(_inside(folder, name) for name in names)


def count_parameters(files: tuple[Path, ...]) -> int:
    """Elements of all tensors. InputError: there are none, or a header is invalid or does not match its file's size."""
    sizes: dict[str, int] = {}
    for path in files:
        for name, tensor in _header(path).items():
            if name != "__metadata__":
                sizes[name] = math.prod(tensor["shape"])
    if not sizes:
        raise InputError(f"{files[0]} holds no tensors")
    return sum(sizes.values())


def _indexed(index: Path) -> list[str]:
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise InputError(f"{index} is not a valid weight index") from error
    if not all(isinstance(name, str) for name in names):
        raise InputError(f"{index} is not a valid weight index")
    return sorted(names)


def _inside(folder: Path, name: str) -> Path:
    path = folder / name
    if os.path.basename(name) != name or name in ("", ".", "..") or not name.endswith(".safetensors"):
        raise InputError(f"{folder / _INDEX} names {name!r}: weights are safetensors files of the same folder")
    if not path.is_file():
        raise InputError(f"{path} is missing: the download of the model is not complete")
    # A hub snapshot links to the blobs two folders up; any other link out of the folder was put there by somebody.
    homes = (folder.resolve(), folder.resolve().parent.parent / "blobs")
    if path.is_symlink() and path.resolve().parent not in homes:
        raise InputError(f"{path} is a symbolic link out of the model folder")
    return path


def _header(path: Path) -> dict[str, Any]:
    size = path.stat().st_size
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length > _MAX_HEADER or 8 + length > size:
            raise InputError(f"{path} is not a whole safetensors file: its header is longer than the file or 100 MiB")
        text = stream.read(length)
    try:
        header: dict[str, Any] = json.loads(text)
        ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
        shapes = [tensor["shape"] for name, tensor in header.items() if name != "__metadata__"]
        whole = 8 + length + max(ends, default=0) == size and all(dim >= 0 for shape in shapes for dim in shape)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{path} has an invalid safetensors header") from error
    if not whole:
        raise InputError(f"{path} is truncated or damaged: its tensors do not end where the file does")
    try:
        with safe_open(path, framework="np"):  # the library's own checks: types, and sizes against offsets
            return header
    except SafetensorError as error:
        raise InputError(f"{path} has an invalid safetensors header: {error}") from error
