"""Runs planned steps on a GPU with everything that lives across steps resident there.

A line for each running sequence holds its block table, next position, last token and number of samples; one more line
is idle and fills batches up. A step that only decodes is one CUDA graph, head and sampling included: the host tells it
which lines take part, and only when that changed. A step with chunks of prompts is launched kernel by kernel; it is so
long that the host stays ahead. Steps are launched without reading those before them. The lines change last, and without
allocating: a launch that ran out of memory can be repeated, whole or in parts.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from engine.cuda.attention import invariant_splits, queries, splits, tiling
from engine.cuda.batch import Batch, Widened
from engine.cuda.decoder import FusedDecoder
from engine.cuda.elementwise import likeliest
from engine.cuda.graphs import Graphs
from engine.cuda.launched import LaunchedOnDevice
from engine.cuda.recipe import decoder
from engine.cuda.sampling import draw
from engine.cuda.sizes import Sizes
from engine.cuda.timing import device_seconds
from engine.paged import BLOCK, NULL_BLOCK, PagedKV
from engine.sampling import Sampler
from engine.settings import EngineSettings
from engine.step import Step

# What chunks attend to is converted from 8 bits if it takes at most so many bytes.
_WIDENED_BYTES = 256 << 20


class CudaRunner:
    """The model, its KV cache and the rows of the running sequences, on one GPU."""

    def __init__(
        self,
        model: PreTrainedModel,
        settings: EngineSettings,
        kv: PagedKV,
        sampler: Sampler,
        *,
        rows: int,
        blocks: int,
        graphs: bool = True,
    ) -> None:
        """rows: sequences that run at once, one line more than that is made; blocks: most blocks of one of them."""
        device = kv.device
        self._device = device
        self._kv = kv
        self._sampler = sampler
        self._idle = rows
        self._sizes = Sizes(rows)
        # Sizes that depend on measured times would make batches depend on them.
        self._times_sizes = not settings.shardwise
        self._invariant = settings.invariant
        self._decoder = decoder(model, settings, kv, blocks * BLOCK)
        self._processors = torch.cuda.get_device_properties(device).multi_processor_count
        shape = next(iter(kv.layers.values()))
        self._key_heads = shape.heads
        self._scaled = shape.scaled
        widest = max(layer.heads * layer.key_size for layer in kv.layers.values())
        self._most_widened = _WIDENED_BYTES // (2 * BLOCK * widest * model.dtype.itemsize)
        heads = model.config.get_text_config().num_attention_heads
        # Layers may differ in key heads; tiles fit the one that has the most queries for a key.
        self._queries = min(queries(heads, layer.heads, model.dtype) for layer in kv.layers.values())
        self._tables = torch.full((rows + 1, blocks), NULL_BLOCK, dtype=torch.int32, device=device)
        self._tables[rows] = kv.scratch
        self._last = torch.zeros(rows + 1, dtype=torch.int64, device=device)
        self._positions = torch.zeros(rows + 1, dtype=torch.int64, device=device)
        self._samples = torch.zeros(rows + 1, dtype=torch.int64, device=device)
        self._batch = torch.full((self._sizes.largest,), rows, dtype=torch.int64, device=device)
        self._tokens = torch.zeros(self._sizes.largest, dtype=torch.int64, device=device)
        self._batched: np.ndarray = np.empty(0, np.int64)
        self._graphs = Graphs(self._decode) if graphs else None
        self._launched: LaunchedOnDevice | None = None
        # KV on the host, by row.
        self._saved: dict[int, list[Tensor]] = {}

    def launch(self, step: Step) -> LaunchedOnDevice:
        """Start to compute the step."""
        with torch.inference_mode():
            launched = LaunchedOnDevice(step, self._launched)
            self.move(step)
            launched.give(self._mixed(step) if step.chunks else self._decoded(step))
        self._launched = launched
        return launched

    def foresee(self, step: Step) -> None:
        """Capture the graph of steps like this one, or else of those with some rows less."""
        if step.chunks or self._graphs is None:
            return
        longest, size = step.decode[0].written, self._sizes.fit(len(step.decode))
        with torch.inference_mode():
            if not self._graphs.foresee(self._key(size, longest)):
                below = self._sizes.below(size)
                if below is not None:
                    self._graphs.foresee(self._key(below, longest))

    def allocate(self, blocks: int) -> None:
        """Make the KV cache one of `blocks` blocks; what was in it is lost."""
        self._kv.allocate(blocks)
        self._tables[self._idle] = self._kv.scratch

    def release(self) -> None:
        """Give back what is kept for speed: graphs, and memory that torch holds unused."""
        torch.cuda.synchronize(self._device)
        if self._graphs is not None:
            self._graphs.drop()
        torch.cuda.empty_cache()

    def clear(self, blocks: Seq[int]) -> None:
        """Zero the KV of blocks that held NaN."""
        self._kv.clear(list(blocks))

    def profile(self, tokens: int) -> None:
        """Compute a step of `tokens` tokens as large as one gets, on the idle line, for its peak of memory.

        The kernels of later steps are compiled on the way, and batch sizes chosen.
        """
        reach = self._tables.shape[1] * BLOCK
        counts = np.array([min(reach, tokens - start) for start in range(0, tokens, reach)], np.int64)
        rows = np.full(len(counts), self._idle, np.int64)
        keep = np.resize(np.arange(tokens), self._idle)
        with torch.inference_mode():
            for parts in (1, 2):
                self._decode(1, BLOCK, parts)
            held = [[self._kv.scratch] * -(-int(count) // BLOCK) for count in counts]
            batch = self._pack(0, rows, np.zeros(len(counts), np.int64), counts, 1, held)
            logits = self._decoder.logits(torch.zeros_like(batch.rows), batch, self._upload(keep))
            self._sample(logits, torch.full_like(self._upload(keep), self._idle), self._upload(keep))
            if self._times_sizes and isinstance(self._decoder, FusedDecoder):
                products = self._decoder.products
                self._sizes.choose(lambda rows: device_seconds(products(rows)))

    def _key(self, size: int, longest: int) -> tuple[int, int, int]:
        """The arguments of _decode for so many rows, the longest of `longest` positions."""
        return size, *self._splits(longest, size)

    def _splits(self, longest: int, sequences: int) -> tuple[int, int]:
        """How decoding sequences, the longest of `longest` positions, share the device."""
        if self._invariant:
            return invariant_splits(longest)
        return splits(longest, sequences, self._key_heads, self._processors)

    def _decoded(self, step: Step) -> Tensor:
        rows = np.fromiter((s.row for s in step.decode), np.int64, len(step.decode))
        if not np.array_equal(rows, self._batched[: len(rows)]) or len(rows) != len(self._batched):
            filled = np.full(len(self._batch), self._idle, np.int64)
            filled[: len(rows)] = rows
            self._batch.copy_(self._upload(filled))
            self._batched = rows
        key = self._key(self._sizes.fit(len(rows)), step.decode[0].written)
        if self._graphs is None:
            self._decode(*key)
        else:
            self._graphs.run(key)
        return self._tokens[: len(rows)]

    def _decode(self, size: int, split: int, parts: int) -> None:
        """A token for each of the first `size` rows of the batch."""
        rows = self._batch[:size]
        batch = Batch(rows, self._positions[rows], self._tables, size, split, parts)
        logits = self._decoder.logits(self._last[rows], batch, None)
        tokens = self._sample(logits, rows, self._samples[rows])
        positions, samples = self._positions[rows] + 1, self._samples[rows] + 1
        self._keep(rows, tokens.clamp(min=0), samples)
        self._tokens[:size] = tokens
        self._positions[rows] = positions
        self._positions[self._idle :] = 0

    def _mixed(self, step: Step) -> Tensor:
        decode = len(step.decode)
        rows = np.array([s.row for s in step.decode] + [c.sequence.row for c in step.chunks], np.int64)
        starts = np.array([s.written - 1 for s in step.decode] + [c.start for c in step.chunks], np.int64)
        counts = np.array([1] * decode + [c.stop - c.start for c in step.chunks], np.int64)
        held = [c.sequence.blocks[: -(-c.stop // BLOCK)] for c in step.chunks]
        batch = self._pack(decode, rows, starts, counts, step.decode[0].written if decode else 1, held)
        prompts = [c.sequence.prompt[c.start : c.stop] for c in step.chunks]
        ids = torch.cat([self._last[batch.rows[:decode]], self._upload(np.concatenate(prompts).astype(np.int64))])
        ends = np.cumsum(counts) - 1
        sampled = np.array([True] * decode + [c.samples for c in step.chunks])
        logits = self._decoder.logits(ids, batch, self._upload(ends[sampled]))
        drawn = self._upload(rows[sampled])
        launched = np.array([s.launched for s in step.sampled], np.int64)
        tokens = self._sample(logits, drawn, self._upload(launched - 1))
        lines, positions = self._upload(rows), self._upload(starts + counts)
        self._keep(drawn, tokens.clamp(min=0), self._upload(launched))
        self._positions[lines] = positions
        return tokens

    def _keep(self, rows: Tensor, tokens: Tensor, samples: Tensor) -> None:
        self._sampler.see(rows, tokens)
        self._last[rows] = tokens
        self._samples[rows] = samples

    def _sample(self, logits: Tensor, rows: Tensor, index: Tensor) -> Tensor:
        sampler = self._sampler
        if sampler.greedy:
            return likeliest(logits)
        return draw(logits, sampler.settings, sampler.streams, sampler.seen, rows, index)

    def _pack(
        self, decode: int, rows: np.ndarray, starts: np.ndarray, counts: np.ndarray, longest: int, held: list[list[int]]
    ) -> Batch:
        """The batch of `decode` single tokens and then chunks.

        rows, starts, counts: int64, one for each of them; held: the blocks of each chunk up to its end.
        """
        first = np.cumsum(counts) - counts
        positions = np.arange(int(counts.sum())) - np.repeat(first - starts, counts)
        widened = self._widen(held)
        owners = rows[decode:] if widened is None else np.arange(len(held))
        tiles = self._upload(tiling(owners, starts[decode:], counts[decode:], decode, self._queries))
        split, parts = self._splits(longest, max(1, decode))
        at, of = self._upload(positions), self._upload(np.repeat(rows, counts))
        return Batch(of, at, self._tables, decode, split, parts, tiles, widened, self._invariant)

    def _widen(self, held: list[list[int]]) -> Widened | None:
        """The blocks of all chunks to convert, if the cache has 8 bits and they are not too many."""
        if not self._scaled or self._invariant:  # what is converted is rounded differently
            return None
        blocks, places = np.unique(np.concatenate([np.array(own, np.int32) for own in held]), return_inverse=True)
        if len(blocks) > self._most_widened:
            return None
        tables = np.zeros((len(held), max(map(len, held))), np.int32)
        start = 0
        for line, own in zip(tables, held, strict=True):
            line[: len(own)] = places[start : start + len(own)]
            start += len(own)
        return Widened(self._upload(blocks), self._upload(tables))

    def move(self, step: Step) -> None:
        """Copy KV between host and device, and bring block tables up to date. May be repeated."""
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
        width = max(len(sequence.blocks) for sequence in changed)
        tables = np.full((len(changed), width), NULL_BLOCK, np.int32)
        for line, sequence in zip(tables, changed, strict=True):
            line[: len(sequence.blocks)] = sequence.blocks
        self._tables[self._upload(np.array([s.row for s in changed], np.int64)), :width] = self._upload(tables)
        self._sampler.admit(step.admitted)

    def _upload(self, array: np.ndarray) -> Tensor:
        """The array on the device, without waiting for the work that is queued there."""
        return torch.from_numpy(array).pin_memory().to(self._device, non_blocking=True)
