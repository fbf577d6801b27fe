"""How much KV cache fits beside a model: measured by computing the largest step there can be, not guessed."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from engine.cuda.runner import CudaRunner
from engine.paged import BLOCK, LayerShape, PagedKV
from engine.sampling import Sampler
from engine.settings import EngineSettings, SamplingSettings

# Of the peak of a step's own memory: graphs have a pool beside the ordinary one, and both have gaps.
_SPARE = 2


def sized_runner(
    model: PreTrainedModel,
    sampling: SamplingSettings,
    settings: EngineSettings,
    layers: dict[int, LayerShape],
    *,
    rows: int,
    widest: int,
    graphs: bool,
) -> tuple[CudaRunner, int]:
    """A runner whose KV cache fills settings.memory_fraction of the device, and the blocks of that cache.

    Raises ValueError where not even one block fits.
    """
    device = model.device
    vocabulary = model.config.get_text_config().vocab_size
    sampler = Sampler(sampling, rows=rows + 1, vocabulary=vocabulary, device=device)
    kv = PagedKV(layers, 1, device)
    runner = CudaRunner(model, settings, kv, sampler, rows=rows, blocks=widest, graphs=graphs)
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    base = torch.cuda.memory_allocated(device)
    runner.profile(settings.max_batch_tokens)
    torch.cuda.synchronize(device)
    step = torch.cuda.max_memory_allocated(device) - base
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(device)
    # Batches that must be repeatable get the same cache whatever else the device holds.
    others = 0 if settings.shardwise else total - free - torch.cuda.memory_reserved(device)
    budget = int(total * settings.memory_fraction) - others - base - _SPARE * step
    block = BLOCK * sum(shape.bytes for shape in layers.values())
    if budget < block:
        raise ValueError(
            f"no memory is left for the KV cache: the device has {total >> 20} MiB, the model takes {base >> 20} MiB, "
            f"a step {step >> 20} MiB; raise engine.memory_fraction or lower engine.max_batch_tokens"
        )
    blocks = budget // block
    runner.allocate(blocks)
    return runner, blocks
