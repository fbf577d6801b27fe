"""The result cache as a run uses it: where it is, and which answers may stand for the run's own.

An answer is found again by its prompt's token ids and a digest of whatever else decides it. That is less than what
names a run: neither the input nor the template matters once there are token ids, nor sampling settings that the kind
does not use, so that a changed column, a new row or another seed at temperature 0 leaves the rest answered.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from data.answer_cache import AnswerCache
from data.digests import user_cache
from data.errors import InputError
from data.job_answers import JobAnswers
from engine.version import ANSWERS
from tasks.settings import CacheSettings, Settings

_WHEREVER = ("adapter", "dtype", "amp", "kv_dtype", "quantization", "deterministic", "remote_code")
_GREEDY = ("max_tokens", "repetition_penalty", "stop")


def cache_folder(settings: CacheSettings) -> Path:
    """`cache.path`, or the user's own folder if it is not set."""
    if settings.path is None:
        return user_cache() / "answers"
    if "://" in settings.path:
        raise InputError(f"cache.path {settings.path}: the cache is a folder of this machine")
    return Path(settings.path).expanduser()


def check_cache(settings: CacheSettings) -> None:
    """InputError if the cache is to be used and cannot be; makes its folder."""
    if settings.enabled:
        AnswerCache.create(cache_folder(settings), settings.max_bytes)


def job_answers(settings: Settings, identity: Mapping[str, Any], results: pa.Schema) -> JobAnswers | None:
    """What the run of an identity can take from the cache and give to it; None if `cache.enabled` is not set."""
    if not settings.cache.enabled:
        return None
    cache = AnswerCache.create(cache_folder(settings.cache), settings.cache.max_bytes)
    about = {
        "kind": settings.job.kind,
        "model": _model_name(settings.model.path),
        "digest": identity["model"]["model"][:12],
        "precision": _precision(identity),
    }
    return JobAnswers(cache, job_digest(identity), about, results)


def job_digest(identity: Mapping[str, Any]) -> str:
    """32 hexadecimal digits of all that decides an answer beside the prompt's token ids, from a run's identity."""
    kind, sampling = identity["job"]["kind"], identity["sampling"]
    if kind != "generate":
        used: Mapping[str, Any] = {}
    elif sampling["temperature"] == 0:
        used = {name: sampling[name] for name in _GREEDY}
    else:
        used = sampling
    deciding = {
        "version": ANSWERS,
        "kind": kind,
        "choices": identity["job"]["choices"],
        "schema": identity["job"]["schema"],
        "sampling": used,
        # The template has made the prompt; the tokenizer also turns the answer into text.
        "model": {name: identity["model"][name] for name in ("model", "tokenizer")},
        **{name: identity[name] for name in _WHEREVER},
    }
    return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()[:32]


def _model_name(path: str) -> str:
    """The folder's name; of a snapshot in the hub's cache the id that it was fetched by."""
    folder = Path(path)
    if folder.parent.name == "snapshots":
        return folder.parent.parent.name.removeprefix("models--").replace("--", "/")
    return folder.name


def _precision(identity: Mapping[str, Any]) -> str:
    parts = [identity["dtype"], identity["quantization"], f"kv {identity['kv_dtype']}"]
    return " ".join(part for part in parts if part not in ("none", "kv auto"))
