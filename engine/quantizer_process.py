"""Quantizing in a supervised child, for a caller that lives on: no torch here, and no process is left behind however
the caller ends. The child is killed with its caller; what it has finished by then is there for the next call.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict
from safetensors.numpy import load_file, save_file

from engine.child import BEAT
from engine.quantizer_report import LayerReport, QuantizationReport
from engine.quantizer_settings import QuantizerSettings
from engine.supervisor import Child

SILENCE_SECONDS = 60.0  # without a beat: stopped, or hanging in a call that holds the interpreter
LAYER_SECONDS = 6 * 3600.0  # for one layer; the largest that fit a machine take minutes on a GPU, an hour on a CPU


class QuantizationFailed(RuntimeError):
    """The child ended without a checkpoint, for another reason than a wrong setting; finished layers are kept."""


class QuantizerOrder(BaseModel):
    """What the child is told."""

    model_config = ConfigDict(frozen=True)

    model: str  # a folder
    output: str
    settings: QuantizerSettings
    calibration: str  # a file of `_write_rows`


def quantize_in_child(
    model: Path,
    output: Path,
    settings: QuantizerSettings,
    calibration: Sequence[np.ndarray],
    progress: Callable[[LayerReport, int], None],
) -> QuantizationReport:
    """engine.quantizer.Quantizer in a process of its own; `progress` is told of each finished layer, and of how many.

    Raises ValueError as Quantizer does, QuantizationFailed for a child that died, was silent or does not get on.
    """
    with tempfile.TemporaryDirectory(prefix="overnight-quantize-") as folder:
        rows = Path(folder) / "rows.safetensors"
        _write_rows(rows, calibration)
        child = Child("engine.quantizer_child:serve", environment={}, log=Path(folder) / "log", beats=True)
        try:
            order = QuantizerOrder(model=str(model), output=str(output), settings=settings, calibration=str(rows))
            child.send(order.model_dump(mode="json"))
            while "done" not in (message := _next(child)):
                if "error" in message:
                    raise ValueError(message["error"])
                progress(LayerReport.model_validate(message["layer"]), message["layers"])
            return QuantizationReport.model_validate(message["done"])
        finally:
            child.end()


def read_rows(path: Path) -> list[np.ndarray]:
    """The rows of a file of `_write_rows`."""
    stored = load_file(path)
    ids, lengths = stored["ids"], stored["lengths"]
    return np.split(ids, np.cumsum(lengths)[:-1]) if len(lengths) else []


def _write_rows(path: Path, rows: Sequence[np.ndarray]) -> None:
    lengths = np.array([len(row) for row in rows], np.int64)
    ids = np.concatenate([np.empty(0, np.int64), *rows]).astype(np.int64)
    save_file({"ids": ids, "lengths": lengths}, path)


def _next(child: Child) -> dict[str, Any]:
    """The next message that is no beat."""
    deadline = time.monotonic() + LAYER_SECONDS
    while time.monotonic() < deadline:
        if not wait([child.connection], SILENCE_SECONDS):
            raise QuantizationFailed(f"the quantizer's process was silent for {SILENCE_SECONDS:.0f} s and was ended")
        message = child.receive()
        if message is None:
            ending = child.end(patience=5)
            raise QuantizationFailed(
                f"the quantizer's process has ended ({ending}): {child.last_words() or 'no message'}"
            )
        if message.get("event") != BEAT:
            return message
    raise QuantizationFailed(f"a layer was not done after {LAYER_SECONDS / 3600:.0f} hours")
