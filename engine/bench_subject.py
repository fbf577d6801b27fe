"""What the benchmark measures with: a model with random weights, and an engine for each run.

One model serves all workloads, and every run has a Generator of its own, so that no run finds the prefixes of an
earlier one in the cache. Which rows, how one run is timed and what the floor is belong to engine.workloads,
engine.bench_run and engine.floor.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median_low
from typing import Any

import torch

from engine.bench_run import HiddenLengths, Run, measure, requests, trace
from engine.bench_settings import BenchSettings
from engine.floor import Ceilings, floor_seconds, measure_ceilings, model_cost
from engine.generation import Generator
from engine.model import resolve_dtype
from engine.pruning import prune_model
from engine.random_model import build_random_model, read_config
from engine.request import Request
from engine.settings import EngineSettings, SamplingSettings
from engine.stopping import Stopping
from engine.workloads import VOCABULARY, Row, Workload

# Bytes of a weight; int4 has a bfloat16 scale and a zero point of 4 bits for each group of 128.
_INT4 = 0.5 + 2.5 / 128
_QUANTIZED_BYTES = {"fp8": 1.0, "fp8-2:4": 1.0, "awq": _INT4, "awq-packed": _INT4}


def bench(settings: BenchSettings, progress: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    """Measure every workload: its repeats, then the one in the middle again with "median" set.

    Raises ValueError for settings that cannot run here, WrongAnswer where a row did not get its tokens.
    """
    subject = Subject(settings)
    for number, workload in enumerate(map(Workload.parse, settings.workloads)):
        rows = subject.rows(workload)
        runs = []
        for turn in range(settings.repeat):
            progress(f"{workload.name}: run {turn + 1} of {settings.repeat}")
            runs.append(subject.run(workload, rows))
            yield subject.figures(workload, rows, runs[-1])
        middle = median_low(run.seconds for run in runs)
        chosen = next(run for run in runs if run.seconds == middle)
        yield subject.figures(workload, rows, chosen) | {"median": True}
        if settings.trace is not None and number == 0:
            progress(f"{workload.name}: run for the trace {settings.trace}")
            subject.trace(workload, rows, int(chosen.statistics["steps"]), settings.trace)


class Subject:
    """The model under test and the device it is on. Made ready as a worker is: model, then engine."""

    def __init__(self, settings: BenchSettings) -> None:
        self._settings = settings
        self._device = _device(settings.device)
        config = read_config(settings.model)
        text = config.get_text_config()
        self._context = int(text.max_position_embeddings)
        self._vocabulary = int(text.vocab_size)
        self._engine = EngineSettings(
            kv_dtype=settings.kv_dtype,
            memory_fraction=settings.memory_fraction,
            max_batch_tokens=settings.max_batch_tokens,
            deterministic=None if settings.deterministic == "auto" else settings.deterministic,
        )
        self._model = build_random_model(config, dtype=resolve_dtype("auto", self._device), device=self._device)
        width = _QUANTIZED_BYTES.get(settings.quant, float(self._model.dtype.itemsize))
        self._cost = model_cost(self._model, self._engine, width)
        if settings.quant != "bf16":
            from engine.precision import quantize

            if settings.quant == "fp8-2:4":
                prune_model(self._model)
            packed = settings.quant == "awq-packed"
            quantize(self._model, settings.quant.partition("-")[0], (lambda *_: False) if packed else None)
        self._hidden = HiddenLengths() if settings.lengths == "hidden" else None
        self._ready: Generator | None = self._generator(Workload.parse(settings.workloads[0]))
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self._startup = _process_seconds()
        self._ceilings = self._measure_ceilings()

    def rows(self, workload: Workload) -> list[Row]:
        """The rows of a workload. ValueError where one of them is longer than the model's context."""
        rows = workload.rows(min(VOCABULARY, self._vocabulary))
        longest = max(len(row.prompt) + row.output for row in rows)
        if longest > self._context:
            raise ValueError(
                f"{workload.name} has a row of {longest} tokens, the context of {self._settings.model} is "
                f"{self._context}: raise its max_position_embeddings or take another workload"
            )
        return rows

    def run(self, workload: Workload, rows: list[Row]) -> Run:
        """Answer the rows on a new engine."""
        generator = self._take(workload, rows)
        return measure(generator, rows, self._requests(workload, rows))

    def trace(self, workload: Workload, rows: list[Row], steps: int, file: Path) -> None:
        """Trace the middle of a run that takes `steps`."""
        trace(self._take(workload, rows), self._requests(workload, rows), steps, file)

    def figures(self, workload: Workload, rows: list[Row], run: Run) -> dict[str, Any]:
        """One line of output; times in seconds, rates in a second."""
        settings, seconds = self._settings, run.seconds
        floor = floor_seconds(rows, self._cost, self._ceilings, run.kv_positions)
        figures = {
            "workload": workload.name,
            "model": settings.model,
            "quant": settings.quant,
            "kv_dtype": settings.kv_dtype,
            "lengths": settings.lengths,
            "deterministic": settings.deterministic,
            "startup_s": self._startup,
            "s": seconds,
            "rows_s": len(rows) / seconds,
            "in_tok_s": sum(len(row.prompt) for row in rows) / seconds,
            "out_tok_s": sum(row.output for row in rows) / seconds,
            "floor_s": floor,
            "of_floor": floor / seconds,
            "host_share": run.host_share,
            "kv_occupancy": run.kv_occupancy,
            "rows_peak": int(run.statistics["most_rows"]),
            "steps": int(run.statistics["steps"]),
            "device": torch.cuda.get_device_name(self._device) if self._device.type == "cuda" else "cpu",
            "copy_bytes_s": self._ceilings.copy_bytes_s,
            "matrix_flop_s": self._ceilings.matrix_flop_s,
        }
        return {name: float(f"{value:.5g}") if isinstance(value, float) else value for name, value in figures.items()}

    def _requests(self, workload: Workload, rows: list[Row]) -> list[Request]:
        return requests(rows, None if self._hidden is None else workload.longest_output)

    def _take(self, workload: Workload, rows: list[Row]) -> Generator:
        """An engine that has answered nothing yet; the first is the one whose start was timed."""
        if self._hidden is not None:
            self._hidden.lengths = [row.output for row in rows]
        generator, self._ready = self._ready, None
        if generator is None:
            gc.collect()  # the KV cache of the engine before this one
            if self._device.type == "cuda":
                torch.cuda.empty_cache()
            generator = self._generator(workload)
        return generator

    def _generator(self, workload: Workload) -> Generator:
        stopping: Stopping | None = self._hidden
        return Generator(
            self._model,
            SamplingSettings(max_tokens=workload.longest_output),
            self._engine,
            stop_ids=(),
            token_bytes=(),
            context_length=self._context,
            stopping=stopping,
        )

    def _measure_ceilings(self) -> Ceilings:
        """The device's rates for these weights: int4 ones may be computed in FP8, and a floor is the least time."""
        ceilings = measure_ceilings(self._device, self._model.dtype, fp8=self._settings.quant != "bf16")
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        return ceilings


def _device(name: str) -> torch.device:
    present = torch.cuda.is_available()
    if name == "cuda" and not present:
        raise ValueError("--device cuda: torch sees no GPU here; use --device cpu")
    return torch.device("cuda" if present and name != "cpu" else "cpu")


def _process_seconds() -> float:
    """Seconds since this process was started, Python's own start included."""
    # The 22nd field of /proc/self/stat; the second one, in parentheses, may hold spaces.
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
