"""The engine for job.kind = "generate": continuous batching over a paged KV cache.

A step plans, launches and reads. On CUDA the next step is launched before the last one's tokens are read, so that the
device never waits for the host; on CPU there is nothing to overlap. Equal prompts in flight with greedy sampling are
answered by one sequence. In deterministic mode the engine forgets everything whenever it has answered everything, so
the completions of a shard follow from that shard alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from collections.abc import Sequence as Seq
from hashlib import blake2b

import numpy as np
from transformers import PreTrainedModel

from engine.blocks import BlockPool
from engine.kv_memory import kv_blocks, layer_shapes
from engine.lengths import AnswerLengths
from engine.model import steady_positions
from engine.paged import BLOCK, NULL_BLOCK, PagedKV
from engine.request import Completion, Request
from engine.runner import Launched, Runner
from engine.sampling import NOT_A_NUMBER, Sampler
from engine.scheduler import Scheduler
from engine.sequence import Sequence
from engine.settings import EngineSettings, SamplingSettings
from engine.stopping import Stopping

# Sequences of a batch. On CPU more of them gain nothing once the matrix products are large.
_ROWS = {"cpu": 256}
_ROWS_ON_GPU = 1024
# Float32 logits of a step, in bytes.
_LOGIT_BYTES = {"cpu": 256 << 20}
_LOGIT_BYTES_ON_GPU = 2 << 30


class Generator:
    """Answers requests with a decoder-only model. Not thread-safe."""

    def __init__(
        self,
        model: PreTrainedModel,
        sampling: SamplingSettings,
        engine: EngineSettings,
        *,
        stop_ids: Seq[int],
        token_bytes: Seq[bytes],
        context_length: int,
    ) -> None:
        """token_bytes: the bytes of each token id, needed for stop strings only. ValueError for an unsuitable model."""
        if sampling.stop and not token_bytes:
            raise ValueError("sampling.stop needs the bytes of the tokenizer's tokens")
        device = model.device
        self._sampling = sampling
        self._context = min(context_length, steady_positions(model) or context_length)
        self._vocabulary: int = model.config.get_text_config().vocab_size
        self._deterministic = device.type == "cpu" if engine.deterministic is None else engine.deterministic
        logit_bytes = _LOGIT_BYTES.get(device.type, _LOGIT_BYTES_ON_GPU)
        rows = min(_ROWS.get(device.type, _ROWS_ON_GPU), engine.max_batch_tokens)
        rows = max(1, min(rows, logit_bytes // (4 * self._vocabulary)))
        layers = layer_shapes(model, engine)
        blocks = kv_blocks(
            model,
            layers,
            engine.model_copy(update={"deterministic": self._deterministic}),
            rows=rows,
            context_length=self._context,
        )
        self._scheduler = Scheduler(
            BlockPool(blocks, BLOCK, NULL_BLOCK + 1),
            max_rows=rows,
            max_batch_tokens=engine.max_batch_tokens,
            lengths=None if self._deterministic else AnswerLengths(),
        )
        sampler = Sampler(sampling, rows=rows, vocabulary=self._vocabulary, device=device)
        kv = PagedKV(layers, blocks, device)
        self._runner = Runner(model, engine, kv, sampler, rows=rows, blocks=-(-self._context // BLOCK))
        self._stopping = Stopping(stop_ids, sampling.stop, token_bytes)
        self._ahead = 1 if device.type == "cuda" else 0
        self._launched: deque[Launched] = deque()
        self._refused: list[Completion] = []
        self._folds: dict[tuple[bytes, int], Sequence] = {}
        self._counts = dict.fromkeys(("steps", "prompt_tokens", "computed_tokens", "output_tokens", "folded"), 0)
        self._counts.update(kv_blocks=blocks, most_rows=0, completed=0, errors=0)

    @property
    def has_work(self) -> bool:
        """Whether a completion is still owed."""
        return self._scheduler.has_work or bool(self._refused)

    def add(self, requests: Iterable[Request]) -> None:
        """Queue requests behind earlier ones, long ones first. One that cannot be answered completes as an error."""
        queued: list[Sequence] = []
        for request in requests:
            prompt = np.asarray(request.prompt, dtype=np.int64)
            room = self._context - len(prompt)
            error = self._invalid(prompt, room)
            if error is not None:
                self._refuse(request, *error)
                continue
            key = request.key or blake2b(prompt.tobytes(), digest_size=16).digest()
            most = min(request.max_tokens or self._sampling.max_tokens, room)
            twin = self._folds.get((key, most))
            if twin is not None:
                twin.ids.append(request.id)
                self._counts["folded"] += 1
                continue
            sequence = Sequence([request.id], prompt, most, key, request.occurrence)
            if self._accepts(request, sequence):
                queued.append(sequence)
        self._scheduler.add(queued)

    def step(self) -> list[Completion]:
        """Launch one forward pass and return the completions of those read."""
        step = self._scheduler.plan()
        if step is not None:
            self._launched.append(self._runner.launch(step))
            self._counts["steps"] += 1
            self._counts["computed_tokens"] += step.tokens
            self._counts["most_rows"] = max(self._counts["most_rows"], self._scheduler.running)
        done, self._refused = self._refused, []
        # Without a step, reading tokens lets sequences go that sit out for want of memory.
        assert step is not None or done or self._launched, "nothing can run and nothing was launched"
        while len(self._launched) > (self._ahead if step is not None else 0):
            done += self._read(self._launched.popleft())
        if not self.has_work:
            self._idle()
        return done

    def statistics(self) -> dict[str, float]:
        """Counts since the engine was made: steps, tokens, folded requests, prompt tokens shared, swaps to the host."""
        counts = self._counts | {"shared_tokens": self._scheduler.shared_tokens, "swaps": self._scheduler.swaps}
        return {name: float(count) for name, count in counts.items()}

    def _invalid(self, prompt: np.ndarray, room: int) -> tuple[str, str] | None:
        if not len(prompt):
            return "blank_prompt", "the prompt has no tokens"
        if room < 1:
            return "prompt_too_long", f"the prompt has {len(prompt)} tokens, the context {self._context}"
        if prompt.min() < 0 or prompt.max() >= self._vocabulary:
            return "bad_prompt_ids", f"the prompt has a token id outside of the model's {self._vocabulary}"
        return None

    def _accepts(self, request: Request, sequence: Sequence) -> bool:
        if not self._scheduler.fits(sequence):
            total = len(sequence.prompt) + sequence.max_tokens
            message = f"{total} tokens of prompt and answer are more than the KV cache holds"
            self._refuse(request, "out_of_memory", message)
            return False
        if self._sampling.temperature == 0:
            self._folds[sequence.key, sequence.max_tokens] = sequence
        return True

    def _refuse(self, request: Request, code: str, message: str) -> None:
        self._counts["errors"] += 1
        self._refused.append(Completion(request.id, error=(code, message), prompt_tokens=len(request.prompt)))

    def _read(self, launched: Launched) -> list[Completion]:
        """Take in the tokens of a step; waits for the device."""
        done: list[Completion] = []
        for sequence, token in zip(launched.step.sampled, launched.tokens(), strict=True):
            if sequence.finished:
                continue  # one token too many, launched before the last one was read
            if token == NOT_A_NUMBER:
                self._runner.clear(self._scheduler.finish(sequence, spoiled=True))
                done += self._complete(
                    sequence, Completion(0, error=("nan_logits", "the model's logits are not numbers"))
                )
                continue
            reason = self._stopping.accept(sequence, token)
            if reason is not None:
                self._scheduler.finish(sequence)
                done += self._complete(sequence, Completion(0, finish_reason=reason, stop=sequence.stop))
        return done

    def _complete(self, sequence: Sequence, outcome: Completion) -> list[Completion]:
        """The outcome once for each request that the sequence answers."""
        self._folds.pop((sequence.key, sequence.max_tokens), None)
        tokens = [] if outcome.error else sequence.tokens
        self._counts["completed" if outcome.error is None else "errors"] += len(sequence.ids)
        self._counts["output_tokens"] += len(tokens)
        self._counts["prompt_tokens"] += len(sequence.prompt)
        return [
            Completion(
                request,
                list(tokens),
                outcome.finish_reason,
                outcome.stop,
                outcome.error,
                prompt_tokens=len(sequence.prompt),
            )
            for request in sequence.ids
        ]

    def _idle(self) -> None:
        self._launched.clear()
        if self._deterministic:
            self._scheduler.reset()
