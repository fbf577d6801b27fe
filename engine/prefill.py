"""The engine of the kinds of job that one forward pass answers: embed, score and classify.

Requests wait until the ones in hand are done; then all that wait are packed together, so that the packs follow from the
requests added to an idle engine and from nothing else. A step launches the next pack before it reads the results of the
last one, so that a GPU has work while the host reads. What a pack's hidden states mean is left to the subclass.

A pack that does not fit the device's memory is packed again with half the tokens; a single prompt that does not fit is
an error completion. The lower budget stays for later requests, except in deterministic mode, where packs must not
follow from what ran before.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from engine.faults import out_of_memory
from engine.model import resolve_dtype
from engine.packing import Pack, common_beginning, pack
from engine.request import Completion, Failure, Request
from engine.settings import EngineSettings
from engine.trie import Trie
from engine.trunk import ModuleTrunk, Trunk

# What waits for a launched pack's results and gives its completions.
Answer = Callable[[], list[Completion]]

# On CPU, activations beyond the caches cost more than a larger product gains: a pack of 8192 tokens took 1.17 times as
# long a token as one of 2048 (MiniLM, one thread). But a stem is computed again in each pack, so it stays a small part.
CPU_TOKENS = 2048
CPU_STEMS = 16

# Names that learned position embeddings have in transformers' models.
POSITION_TABLES = ("position_embeddings", "wpe", "embed_positions")


class PrefillEngine(ABC):
    """Answers each request from one pass over its prompt; a subclass says how."""

    causal_only: ClassVar[bool] = True  # whether an encoder cannot do this kind of job

    def __init__(self, model: PreTrainedModel, settings: EngineSettings, trie: Trie | None = None) -> None:
        """ValueError where the model's attention does not suit the kind of job."""
        self.model = model
        self.device: torch.device = model.device
        self.trie = trie
        self._settings = settings
        self._budget = settings.max_batch_tokens
        self._amp = settings.amp and model.dtype == torch.float32
        self._amp_dtype = resolve_dtype("auto", self.device) if self.device.type == "cuda" else torch.bfloat16
        self._causal = is_causal(model)
        if self.causal_only and not self._causal:
            raise ValueError(f"{type(model).__name__} is an encoder, which only job.kind = embed can use")
        first_position, self._positions = learned_positions(model)
        self._trunk = fastest_trunk(model, settings, first_position)
        self._waiting: list[Request] = []
        self._requests: list[Request] = []
        self._packs: deque[Pack] = deque()
        self._refused: list[Completion] = []
        self._launched: Answer | None = None
        self._counts = dict.fromkeys(("requests", "packs", "prompt_tokens", "computed_tokens", "out_of_memory"), 0)

    @abstractmethod
    def compute(self, pack: Pack, requests: Sequence[Request], hidden: Tensor) -> Answer:
        """Queue the work on hidden [T, D] and return what waits for it; requests stand in the pack's order."""

    def add(self, requests: Iterable[Request]) -> None:
        """Take requests; each prompt has at least one token."""
        for request in requests:
            assert len(request.prompt) > 0, f"request {request.id} has an empty prompt"
            self._waiting.append(request)

    @property
    def has_work(self) -> bool:
        """Whether a request is still unanswered."""
        return bool(self._waiting or self._packs or self._refused or self._launched)

    def step(self) -> list[Completion]:
        """Launch one pack; return the completions of the one before it."""
        if not self._packs and self._waiting:
            if self._settings.shardwise:
                self._budget = self._settings.max_batch_tokens
            self._requests, self._waiting = self._admit(self._waiting), []
            self._plan(range(len(self._requests)))
        finish, self._launched = self._launched, None
        if self._packs:
            self._launched = self._launch(self._packs.popleft())
        refused, self._refused = self._refused, []
        return refused + (finish() if finish else [])

    def statistics(self) -> dict[str, float]:
        """Counts since the engine was made. computed_tokens: of all packs, trie nodes included and stems once."""
        return {name: float(count) for name, count in self._counts.items()}

    def _admit(self, requests: Sequence[Request]) -> list[Request]:
        """The requests that the model has positions for; the others become error completions."""
        admitted = []
        height = self.trie.height if self.trie else 0
        for request in requests:
            if self._positions is not None and len(request.prompt) + height > self._positions:
                tokens = f"{len(request.prompt)} tokens" + (f" and a choice of {height}" if height else "")
                message = f"the prompt has {tokens}; the model has {self._positions} positions"
                self._refused.append(failure(request, "prompt_too_long", message))
            else:
                admitted.append(request)
        return admitted

    def _plan(self, indices: Iterable[int]) -> None:
        """Pack the requests in hand that `indices` names."""
        chosen = list(indices)
        prompts = [np.asarray(self._requests[index].prompt, np.int64) for index in chosen]
        budget = self._budget
        if self.device.type == "cpu":
            stem = common_beginning(prompts) if self._causal else 0
            budget = min(budget, max(CPU_TOKENS, CPU_STEMS * stem))
        for planned in pack(prompts, budget, trie=self.trie, share=self._causal):
            own = tuple(chosen[index] for index in planned.indices)
            self._packs.append(Pack(planned.prompts, own, planned.stem, planned.trie))

    def _launch(self, pack: Pack) -> Answer | None:
        """Queue one pack's forward pass; None after it had to be packed again."""
        requests = [self._requests[index] for index in pack.indices]
        try:
            answer = self._forward(pack, requests)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            answer = None
        if answer is None:
            self._shrink(pack)
            return None
        self._counts["packs"] += 1
        self._counts["requests"] += len(requests)
        self._counts["prompt_tokens"] += sum(len(request.prompt) for request in requests)
        self._counts["computed_tokens"] += pack.tokens
        return answer

    @torch.inference_mode()
    def _forward(self, pack: Pack, requests: Sequence[Request]) -> Answer:
        with torch.autocast(self.device.type, self._amp_dtype, enabled=self._amp):
            return self.compute(pack, requests, self._trunk.hidden(pack))

    def _shrink(self, failed: Pack) -> None:
        """Pack the failed pack and those behind it again with half its tokens, or give up on its only prompt."""
        self._counts["out_of_memory"] += 1
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        if len(failed.prompts) == 1:
            request = self._requests[failed.indices[0]]
            message = f"a forward pass of {failed.tokens} tokens does not fit the memory of {self.device}"
            self._refused.append(failure(request, "out_of_memory", message))
            return
        self._budget = failed.tokens // 2
        behind = [index for later in self._packs for index in later.indices]
        self._packs.clear()
        self._plan(sorted([*failed.indices, *behind]))


