"""Processes that share the calibration rows of one quantization: which packs are whose, and sums over all of them.

Every process has the same model and goes through the same layers; what differs is the packs that it runs. Statistics
and losses are sums over packs, so they are added up over the processes, always in the processes' order, and all of them
come to the same decisions by the same arithmetic. The exchange is gloo's over loopback, of tensors and of JSON, never
of pickles. A process that is alone exchanges nothing.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


class Team:
    """This process among `size`, the others found by way of the file `meeting`, which must not be there yet."""

    def __init__(self, rank: int = 0, size: int = 1, meeting: Path | None = None, patience: float = 6 * 3600.0) -> None:
        """patience: seconds for which the slowest of the others is waited for."""
        self.rank, self.size = rank, size
        if size > 1:
            assert meeting is not None
            loopback = [name for _, name in socket.if_nameindex() if name.startswith("lo")]
            os.environ["GLOO_SOCKET_IFNAME"] = loopback[0]  # nobody else is to reach it
            dist.init_process_group(
                "gloo",
                init_method=f"file://{meeting.absolute()}",
                rank=rank,
                world_size=size,
                timeout=timedelta(seconds=patience),
            )

    @property
    def first(self) -> bool:
        """Whether it is this process that writes and tells."""
        return self.rank == 0

    def share(self, parts: Sequence[T]) -> list[T]:
        """Those of `parts` that are this process's to run."""
        return list(parts[self.rank :: self.size])

    def add(self, tensor: Tensor) -> Tensor:
        """The sum of the processes' tensors, of one shape and dtype."""
        parts = self._all(tensor)
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        return total

    def largest(self, tensor: Tensor) -> Tensor:
        """The largest of the processes' tensors, value by value."""
        return torch.stack(self._all(tensor)).amax(0)

    def told(self, value: Any) -> Any:
        """What the first process says, as JSON has it; what the others say is of no matter."""
        if self.size == 1:
            return value
        content = bytearray(json.dumps(value).encode() if self.first else b"")
        length = torch.tensor([len(content)])
        dist.broadcast(length, 0)
        text = torch.zeros(int(length), dtype=torch.uint8)
        if self.first:
            text = torch.frombuffer(content, dtype=torch.uint8)
        dist.broadcast(text, 0)
        return json.loads(bytes(text.tolist()))

    def _all(self, tensor: Tensor) -> list[Tensor]:
        if self.size == 1:
            return [tensor]
        here = tensor.detach().cpu().contiguous()
        parts = [torch.empty_like(here) for _ in range(self.size)]
        dist.all_gather(parts, here)
        return [part.to(tensor.device) for part in parts]
