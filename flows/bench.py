"""The bench flow: the engine's throughput on fixed workloads, as a table artifact, on a schedule or after an update."""

from __future__ import annotations

import json
import sys
from typing import Any

from prefect import flow
from prefect.artifacts import create_table_artifact

from engine.bench_process import bench_in_child
from engine.bench_settings import BenchSettings
from tasks.lessons import learn_bench
from tasks.planning_rate import measure_planning


@flow(name="bench", persist_result=False)
def bench(settings: BenchSettings = BenchSettings()) -> list[dict[str, Any]]:  # noqa: B008 - frozen, makes the form
    """Measure the engine, then planning, and return the figures, which are also printed, a JSON object a line."""
    lines = []
    for figures in bench_in_child(settings, lambda text: print(text, file=sys.stderr, flush=True)):
        print(json.dumps(figures), flush=True)
        learn_bench(settings, figures)
        lines.append(figures)
    lines.append(measure_planning())
    print(json.dumps(lines[-1]), flush=True)
    create_table_artifact(lines, key="bench", description=f"Throughput of {settings.model}, {settings.quant}")
    return lines
