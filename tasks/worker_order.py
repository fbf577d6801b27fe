"""What a worker process is told at its start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from tasks.canary import Expected
from tasks.settings import Settings


class WorkerOrder(BaseModel):
    """The worker's number, its run, settings and device, and what it must find."""

    model_config = ConfigDict(frozen=True)

    worker: int
    run: Path
    settings: Settings
    device: str
    threads: int
    expected: Expected = Expected()
    others: bool = False
    """Whether the run has other workers, which can repeat rows of this one."""

    def to_message(self) -> dict[str, Any]:
        """The order as the JSON object that the worker reads."""
        return self.model_dump(mode="json", by_alias=True)
