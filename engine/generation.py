"""The engine for job.kind = "generate": continuous batching over a paged KV cache.

A step plans, launches and reads. On CUDA the next step is launched before the last one's tokens are read, so that the
device never waits for the host; on CPU there is nothing to overlap. Equal prompts in flight with greedy sampling are
answered by one sequence. A step that does not fit the memory is computed in parts, and later ones are smaller. In
deterministic mode the engine forgets everything whenever it has answered everything, so the completions of a shard
follow from that shard alone; memory that runs out changes the steps of its shard, and with them at most the rounding of
its logits. In batch-invariant mode a row's logits do not depend on what is computed beside it: on a GPU the kernels see
to that, on CPU each sequence runs alone and shares nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from collections.abc import Sequence as Seq
from hashlib import blake2b

import numpy as np
from transformers import PreTrainedModel

from engine.blocks import BlockPool
from engine.execution import Launched, execution
from engine.lengths import AnswerLengths
from engine.model import steady_positions
from engine.pace import Pace
from engine.paged import BLOCK, NULL_BLOCK
from engine.recovery import Recovery, Shortage
from engine.request import Completion, Failure, Request
from engine.sampling import NOT_A_NUMBER
from engine.scheduler import Scheduler
from engine.sequence import Sequence
from engine.settings import EngineSettings, SamplingSettings
from engine.step import Step
from engine.stopping import Stopping


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
        stopping: Stopping | None = None,
        graphs: bool = True,
    ) -> None:
        """token_bytes: the bytes of each token id, needed for stop strings only. ValueError for an unsuitable model.

        stopping: in place of one made from stop_ids; graphs: whether decode steps on a GPU are CUDA graphs.
        """
        if sampling.stop and not token_bytes:
            raise ValueError("sampling.stop needs the bytes of the tokenizer's tokens")
        self._sampling = sampling
        self._context = min(context_length, steady_positions(model) or context_length)
        self._vocabulary: int = model.config.get_text_config().vocab_size
        if engine.deterministic is None:
            engine = engine.model_copy(update={"deterministic": model.device.type == "cpu"})
        self._shardwise = engine.shardwise
        made = execution(model, sampling, engine, self._context, graphs=graphs)
        self._scheduler = Scheduler(
            BlockPool(made.blocks, BLOCK, NULL_BLOCK + 1),
            max_rows=made.rows,
            max_batch_tokens=engine.max_batch_tokens,
            lengths=None if self._shardwise else AnswerLengths(),
            least_prefill=made.least_prefill,
            most_wait=made.most_wait,
            share=made.shares,
        )
        self._runner = made.runner
        self._recovery = Recovery(made.runner, tokens=engine.max_batch_tokens, rows=made.rows)
        # A device that works beside the host tells how long its steps take.
        paced = made.ahead > 0 and not self._shardwise
        self._pace = Pace(engine.max_batch_tokens) if paced else None
        self._stopping = stopping or Stopping(stop_ids, sampling.stop, token_bytes)
        self._ahead = made.ahead
        self._launched: deque[Launched] = deque()
        self._refused: list[Completion] = []
        self._folds: dict[tuple[bytes, int], Sequence] = {}
        self._counts = dict.fromkeys(("steps", "prompt_tokens", "computed_tokens", "output_tokens", "folded"), 0)
        self._counts.update(kv_blocks=made.blocks, most_rows=0, kv_positions_peak=0, completed=0, errors=0)
        self._counts.update(out_of_memory=0, small_steps=0)
        self._seconds = {"device_s": 0.0, "idle_s": 0.0}

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
        step = self._scheduler.plan(None if self._pace is None else self._pace.size)
        done, self._refused = self._refused, []
        if step is not None:
            self._count(step)
            launched, shortage = self._recovery.launch(step)
            if shortage is not None:
                done += self._shrink(shortage)
            self._launched.append(launched)
        # Without a step, reading tokens lets sequences go that sit out for want of memory.
        assert step is not None or done or self._launched, "nothing can run and nothing was launched"
        while len(self._launched) > (self._ahead if step is not None else 0):
            done += self._read(self._launched.popleft())
        if not self.has_work:
            self._idle()
        return done

    def statistics(self) -> dict[str, float]:
        """Counts since the engine was made: steps, tokens, folded requests, prompt tokens shared, swaps to the host.

        out_of_memory: steps that did not fit; small_steps: steps with prompts that were planned smaller than they may
        be, because that is or may be faster.
        """
        counts = self._counts | {"shared_tokens": self._scheduler.shared_tokens, "swaps": self._scheduler.swaps}
        return {name: float(count) for name, count in counts.items()} | self._seconds

    def _invalid(self, prompt: np.ndarray, room: int) -> tuple[Failure, str] | None:
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

    def _refuse(self, request: Request, code: Failure, message: str) -> None:
        self._counts["errors"] += 1
        self._refused.append(
            Completion(request.id, error=(code, message), prompt_tokens=len(request.prompt), key=request.key)
        )

    def _count(self, step: Step) -> None:
        counts = self._counts
        counts["steps"] += 1
        counts["computed_tokens"] += step.tokens
        counts["most_rows"] = max(counts["most_rows"], self._scheduler.running)
        counts["kv_positions_peak"] = max(counts["kv_positions_peak"], self._scheduler.held)
        if self._pace is not None and step.chunks:
            counts["small_steps"] += self._pace.size < self._pace.most

    def _shrink(self, shortage: Shortage) -> list[Completion]:
        """Plan smaller steps after one that ran out of memory, and give up what cannot be computed."""
        self._counts["out_of_memory"] += 1
        self._scheduler.lower(shortage.tokens, shortage.rows)
        if self._pace is not None and shortage.tokens < self._pace.most:
            self._pace = Pace(shortage.tokens)
        done: list[Completion] = []
        if shortage.lost:
            # An answer may have ended in a step before.
            while self._launched:
                done += self._read(self._launched.popleft())
        for sequence in shortage.lost:
            if not sequence.finished:
                self._scheduler.finish(sequence, spoiled=True)
                done += self._complete(
                    sequence, Completion(0, error=("out_of_memory", "no memory is left for even one token of it"))
                )
        return done

    def _read(self, launched: Launched) -> list[Completion]:
        """Take in the tokens of a step; waits for the device."""
        done: list[Completion] = []
        tokens = launched.tokens()
        busy, idle = launched.seconds()
        self._seconds["device_s"] += busy
        self._seconds["idle_s"] += idle
        if self._pace is not None:
            decoding = len(launched.step.decode)
            self._pace.observe(launched.step.tokens - decoding, decoding, busy)
        for sequence, token in zip(launched.step.sampled, tokens, strict=True):
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
                key=sequence.key,
            )
            for request in sequence.ids
        ]

    def _idle(self) -> None:
        self._launched.clear()
        if self._shardwise:
            self._scheduler.reset()
            self._recovery.reset()
