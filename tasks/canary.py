"""What a worker proves before it gets its first row: that it has the model that the run was planned with, intact.

Four things are looked at. The small files of the checkpoint, and what they make of the canary texts, are those that the
driver saw. The bits of the loaded weights have the sum that they had when this checkpoint was loaded before. The engine
answers the canaries with numbers. And these are the answers that it gave before. "Before" is the first worker of this
run, which leaves a record in RUN/canaries, and earlier runs on this machine that were completed;
records are named by all that decides what they hold, versions and the device included, so rounding alone cannot raise
an alarm.

Where weights or answers are not as before, the files of the weights are read again and compared with the digest that
names the run. That tells whether the files are damaged, and every worker with them, or this worker's memory or device.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict

from data.canary import canary_outline, canary_prompts, differences
from data.checkpoint import Checkpoint
from data.errors import InputError
from data.run_folder import RunFolder
from engine.request import Engine, Request, run
from tasks.cache import job_digest
from tasks.canary_records import Records, key, outvoted, user_records
from tasks.likeness import Answer, differs, to_answer
from tasks.settings import Settings

_TOKENS = 4
_TOKENS_ON_GPU = 1  # the prompt's own step gives it, so that no CUDA graph is captured for a canary
_TURNED = 1  # answers that rounding may turn, where it is not of float32 on a CPU


class Expected(BaseModel):
    """What the driver tells a worker of the checkpoint: its outline, and the device that the worker has."""

    model_config = ConfigDict(frozen=True)

    outline: dict[str, str] = {}
    machine: str = ""
    alike: bool = True
    """Whether all workers have devices of one name, so that they round alike."""
    worker: int = 0
    workers: int = 1

    @classmethod
    def of(cls, checkpoint: Checkpoint, machine: str, *, alike: bool = True, workers: int = 1) -> Expected:
        """What workers must find; on a CPU, their device has this name."""
        return cls(outline=canary_outline(checkpoint), machine=machine, alike=alike, workers=workers)


@dataclass(frozen=True)
class Found:
    """What a worker has loaded."""

    checkpoint: Checkpoint
    engine: Engine
    weights: str
    """The sum of the loaded weights."""
    device: str
    machine: str
    """The name of the device: rounding is compared with that of others of this name."""


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
    if names == ["weights"] and _whole(found.checkpoint, identity["model"]):
        names = []  # touched, copied, or on a mount that numbers its files anew: the bytes are what counts
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
    notices = _compare(run_folder, settings, expected, found, answers)
    notice = _other_company(user_records(), identity["model"], found)
    return "; ".join([*notices, *([notice] if notice is not None else [])]) or None


def _compare(
    run_folder: RunFolder, settings: Settings, expected: Expected, found: Found, answers: list[Answer]
) -> list[str]:
    """Compare weights and answers with those of the run's first worker and of earlier runs; what the user should know.

    CanaryFailed if they are others.
    """
    identity = run_folder.identity
    exact = rounds_alike(settings, found.device)
    compared: dict[str, dict[str, Any]] = {
        _weights_key(identity, settings, found): {"sum": found.weights},
        _answers_key(identity, found): {"answers": answers},
    }
    notices: list[str] = []
    ours, cached = Records(run_folder.path / "canaries", run_folder.tmp), user_records()
    for record in (ours, cached):
        for name, content in compared.items():
            before = ours.keep(name, content) if record is ours else cached.read(name)
            if before is None or not _contradict(content, before, exact):
                continue
            try:
                _require_whole(identity, found)
            except CanaryFailed:
                ours.forget(compared)  # of damaged files; they would be held against the sound ones
                raise
            if record is ours or not outvoted(ours, name, content, expected.worker, expected.workers):
                raise _failed(found, record, "answers otherwise" if "answers" in content else "has other weights")
            cached.replace(name, content)
            notices.append(
                f"most workers contradict the canaries of earlier runs in {cached.folder}: they are replaced"
            )
    return notices


def _contradict(ours: Mapping[str, Any], theirs: Mapping[str, Any], exact: bool) -> bool:
    if "sum" in ours:
        return bool(ours["sum"] != theirs.get("sum"))
    return _disagree(ours["answers"], theirs.get("answers", []), exact)


def _other_company(record: Records, digests: Mapping[str, str], found: Found) -> str | None:
    """A warning if the weights were used with another tokenizer or chat template before, and never with these."""
    model = digests["model"][:32]
    company = hashlib.sha256(f"{digests['tokenizer']} {digests['template']}".encode()).hexdigest()[:32]
    if record.keep(f"files-{model}-{company}", digests) is not None:
        return None
    others = [record.read(path.stem) or {} for path in record.folder.glob(f"files-{model}-*.json")]
    names = {"tokenizer": "tokenizer", "template": "chat template"}
    differ = [
        text for name, text in names.items() if any(other.get(name, digests[name]) != digests[name] for other in others)
    ]
    if not differ:
        return None
    return (
        f"the model in {found.checkpoint.folder} was used with another {' and '.join(differ)} before, and answers may "
        "make no sense with this one. If nobody changed it on purpose, end the run, fetch the model again and start "
        "with --fresh; else there is nothing to do, and this is not said again"
    )


def rounds_alike(settings: Settings, device: str, *, alike: bool = True) -> bool:
    """Whether rounding never turns an answer, or hardly ever: the same in any batch, or float32 on a CPU.

    `alike`: the devices have one name. Others multiply in another order.
    """
    if settings.engine.invariant or not alike:
        return alike
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


def _weights_key(identity: Mapping[str, Any], settings: Settings, found: Found) -> str:
    """What decides the bits of the loaded weights. Layouts differ between devices, and between versions."""
    return key(
        "weights",
        model=identity["model"]["model"],
        dtype=identity["dtype"],
        head=settings.job.kind != "embed",
        device=found.device,
        machine=found.machine if found.device != "cpu" else "",
    )


def _answers_key(identity: Mapping[str, Any], found: Found) -> str:
    """What decides the canaries' answers."""
    batches = identity["max_batch_tokens"]
    return key("answers", job=job_digest(identity), machine=found.machine, batches=batches)


def _whole(checkpoint: Checkpoint, planned: Mapping[str, str]) -> bool:
    """Whether the checkpoint's bytes, read anew, are those that a run was planned with."""
    try:
        return checkpoint.digests(trusting=False) == planned
    except InputError:  # not those that the hub stored either
        return False


def _require_whole(identity: Mapping[str, Any], found: Found) -> None:
    """Raise CanaryFailed if the weights' files, read from end to end, are not those that the run was planned with."""
    if not _whole(found.checkpoint, identity["model"]):
        raise CanaryFailed(
            f"the weights in {found.checkpoint.folder} are damaged: their bytes are not those that the run was planned "
            "with, although their size and time are. Fetch the model again and check the disk",
            certain=True,
        )


def _failed(found: Found, record: Records, what: str) -> CanaryFailed:
    """The reason that a worker is refused for although the files are whole."""
    return CanaryFailed(
        f"the model in {found.checkpoint.folder} {what} than before on {found.machine or found.device}, though its "
        "files are whole: the memory or the device of this worker is at fault, or of the one that left "
        f"{record.folder}. Use another device; if it is the record that is wrong, delete that folder, and start with "
        "--fresh where it is the run's",
        certain=False,
    )
