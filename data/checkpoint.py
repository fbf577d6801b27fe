"""A model folder as the run sees it: complete, safe to load, and identified by digests. Nothing here imports torch.

Everything that can be wrong with a model folder is found when it is opened, so that no worker starts in vain. A hub id
is resolved to its snapshot folder first, from the local cache when there is no network.
"""

from __future__ import annotations

import hashlib
import os
import re
from functools import cached_property
from pathlib import Path
from typing import Any

from data import model_config
from data.digests import remembered, sha256
from data.errors import InputError
from data.tokenizer import Tokenizer, read_config
from data.weights import count_parameters, weight_files

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?\Z")
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")
_FETCHED = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model")
_NEAR = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
_DEFINES = (
    "config.json",
    "generation_config.json",
    "modules.json",
    "sentence_bert_config.json",
    "1_Pooling/config.json",
)


class Checkpoint:
    """A model folder that can be loaded. Make it with `Checkpoint.open`."""

    def __init__(self, folder: Path) -> None:
        """InputError naming the file that is missing or invalid."""
        self.folder = folder
        if not (folder / "config.json").is_file():
            raise InputError(f"{folder} has no config.json: not a model folder")
        self.config: dict[str, Any] = model_config.read_json(folder / "config.json")
        self.weights: tuple[Path, ...] = weight_files(folder)
        self.parameters: int = count_parameters(self.weights)
        self.context_length: int = model_config.context_length(folder, self.config)
        self.stop_ids: tuple[int, ...] = model_config.stop_ids(folder, self.config)
        self.chat_template: str | None = _chat_template(folder)

    @classmethod
    def open(cls, path: str, revision: str | None = None, trust_remote_code: bool = False) -> Checkpoint:
        """The checkpoint at a folder, or of a hub id at `revision`.

        A link is followed once, here: `folder` is where it leads now, whatever it leads to later.
        `trust_remote_code` also fetches the model's Python files; here they are never run. InputError for anything
        that would keep the model from loading, and for a hub id that cannot be fetched.
        """
        if not path:
            raise InputError("model.path is not set: name a model folder or a hub id with --model")
        folder = Path(path).expanduser()
        real = Path(os.path.realpath(folder))
        if real.is_dir():
            return cls(real)
        if real.exists():
            raise InputError(f"{path} is a file: model.path is the folder that holds config.json")
        if folder.is_symlink():
            raise InputError(f"{path} is a link to {os.readlink(folder)}, which does not exist")
        if not _HUB_ID.match(path):
            raise InputError(f"{path} does not exist")
        return cls(_snapshot(path, revision, trust_remote_code))

    @property
    def architecture(self) -> str:
        """Name of the model's class, as config.json gives it; "" if it does not."""
        names = self.config.get("architectures") or [""]
        return str(names[0])

    @property
    def vocab_size(self) -> int:
        """Rows of the model's embedding. InputError if config.json does not tell."""
        size = model_config.text_config(self.config).get("vocab_size")
        if not isinstance(size, int):
            raise InputError(f"{self.folder / 'config.json'} gives no vocab_size")
        return size

    @property
    def has_chat_template(self) -> bool:
        return self.chat_template is not None

    def tokenizer(self) -> Tokenizer:
        """The tokenizer, loaded once. InputError if it is missing, or can give ids that the model does not have."""
        return self._tokenizer

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        tokenizer = Tokenizer(self.folder)
        if tokenizer.highest_id >= self.vocab_size:
            raise InputError(
                f"{self.folder}: the tokenizer gives ids up to {tokenizer.highest_id}, but the model has "
                f"{self.vocab_size}: they do not belong together"
            )
        return tokenizer

    def digests(self, *, trusting: bool = True) -> dict[str, str]:
        """sha256 of the `model` (weights and configuration), the `tokenizer` and the chat `template` ("" without).

        Unless `trusting`, the weights are read whatever is remembered of files of their size and time.
        InputError for weights of a hub snapshot whose digest is not the one under which the hub stores them.
        """
        weights = remembered(self.weights) if trusting else {path.name: sha256(path) for path in self.weights}
        for path in self.weights:
            stored = path.resolve()  # the hub's cache names a large file by its sha256
            if stored.parent.name == "blobs" and _SHA256.match(stored.name) and stored.name != weights[path.name]:
                raise InputError(f"{path} is damaged: its sha256 is not the one that the hub records; fetch it again")
        template = self.chat_template
        return {
            "model": _digest([*weights.items(), *self._small(_DEFINES)]),
            "tokenizer": _digest(self._small(_NEAR)),
            "template": "" if template is None else hashlib.sha256(template.encode()).hexdigest(),
        }

    def outline(self) -> dict[str, str]:
        """What two processes that opened the same checkpoint agree on: digests of the small files, the weights' stamps.

        It costs no reading of the weights, so every worker can afford it.
        """
        stamps = [(path.name, path.stat()) for path in self.weights]
        template = self.chat_template
        return {
            "weights": _digest([(name, f"{s.st_size} {s.st_mtime_ns} {s.st_ino}") for name, s in stamps]),
            "configuration": _digest(self._small(_DEFINES)),
            "tokenizer": _digest(self._small(_NEAR)),
            "chat template": "" if template is None else hashlib.sha256(template.encode()).hexdigest(),
        }

    def pooling(self) -> tuple[model_config.Pooling, bool]:
        """("mean" | "last" | "cls", whether embeddings are scaled to length 1); see `data.model_config.pooling`."""
        return model_config.pooling(self.folder, self.config)

    def _small(self, names: tuple[str, ...]) -> list[tuple[str, str]]:
        files = [(name, self.folder / name) for name in names]
        return [(name, hashlib.sha256(path.read_bytes()).hexdigest()) for name, path in files if path.is_file()]


def _digest(parts: list[tuple[str, str]]) -> str:
    lines = "".join(f"{name}\0{digest}\n" for name, digest in sorted(parts))
    return hashlib.sha256(lines.encode()).hexdigest()


def _chat_template(folder: Path) -> str | None:
    """chat_template.jinja, else the default one of tokenizer_config.json, as transformers chooses."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"{path} is not UTF-8") from error
    found = read_config(folder).get("chat_template")
    if isinstance(found, list):
        found = {entry.get("name"): entry.get("template") for entry in found if isinstance(entry, dict)}
    if isinstance(found, dict):
        found = found.get("default")
    return found if isinstance(found, str) and found else None


def _snapshot(name: str, revision: str | None, code: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        patterns = [*_FETCHED, "*.py"] if code else list(_FETCHED)
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"{name} is neither a folder nor a model that can be fetched from the hub: {reason}"
        ) from error
