"""Ten rows answered in this process: the shortest proof that model, prompt and input fit together."""

from __future__ import annotations

import time
from datetime import datetime
from itertools import islice

from data.checkpoint import Checkpoint
from data.dataset import Dataset
from data.errors import InputError
from data.prompts import Prompter
from engine.request import Request, run
from tasks.job_paths import dated
from tasks.placement import place, resolve
from tasks.settings import Settings

ROWS = 10


def dry_run(settings: Settings) -> str:
    """Answer the first ten rows of the configured input; says how many were answered and how fast.

    Raises:
        InputError: the model, the prompt or the input is wrong.
    """
    from tasks.engines import build_engine  # imports torch

    if not settings.input.path or not settings.model.path:
        raise InputError("a dry run needs input.path and model.path")
    settings = dated(settings, datetime.now())
    placement = place(settings)
    settings = resolve(settings, placement)
    checkpoint = Checkpoint.open(settings.model.path, settings.model.revision, settings.model.trust_remote_code)
    prompter = Prompter(settings.job, settings.input.on_too_long, checkpoint, settings.sampling.max_tokens)
    records = list(islice((r for chunk in Dataset.open(settings.input).chunks() for r in chunk.records), ROWS))
    prompts = prompter.encode(records)
    engine = build_engine(settings, checkpoint, placement.device, placement.threads).engine
    started = time.monotonic()
    requests = [
        Request(
            id=row,
            prompt=ids,
            max_tokens=min(settings.sampling.max_tokens, max(0, checkpoint.context_length - len(ids))),
            scored_from=prompts.scored_from[row] if prompts.scored_from is not None else 0,
        )
        for row, ids in enumerate(prompts.ids)
        if row not in prompts.errors
    ]
    answered = sum(completion.error is None for completion in run(engine, requests))
    seconds = time.monotonic() - started
    return f"{answered} of {len(records)} rows answered in {seconds:.1f} s on {placement.device}"
