"""Verdicts of recipe.py's checks, kept on disk for the next start, which saves it building and compiling for them.

A verdict is a small file named by a digest of all that it depends on: what was checked, the model's class, config and
dtype, the versions of what it runs on, and this package's own source. So an old one is never wrong, only unused. What
cannot be read or written costs the check again and nothing else.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from functools import cache
from pathlib import Path

import torch
import transformers
import triton
from transformers import PreTrainedModel

_ENGINE = Path(__file__).parent.parent


def name_of(check: str, model: PreTrainedModel) -> str:
    """The name, hexadecimal, of the verdict that `check` gives on models like this one."""
    config = model.config.to_dict()
    config.pop("_name_or_path", None)  # where a model lies does not matter
    kind = [check, type(model).__name__, str(model.dtype), model.device.type]
    versions = [torch.__version__, transformers.__version__, triton.__version__]
    text = json.dumps([*kind, *versions, _sources(), config], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def recall(name: str) -> bool | None:
    """The verdict of that name, None where none can be read."""
    try:
        verdict = json.loads(_path(name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return verdict if isinstance(verdict, bool) else None


def remember(name: str, verdict: bool) -> None:
    """Keep the verdict, put in place by rename."""
    path = _path(name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as stream:
            json.dump(verdict, stream)
        os.replace(stream.name, path)
    except OSError:  # a read-only home costs only the next start's time
        return


def _path(name: str) -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(cache) / "overnight" / "recipes" / f"{name}.json"


@cache
def _sources() -> str:
    """A digest of the engine's source: layers, kernels, attention and the check itself."""
    digest = hashlib.sha256()
    for path in sorted(_ENGINE.rglob("*.py")):
        source = path.read_bytes()
        digest.update(f"{path.relative_to(_ENGINE)} {len(source)} ".encode() + source)
    return digest.hexdigest()
