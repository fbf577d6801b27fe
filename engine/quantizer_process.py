"""Quantizing in supervised children, for a caller that lives on: no torch here, and no process is left behind however
the caller ends. They are killed with their caller; what they have finished by then is there for the next call.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
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
    """The children ended without a checkpoint, for another reason than a wrong setting; finished layers are kept."""


class QuantizerOrder(BaseModel):
    """What a child is told."""

    model_config = ConfigDict(frozen=True)

    model: str  # a folder
    output: str
    settings: QuantizerSettings
    calibration: str  # a file of `_write_rows`
    rank: int  # of this process among `size` that share the rows; the first writes
    size: int
    meeting: str  # the file by which they find each other


def quantize_in_children(
    model: Path,
    output: Path,
    settings: QuantizerSettings,
    calibration: Sequence[np.ndarray],
    progress: Callable[[LayerReport, int], None],
    environments: Sequence[Mapping[str, str]] = ({},),
    logs: Path | None = None,
) -> QuantizationReport:
    """engine.quantizer.Quantizer in processes of its own, which share the rows.

    progress: is told of each finished layer, and of how many there are.
    environments: the variables of each process, the device among them.
    logs: a folder for what the processes print, `log-0` and so on, which errors then name; not kept if not named.

    Raises ValueError as Quantizer does, QuantizationFailed if a child died, was silent or does not get on.
    """
    with tempfile.TemporaryDirectory(prefix="overnight-quantize-") as name, ExitStack() as stack:
        folder = Path(name)
        _write_rows(folder / "rows.safetensors", calibration)
        children = []
        for rank, environment in enumerate(environments):
            log = (logs or folder) / f"log-{rank}"
            child = Child("engine.quantizer_child:serve", environment=environment, log=log, beats=True)
            stack.callback(child.end)
            order = QuantizerOrder(
                model=str(model),
                output=str(output),
                settings=settings,
                calibration=str(folder / "rows.safetensors"),
                rank=rank,
                size=len(environments),
                meeting=str(folder / "meeting"),
            )
            child.send(order.model_dump(mode="json"))
            children.append(child)
        for child, message in _messages(children, "" if logs is None else f"; see {logs}/log-*"):
            if "error" in message:
                raise ValueError(message["error"] + ("" if logs is None else f" (see {child.log})"))
            if "done" in message:
                return QuantizationReport.model_validate(message["done"])
            progress(LayerReport.model_validate(message["layer"]), message["layers"])
    raise AssertionError("messages end with an error or the outcome")


def read_rows(path: Path) -> list[np.ndarray]:
    """The rows of a file of `_write_rows`."""
    stored = load_file(path)
    ids, lengths = stored["ids"], stored["lengths"]
    return np.split(ids, np.cumsum(lengths)[:-1]) if len(lengths) else []


def _write_rows(path: Path, rows: Sequence[np.ndarray]) -> None:
    lengths = np.array([len(row) for row in rows], np.int64)
    ids = np.concatenate([np.empty(0, np.int64), *rows]).astype(np.int64)
    save_file({"ids": ids, "lengths": lengths}, path)


def _messages(children: Sequence[Child], see: str) -> Iterator[tuple[Child, dict[str, Any]]]:
    """What the children say, but for their beats; `see` ends the message of an error."""
    heard = {child.connection: time.monotonic() for child in children}
    moved = time.monotonic()
    while True:
        ready = wait(list(heard), 1.0)
        for child in children:
            if child.connection not in ready:
                continue
            message = child.receive()
            if message is None:
                ending = child.end(patience=5)
                words = child.last_words() or "no message"
                raise QuantizationFailed(f"a process that quantizes has ended ({ending}): {words}{see}")
            heard[child.connection] = time.monotonic()
            if message.get("event") != BEAT:
                moved = time.monotonic()
                yield child, message
        if time.monotonic() - min(heard.values()) > SILENCE_SECONDS:
            raise QuantizationFailed(
                f"a process that quantizes was silent for {SILENCE_SECONDS:.0f} s and was ended{see}"
            )
        if time.monotonic() - moved > LAYER_SECONDS:
            raise QuantizationFailed(f"a layer was not done after {LAYER_SECONDS / 3600:.0f} hours{see}")
