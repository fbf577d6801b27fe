"""Pools of real worker processes that do what a test says."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.supervisor import Child
from tasks.deadline import Deadline
from tasks.pool import WorkerPool

ROOT = Path(__file__).parent.parent.parent
MakePool = Callable[..., WorkerPool]


@pytest.fixture
def events() -> list[dict[str, Any]]:
    return []


@pytest.fixture
def make_pool(tmp_path: Path, events: list[dict[str, Any]]) -> Iterator[MakePool]:
    pools: list[WorkerPool] = []

    def make(
        size: int = 2,
        target: str = "main",
        stall: float = 60.0,
        retries: int = 2,
        depth: int = 1,
        tokens: float = 0.0,
        deadline: Deadline | None = None,
        growth: float = math.inf,
    ) -> WorkerPool:
        def start(index: int) -> Child:
            name = f"tests.tasks.obedient_worker:{target}"
            return Child(name, environment={"PYTHONPATH": str(ROOT)}, log=tmp_path / f"{index}.log", beats=True)

        pool = WorkerPool(
            size,
            depth,
            start,
            tokens=tokens,
            growth=growth,
            deadline=deadline,
            stall_timeout=stall,
            retries=retries,
            on_event=events.append,
        )
        pools.append(pool)
        return pool

    yield make
    for pool in pools:
        pool.close()


def work(number: int, do: str = "work", **more: Any) -> dict[str, Any]:
    return {"id": f"s{number}", "do": do, **more}


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)
