"""Whether the configured model can be read, fits the devices, and has a tokenizer of its own vocabulary."""

from __future__ import annotations

from collections.abc import Iterator

import psutil

from data.checkpoint import Checkpoint
from data.errors import InputError
from tasks.check import Check
from tasks.figures import plural, short, size
from tasks.host_memory import host_memory
from tasks.machine import Gpus
from tasks.settings import Settings

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def check_model(settings: Settings, gpus: Gpus) -> Iterator[Check]:
    """The checkpoint of `model.path`."""
    model = settings.model
    if not model.path:
        yield Check("model", "warn", "none configured", "name one with --model or model.path to have it checked")
        return
    try:
        checkpoint = Checkpoint.open(model.path, model.revision, model.trust_remote_code)
        context = checkpoint.context_length
        found = f"{checkpoint.architecture or 'model'}, {short(checkpoint.parameters)} parameters, context {context:,}"
        yield Check("model", "ok", f"{found}, {checkpoint.folder}")
        yield check_fit(settings, checkpoint.parameters, gpus)
        yield _check_tokenizer(checkpoint)
    except InputError as error:
        yield Check("model", "fail", str(error), "set model.path to a complete folder of safetensors, or a hub id")


def check_fit(settings: Settings, parameters: int, gpus: Gpus) -> Check:
    """The weights against the memory of one device, or on the CPU of all workers together."""
    dtype = settings.engine.dtype
    if dtype == "auto":
        dtype = "bfloat16" if gpus.devices else "float32"
    weights = parameters * BYTES[dtype]
    if gpus.devices:
        room = int(min(gpu.memory for gpu in gpus.devices) * settings.engine.memory_fraction)
        found = f"weights {size(weights)} in {dtype}, {size(room)} for a worker on its GPU"
        remedy = "choose a smaller or quantized model, or a GPU with more memory"
    else:
        workers = min(settings.workers.dp_degree, psutil.cpu_count(logical=True) or 1)
        weights *= workers
        room = host_memory().available
        found = f"weights {size(weights)} in {dtype} for {plural(workers, 'worker')}, {size(room)} of memory free"
        remedy = "lower workers.dp_degree, choose a smaller model, or set engine.dtype = 'bfloat16'"
    if weights > room:
        return Check("model size", "fail", found, remedy)
    if weights > 0.8 * room:
        return Check("model size", "warn", found, f"little is left for the KV cache: {remedy}")
    return Check("model size", "ok", found)


def _check_tokenizer(checkpoint: Checkpoint) -> Check:
    try:
        tokenizer = checkpoint.tokenizer()
    except InputError as error:
        return Check("tokenizer", "fail", str(error), "use the tokenizer that came with these weights")
    chat = "with" if checkpoint.has_chat_template else "no"
    found = f"ids up to {tokenizer.highest_id:,} of {checkpoint.vocab_size:,}, {chat} chat template"
    return Check("tokenizer", "ok", found)
