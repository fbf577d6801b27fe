"""A process that measures a model by tasks of lm-eval, EleutherAI's evaluation harness, and tells what came of them.

The model is loaded as for the likelihoods, whatever format its weights have, and computes with transformers' attention,
since the harness pads its batches. Prompts, few-shot examples and metrics are the tasks' own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import BaseModel, ConfigDict

from engine.child import Mailbox
from tasks.likelihood_process import load
from tasks.settings import Settings

USUAL_TOKENS = 1024
"""Tokens that a text of a task is taken to have, to tell how many fit a batch."""


class HarnessOrder(BaseModel):
    """What the process is to do: `settings.evaluate.tasks` with `settings.model`."""

    model_config = ConfigDict(frozen=True)

    settings: Settings
    device: str
    threads: int

    def to_message(self) -> dict[str, Any]:
        """The order as the JSON object that the process reads."""
        return self.model_dump(mode="json", by_alias=True)


def main(mailbox: Mailbox) -> None:
    """The process: read the order, load the model, measure, tell."""
    order = HarnessOrder.model_validate(mailbox.receive(wait=True))
    settings = order.settings
    import torch
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoTokenizer

    torch.set_num_threads(order.threads)
    model = load(settings, order.device)
    model.set_attn_implementation("sdpa")
    code = settings.model.trust_remote_code
    tokenizer = AutoTokenizer.from_pretrained(settings.model.path, trust_remote_code=code, local_files_only=True)
    batch = max(1, settings.engine.max_batch_tokens // USUAL_TOKENS)
    harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch)
    for name in ("_model_call", "_model_generate"):
        setattr(harness, name, _telling(getattr(harness, name), mailbox))
    found = simple_evaluate(model=harness, tasks=list(settings.evaluate.tasks), log_samples=False)
    mailbox.send({"results": found["results"], "done": True})


def _telling(compute: Callable[..., Any], mailbox: Mailbox) -> Callable[..., Any]:
    """The same, which says before each batch that work goes forward."""

    def told(*args: Any, **options: Any) -> Any:
        mailbox.send({"progress": True})
        return compute(*args, **options)

    return told
