"""From settings and a checkpoint to the engine of the job's kind: the one place that knows which serves which."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import torch
from transformers import PreTrainedModel

from data.checkpoint import Checkpoint
from data.prompts import Prompter
from engine.classify import Classifier
from engine.embed import Embedder
from engine.footprint import LEAST_POSITIONS, fits_unpacked
from engine.generation import Generator
from engine.model import load_model, resolve_dtype
from engine.precision import quantize
from engine.request import Engine
from engine.score import Scorer
from engine.weight_sums import weight_sum
from engine.weights import Source
from tasks.settings import Settings


class BuiltEngine(NamedTuple):
    """An engine with its model, the precision of its products, and the embedding size where the kind has one."""

    engine: Engine
    precision: str
    model: PreTrainedModel
    weights: str
    """The checksum of the weights as they were loaded, before any quantization."""
    embedding_size: int | None = None


def build_engine(
    settings: Settings,
    checkpoint: Checkpoint,
    device_name: str,
    threads: int,
    weights: Mapping[str, Source] | None = None,
) -> BuiltEngine:
    """Load the model on `device_name` ("cpu" or "cuda"), quantize it if that is asked for, and wrap it.

    `weights` are the checkpoint's tensors, if they are open already.
    """
    torch.set_num_threads(threads)
    device = torch.device(device_name)
    kind = settings.job.kind
    model = load_model(
        checkpoint.folder,
        dtype=resolve_dtype(settings.engine.dtype, device),
        device=device,
        trust_remote_code=settings.model.trust_remote_code,
        head=kind != "embed",
        weights=weights,
        packed=True,
    )
    loaded = weight_sum(model)
    positions = LEAST_POSITIONS if kind == "generate" else 0
    fits = partial(fits_unpacked, settings=settings.engine, positions=positions)
    precision = quantize(model, settings.model.quantization, fits)
    if kind == "embed":
        pooling, normalize = checkpoint.pooling()
        embedder = Embedder(model, settings.engine, pooling=pooling, normalize=normalize)
        return BuiltEngine(embedder, precision, model, loaded, int(model.config.hidden_size))
    if kind == "score":
        return BuiltEngine(Scorer(model, settings.engine), precision, model, loaded)
    if kind == "classify":
        prompter = Prompter(settings.job, settings.input.on_too_long, checkpoint, settings.sampling.max_tokens)
        choices = prompter.choices()
        classifier = Classifier(model, settings.engine, choices=choices, end_ids=checkpoint.stop_ids)
        return BuiltEngine(classifier, precision, model, loaded)
    generator = Generator(
        model,
        settings.sampling,
        settings.engine,
        stop_ids=checkpoint.stop_ids,
        token_bytes=checkpoint.tokenizer().token_bytes() if settings.sampling.stop else (),
        context_length=checkpoint.context_length,
    )
    return BuiltEngine(generator, precision, model, loaded)
