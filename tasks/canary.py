"""What a worker proves before it gets its first row: that it has the model that the run was planned with, intact.

Four things are looked at. The small files of the checkpoint, and what they make of the canary texts, are those that the
driver saw. The bits of the loaded weights have the sum that they had when this checkpoint was loaded before. The engine
answers the canaries with numbers. And these are the answers that it gave before. "Before" is the first worker of this
run, which leaves a record in RUN/canaries, and earlier runs on this machine, which left theirs in the user's cache;
records are named by all that decides what they hold, versions and the device included, so rounding alone cannot raise
an alarm.

Where weights or answers are not as before, the files of the weights are read again and compared with the digest that
names the run. That tells whether the files are damaged, and every worker with them, or this worker's memory or device.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from data.canary import canary_outline, canary_prompts, differences
from data.checkpoint import Checkpoint
from data.digests import user_cache
from data.durable import make_folder, write_file
from data.errors import InputError
from data.run_folder import RunFolder
from engine.request import Engine, Request, run
from engine.version import ANSWERS
from tasks.cache import job_digest
from tasks.likeness import Answer, differs, to_answer
from tasks.settings import Settings

VERSION = 1  # of the canaries and of their records
_TOKENS = 4
_TOKENS_ON_GPU = 1  # the prompt's own step gives it, so that no CUDA graph is captured for a canary
_TURNED = 1  # answers that rounding may turn, where it is not of float32 on a CPU


class Expected(BaseModel):
    """What the driver tells a worker of the checkpoint: its outline, and the device that the worker has."""

    model_config = ConfigDict(frozen=True)

    outline: dict[str, str] = {}
    machine: str = ""

    @classmethod
    def of(cls, checkpoint: Checkpoint, machine: str) -> Expected:
        """What workers on a device of this name must find."""
        return cls(outline=canary_outline(checkpoint), machine=machine)


@dataclass(frozen=True)
class Found:
    """What a worker has loaded."""

    checkpoint: Checkpoint
    engine: Engine
    weights: str
    """The sum of the loaded weights."""
    device: str


class CanaryFailed(Exception):
    """A worker must not be used. `certain`: no other one can be better off."""

    def __init__(self, message: str, *, certain: bool) -> None:
        super().__init__(message)
        self.certain = certain


def check_canaries(run_folder: RunFolder, settings: Settings, expected: Expected, found: Found) -> str | None:
    """Raise CanaryFailed unless the worker has what the run was planned with.

    Returns what the user should know once: that earlier runs of these weights had another tokenizer or chat template,
    which may be meant or not.
    """
    identity = run_folder.identity
    planned = {"tokenizer": identity["model"]["tokenizer"], "chat template": identity["model"]["template"]}
    names = differences({**planned, **expected.outline, **planned}, canary_outline(found.checkpoint))
    if names:
        raise CanaryFailed(
            f"{found.checkpoint.folder} has changed since the run was planned ({', '.join(names)}): put its files "
            "back, or start the command again for a run of its own with the new ones",
            certain=True,
        )
    answers = _answer(found)
    bad = [answer["error"] for answer in answers if answer["error"] is not None]
    if bad:
        code = max(bad, key=bad.count)
        raise CanaryFailed(
            f"the model in {found.checkpoint.folder} answers {len(bad)} of {len(answers)} canary prompts with {code}: "
            f"its weights are damaged, or engine.dtype = {settings.engine.dtype!r} does not suit them",
            certain=False,
        )
    exact = rounds_alike(settings, found.device)
    for folder in (run_folder.path / "canaries", user_cache() / "canaries"):
        record = _Record(folder, run_folder.tmp if folder.is_relative_to(run_folder.path) else folder)
        before = record.keep(_weights_key(identity, settings, expected, found), {"sum": found.weights})
        if before is not None and before.get("sum") != found.weights:
            raise _failed(identity, expected, found, record, "has other bits in its weights than when it was loaded")
        before = record.keep(_answers_key(identity, expected), {"answers": answers})
        if before is not None and _disagree(answers, before.get("answers", []), exact):
            raise _failed(identity, expected, found, record, "answers the canary prompts otherwise than it did")
    return _other_company(_Record(user_cache() / "canaries", user_cache() / "canaries"), identity["model"], found)


def _other_company(record: _Record, digests: Mapping[str, str], found: Found) -> str | None:
    """A warning if the weights were used with another tokenizer or chat template before, and never with these."""
    model = digests["model"][:32]
    company = hashlib.sha256(f"{digests['tokenizer']} {digests['template']}".encode()).hexdigest()[:32]
    if record.keep(f"files-{model}-{company}", digests) is not None:
        return None
    others = [json.loads(path.read_bytes()) for path in record.folder.glob(f"files-{model}-*.json")]
    names = {"tokenizer": "tokenizer", "template": "chat template"}
    differ = [text for key, text in names.items() if any(other[key] != digests[key] for other in others)]
    if not differ:
        return None
    return f"the model in {found.checkpoint.folder} was used with another {' and '.join(differ)} before"


def rounds_alike(settings: Settings, device: str) -> bool:
    """Whether rounding never turns an answer, or hardly ever: the same in any batch, or float32 on a CPU."""
    if settings.engine.invariant:
        return True
    plain = settings.model.quantization == "none" and not settings.engine.amp
    return device == "cpu" and settings.engine.dtype == "float32" and plain


def _answer(found: Found) -> list[Answer]:
    """The engine's answers to the canary prompts, in their order."""
    tokens = _TOKENS if found.device == "cpu" else _TOKENS_ON_GPU
    requests = [
        Request(
            id=number, prompt=ids, max_tokens=tokens, key=hashlib.blake2b(f"canary {number}".encode()).digest()[:16]
        )
        for number, ids in enumerate(canary_prompts(found.checkpoint))
    ]
    completions = {completion.id: completion for completion in run(found.engine, requests)}
    return [to_answer(completions[request.id]) for request in requests]


