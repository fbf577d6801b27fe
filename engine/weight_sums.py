"""A checksum of a model's weights as they lie on the device, exact to the bit.

The bits of each tensor are added up as integers, modulo 2^64, so a single flipped bit changes the sum, whether the
disk, the page cache, a copy or the device's memory flipped it. It reads the weights once at the speed of memory: 15 GB
take 5 ms on an H100 and a few seconds on a CPU. A permutation inside one tensor goes unseen; canary answers are for
faults of that sort.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_SHARE = 0.005  # of a worker's time, at most, for looking again


def weight_sum(model: nn.Module) -> str:
    """The checksum over all weights by name, in hexadecimal.

    Quantized layers keep theirs in buffers, so it takes what a checkpoint would hold: caches of a model are not saved.
    """
    tensors: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in sorted(model.state_dict(keep_vars=True).items()):
        if isinstance(tensor, Tensor):  # modules may save other things, too
            tensors.setdefault(id(tensor), (name, tensor))  # tied ones once
    with torch.inference_mode():
        named = [(name, _sum(tensor)) for name, tensor in tensors.values()]
        values = torch.stack([total for _, total in named]).tolist() if named else []
    lines = "".join(f"{name} {value}\n" for (name, _), value in zip(named, values, strict=True))
    return hashlib.sha256(lines.encode()).hexdigest()


class WeightWatch:
    """Whether the weights are still those that the watch began with; looks again as often as its share allows."""

    def __init__(self, model: nn.Module, clock: Callable[[], float] = time.monotonic) -> None:
        self._model, self._clock = model, clock
        self.looked = True
        """Whether the last answer came of a look."""
        began = clock()
        self._sum = weight_sum(model)
        self._cost, self._looked_at = clock() - began, clock()

    def intact(self) -> bool:
        """False once the weights have changed; True without a look if the last one was a short while ago."""
        began = self._clock()
        self.looked = began - self._looked_at >= self._cost / _SHARE
        if not self.looked:
            return True
        same = weight_sum(self._model) == self._sum
        self._looked_at = self._clock()
        self._cost = self._looked_at - began
        return same


def _sum(tensor: Tensor) -> Tensor:
    """int64 scalar: the sum of the bits of a tensor, as integers of the widest size that its place allows."""
    flat = tensor.detach().contiguous().view(-1)
    size = flat.element_size()
    wide = 8 // size
    if wide > 1 and flat.numel() % wide == 0 and flat.storage_offset() % wide == 0 and flat.data_ptr() % 8 == 0:
        return flat.view(torch.int64).sum()
    return flat.view(_INTEGERS[size]).sum(dtype=torch.int64)