def failure(request: Request, code: Failure, message: str) -> Completion:
    """The completion of a request that has no result."""
    return Completion(id=request.id, prompt_tokens=len(request.prompt), key=request.key, error=(code, message))


def to_host(tensor: Tensor) -> Callable[[], np.ndarray]:
    """Queue the copy of a device tensor; the call returned waits for this copy alone and gives the array."""
    if tensor.device.type != "cuda":
        return tensor.numpy
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    host.copy_(tensor, non_blocking=True)
    done = torch.cuda.Event()  # type: ignore[no-untyped-call]
    done.record()

    def wait() -> np.ndarray:
        done.synchronize()
        return host.numpy()

    return wait


def fastest_trunk(model: PreTrainedModel, settings: EngineSettings, first_position: int) -> Trunk:
    """The forward pass of a model on its device; first_position as of `learned_positions`."""
    if model.device.type == "cuda":
        from engine.cuda.recipe import fused_trunk  # Triton is there where a GPU is

        fused = fused_trunk(model, settings)
        if fused is not None:
            return fused
    return ModuleTrunk(model, first_position)


def is_causal(model: PreTrainedModel) -> bool:
    """Whether tokens see only those before them, in every layer."""
    flags = (getattr(module, "is_causal", None) for module in model.modules())
    return all(flag is not False for flag in flags) and getattr(model.config, "is_causal", None) is not False


def learned_positions(model: PreTrainedModel) -> tuple[int, int | None]:
    """The position of a prompt's first token, and how many positions the model's table holds (None: no table).

    RoBERTa and its kin give padding the table's row `padding_idx` and count from the next.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and name.rpartition(".")[2] in POSITION_TABLES:
            first = 0 if module.padding_idx is None else module.padding_idx + 1
            return first, int(model.config.max_position_embeddings) - first
    return 0, None
