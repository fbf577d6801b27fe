"""Runs a planned step on the model: packs its tokens, attends over the paged KV cache, samples.

What lives across steps lives on the device, a line for each running sequence: its block table and its last token. A
step is therefore launched without reading the one before it, and the tokens it gives are read when the caller likes.
These lines change last, and without allocating: a launch that ran out of memory can be repeated, whole or in parts.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from engine.attention import attending
from engine.kv_memory import autocast
from engine.paged import BLOCK, NULL_BLOCK, PagedAttention, PagedKV
from engine.sampling import Sampler
from engine.sequence import Sequence
from engine.settings import EngineSettings
from engine.step import Step


class Launched:
    """A step that was computed."""

    def __init__(self, step: Step, tokens: Tensor) -> None:
        self.step = step
        self._tokens = tokens

    def tokens(self) -> list[int]:
        """The tokens of step.sampled."""
        tokens: list[int] = self._tokens.tolist()
        return tokens

    def seconds(self) -> tuple[float, float]:
        """Nothing runs beside the host here."""
        return 0.0, 0.0


class Runner:
    """The model, its KV cache and the rows of the running sequences."""

    def __init__(
        self, model: PreTrainedModel, settings: EngineSettings, kv: PagedKV, sampler: Sampler, *, rows: int, blocks: int
    ) -> None:
        """rows: sequences that run at once; blocks: most blocks that one of them holds."""
        self._model = model
        self._settings = settings
        self._device = kv.device
        self._kv = kv
        self._sampler = sampler
        self._tables = torch.full((rows, blocks), NULL_BLOCK, dtype=torch.int64, device=kv.device)
        self._last = torch.zeros(rows, dtype=torch.int64, device=kv.device)
        # KV on the host, by row.
        self._saved: dict[int, list[Tensor]] = {}

    def launch(self, step: Step) -> Launched:
        """Start to compute the step."""
        self.move(step)
        decode = len(step.decode)
        rows = np.array([s.row for s in step.decode] + [c.sequence.row for c in step.chunks], np.int64)
        counts = np.array([1] * decode + [c.stop - c.start for c in step.chunks], np.int64)
        lengths = np.array([s.written for s in step.decode], np.int64)
        positions = np.concatenate([lengths - 1] + [np.arange(c.start, c.stop) for c in step.chunks])
        prompts = [c.sequence.prompt[c.start : c.stop] for c in step.chunks]
        at = self._upload(positions)
        owners = self._upload(np.repeat(rows, counts))
        ids = torch.cat([self._last[owners[:decode]], self._upload(np.concatenate([np.empty(0, np.int64), *prompts]))])
        lines = self._tables[owners, at // BLOCK] * BLOCK + at % BLOCK
        # Longest first, so the first row says how much of the tables is needed.
        tables = self._tables[owners[:decode], : -(-int(lengths[0]) // BLOCK) if decode else 0]
        ends = np.cumsum(counts) - 1
        keep = ends[[True] * decode + [c.samples for c in step.chunks]]
        attention = PagedAttention(self._kv, tables, lengths, step.chunks, lines)
        with torch.inference_mode(), autocast(self._model, self._settings), attending(attention):
            logits = self._model(
                input_ids=ids[None], position_ids=at[None], use_cache=False, logits_to_keep=self._upload(keep)
            ).logits[0]
        return Launched(step, self._sample(step.sampled, logits))

    def foresee(self, step: Step) -> None:
        """Nothing is prepared here."""

    def release(self) -> None:
        """Nothing is kept for speed here."""

    def clear(self, blocks: list[int]) -> None:
        """Zero the KV of blocks that held NaN."""
        self._kv.clear(blocks)

    def _sample(self, sampled: list[Sequence], logits: Tensor) -> Tensor:
        rows = self._upload(np.array([s.row for s in sampled], np.int64))
        index = self._upload(np.array([s.launched - 1 for s in sampled], np.int64))
        with torch.inference_mode():
            tokens = self._sampler.sample(logits.float(), rows, index)
            last = tokens.clamp(min=0)
            self._sampler.see(rows, last)
            self._last[rows] = last
        return tokens

    def move(self, step: Step) -> None:
        """Copy KV between host and device, and bring rows and block tables up to date. May be repeated."""
        for swap in step.swapped_out:
            if swap.sequence.row not in self._saved:
                self._saved[swap.sequence.row] = self._kv.save(swap.blocks)
        for swap in step.swapped_in:
            saved = self._saved.get(swap.sequence.row)
            if saved is not None:
                self._kv.restore(swap.blocks, [part[swap.first :] for part in saved])
                del self._saved[swap.sequence.row]
        changed = [*step.admitted, *(s.sequence for s in step.swapped_in), *(sequence for sequence, _ in step.grown)]
        if not changed:
            return
        tables = np.full((len(changed), self._tables.shape[1]), NULL_BLOCK, np.int64)
        for line, sequence in zip(tables, changed, strict=True):
            line[: len(sequence.blocks)] = sequence.blocks
        self._tables[self._upload(np.array([s.row for s in changed], np.int64))] = self._upload(tables)
        self._sampler.admit(step.admitted)

    def _upload(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self._device)
