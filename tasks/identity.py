"""What a run is: whatever decides its answers. The digest of that names the run."""

from __future__ import annotations

import hashlib
from typing import Any

from data.checkpoint import Checkpoint
from data.dataset import Dataset
from tasks.settings import Settings


def identify(settings: Settings, dataset: Dataset, checkpoint: Checkpoint) -> dict[str, Any]:
    """Whatever decides the answers of a run, as plain JSON values."""
    return {
        "input": [
            {"sha256": file.sha256, "size": file.size, **({"partition": file.partition} if file.partition else {})}
            for file in dataset.fingerprint()
        ],
        "reading": settings.input.model_dump(mode="json", exclude={"path"}),
        "job": settings.job.model_dump(mode="json", by_alias=True, exclude={"budget", "expected"}),
        "sampling": settings.sampling.model_dump(mode="json"),
        "model": checkpoint.digests(),
        "adapter": settings.model.adapter,
        "dtype": settings.engine.dtype,
        "amp": settings.engine.amp,
        "kv_dtype": settings.engine.kv_dtype,
        "quantization": settings.model.quantization,
        "deterministic": settings.engine.deterministic,
        # What batches are cut by, where they are promised to be the same again.
        "max_batch_tokens": settings.engine.max_batch_tokens if settings.engine.deterministic else None,
        "remote_code": _code_digest(checkpoint) if settings.model.trust_remote_code else None,
    }


def _code_digest(checkpoint: Checkpoint) -> str:
    """sha256 over the Python files of the model folder, which then are part of the model."""
    digest = hashlib.sha256()
    for path in sorted(checkpoint.folder.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()