def _disagree(ours: Sequence[Answer], theirs: Sequence[Mapping[str, Any]], exact: bool) -> bool:
    if len(ours) != len(theirs):
        return True
    pairs = zip(ours, theirs, strict=True)
    different = sum(differs(a, b, tokens=_TOKENS if exact else 1, exact=exact) for a, b in pairs)
    return different > (0 if exact else _TURNED)


def _weights_key(identity: Mapping[str, Any], settings: Settings, expected: Expected, found: Found) -> str:
    """What decides the bits of the loaded weights. Layouts differ between devices, and between versions."""
    return _key(
        "weights",
        model=identity["model"]["model"],
        dtype=identity["dtype"],
        head=settings.job.kind != "embed",
        device=found.device,
        machine=expected.machine if found.device != "cpu" else "",
    )


def _answers_key(identity: Mapping[str, Any], expected: Expected) -> str:
    """What decides the canaries' answers."""
    batches = identity["max_batch_tokens"]
    return _key("answers", job=job_digest(identity), machine=expected.machine, batches=batches)


def _key(what: str, **deciding: Any) -> str:
    import torch
    import transformers

    versions = [VERSION, ANSWERS, torch.__version__, transformers.__version__, _engine_source()]
    text = json.dumps([what, versions, torch.backends.cpu.get_cpu_capability(), deciding], sort_keys=True)
    return f"{what}-{hashlib.sha256(text.encode()).hexdigest()[:32]}"


def _whole(checkpoint: Checkpoint, planned: Mapping[str, str]) -> bool:
    """Whether the checkpoint's bytes, read anew, are those that a run was planned with."""
    try:
        return checkpoint.digests(trusting=False) == planned
    except InputError:  # not those that the hub stored either
        return False


def _engine_source() -> str:
    """A digest of the engine's own files: another version of it may lay weights out, and round, in another way."""
    import engine

    folder = Path(engine.__path__[0])
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(f"{path.relative_to(folder)} ".encode() + path.read_bytes())
    return digest.hexdigest()


class _Record:
    """A folder of records, the first of a name winning."""

    def __init__(self, folder: Path, tmp: Path) -> None:
        self.folder, self._tmp = folder, tmp

    def keep(self, key: str, content: Mapping[str, Any]) -> dict[str, Any] | None:
        """Record durably what was found under a key; what is there already, if something is.

        A disk that is full, or a home that cannot be written, costs this one comparison only.
        """
        path = self.folder / f"{key}.json"
        try:
            if not path.exists():
                make_folder(self.folder, 0o700)
                if write_file(self._tmp, path, lambda file: file.write(json.dumps(content).encode())):
                    return None
            before = json.loads(path.read_bytes())
        except OSError:
            return None
        except ValueError:
            return {}
        return before if isinstance(before, dict) else {}


def _failed(identity: Mapping[str, Any], expected: Expected, found: Found, record: _Record, what: str) -> CanaryFailed:
    """The reason that a worker is refused for, after reading the weights' files from end to end."""
    folder = found.checkpoint.folder
    if not _whole(found.checkpoint, identity["model"]):
        return CanaryFailed(
            f"the weights in {folder} are damaged: their bytes are not those that the run was planned with, although "
            "their size and time are. Fetch the model again and check the disk",
            certain=True,
        )
    return CanaryFailed(
        f"the model in {folder} {what} on {expected.machine or found.device}, though its files are whole: the memory "
        f"or the device of this worker is at fault, or of the one that left {record.folder}. Use another device; if it "
        "is the record that is wrong, delete that folder, and start with --fresh where it is the run's",
        certain=False,
    )
