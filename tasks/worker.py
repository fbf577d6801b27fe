"""A worker process: the model loaded once, shards in, committed results out.

It joins data and engine and never imports Prefect. The loop never waits while it has work: between two steps of the
engine it takes whatever shards have arrived, so that the next shard's rows join the batch while the last one's tail
finishes. A shard is committed here, by the process that computed it; the driver only learns that it is done. One that
the driver sends alone, since workers have died of it, may come to be computed in parts (tasks.shard_in_progress).

An engine that owes a result, or gives one that nobody asked for, mixes rows up: nothing more of it is committed.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from data.checkpoint import Checkpoint
from data.errors import InputError, RunError
from data.histogram import count_lengths
from data.ledger import commit_shard
from data.run_folder import RunFolder
from data.shards import Shard
from engine.child import Mailbox
from engine.importing import without_collections
from engine.request import Completion, Engine
from tasks.cache import job_answers
from tasks.canary import CanaryFailed, Found, check_canaries, rounds_alike
from tasks.repeats import Repeats
from tasks.results import ResultTable
from tasks.seat import SURVIVED
from tasks.shard_in_progress import ShardInProgress
from tasks.weights_guard import WeightsGuard
from tasks.worker_order import WorkerOrder

if TYPE_CHECKING:
    import pyarrow as pa

    from engine.weight_sums import WeightWatch
    from tasks.engines import BuiltEngine

PROGRESS_SECONDS = 0.5


class MixedUp(RunError):
    """The engine's results are not those of its requests."""


class Worker:
    """The loop of one worker process around an engine."""

    def __init__(
        self,
        mailbox: Mailbox,
        order: WorkerOrder,
        engine: Engine,
        table: ResultTable,
        context: int,
        watch: WeightWatch | None = None,
    ) -> None:
        self._mailbox, self._order, self._engine, self._table, self._context = mailbox, order, engine, table, context
        self._run = RunFolder.open(order.run)
        self._shards: dict[int, ShardInProgress] = {}  # by the id of its first request
        self._base_of: dict[int, int] = {}  # request id -> that
        self._next_id = 0
        self._counts = {"sequences": 0, "input_tokens": 0, "output_tokens": 0}
        self._told = 0.0
        self._shared = 0.0  # prompt tokens found in the KV cache, up to the last commit
        self._answers = job_answers(order.settings, self._run.identity, table.schema)
        self._guard = WeightsGuard(order.worker, watch, mailbox.send)
        exact = rounds_alike(order.settings, order.device, alike=order.expected.alike)
        self._repeats = Repeats(self._run, wanted=order.others, exact=exact)

    def serve(self) -> None:
        """Work until the driver is gone, or the engine has mixed up its results."""
        try:
            while True:
                self._check_owed()
                idle = not (self._engine.has_work or self._repeats.waiting)
                message = self._mailbox.receive(wait=idle)
                while message is not None:
                    if "repeat" in message:
                        self._repeats.ask(message["repeat"])
                    else:
                        self._accept(Shard.from_json(message))
                    message = self._mailbox.receive(wait=False)
                self._repeat()
                for completion in self._engine.step() if self._engine.has_work else ():
                    self._take(completion)
                self._tell()
        except MixedUp as error:
            if not self._shards:
                raise
            for work in self._shards.values():
                self._fail(work.shard, work, error)

    def _repeat(self) -> None:
        """Answer rows of other workers again; where batches depend on their shard alone, while there is none."""
        alone = self._order.settings.engine.shardwise
        while self._repeats.waiting and not (alone and self._engine.has_work):
            self._engine.add(self._repeats.requests())
            while alone and self._engine.has_work:
                for completion in self._engine.step():
                    self._take(completion)
            self._shared = self._engine.statistics().get("shared_tokens", 0.0) if alone else self._shared

    def _accept(self, shard: Shard) -> None:
        work = None
        with self._reported(shard):
            work = ShardInProgress(self._run, shard, self._order.worker, self._order.settings, self._context)
        if work is not None:
            base, self._next_id = self._next_id, self._next_id + shard.sequences
            self._shards[base] = work
            self._go_on(base)

    def _go_on(self, base: int) -> None:
        """Give the shard's next part to the engine, or commit it if there is none."""
        work = self._shards[base]
        with self._reported(work.shard, base):
            requests = work.next_part(base)
            if requests:
                self._base_of.update((request.id, base) for request in requests)
                self._engine.add(requests)
            else:
                self._finish(work)
                del self._shards[base]

    def _take(self, completion: Completion) -> None:
        if completion.id < 0:
            event = self._repeats.take(completion)
            if event is not None:
                self._mailbox.send(event)
            return
        base = self._base_of.pop(completion.id, None)
        if base is None:
            raise MixedUp("the engine gave a result that nobody asked for, or gave it twice")
        work = self._shards[base]
        try:
            work.take(completion.id - base, completion)
        except RunError as error:
            raise MixedUp(str(error)) from None
        if not work.trial:  # what is dropped brings nobody nearer to the end
            self._counts["sequences"] += 1
            self._counts["input_tokens"] += completion.prompt_tokens
            self._counts["output_tokens"] += len(completion.token_ids)
        if not work.missing:
            if work.trial:
                self._mailbox.send({"event": SURVIVED, "shard": work.shard.id})
            self._go_on(base)

    def _check_owed(self) -> None:
        if self._shards and not self._engine.has_work:
            work = next(iter(self._shards.values()))
            raise MixedUp(f"the engine has no result for {work.missing} sequences of shard {work.shard.id}")

    def _finish(self, work: ShardInProgress) -> None:
        self._guard.look(self._shards.values())
        left = self._leave_sample(work)
        completions = work.completions()
        results = self._table.build(completions, work.shard.sequences)
        before, self._shared = self._shared, self._engine.statistics().get("shared_tokens", 0.0)
        commit = commit_shard(
            self._run,
            work.shard,
            results,
            worker=self._order.worker,
            attempt=work.attempt,
            seconds=time.monotonic() - work.started,
            shared=int(self._shared - before),
        )
        self._guard.committed(work.shard.id)
        self._keep(work, results)
        for code, message in work.troubles():
            self._mailbox.send({"event": "warning", "code": code, "message": message})
        self._tell(at_once=True)
        self._mailbox.send(
            {
                "event": "done",
                "shard": work.shard.id,
                "rows": commit.rows,
                "ok": commit.ok,
                "errors": commit.errors,
                "input_tokens": commit.tokens["input"],
                "output_tokens": commit.tokens["output"],
                "lengths": count_lengths([len(c.token_ids) for c in completions if c.error is None]),
                "seconds": commit.seconds,
                "attempt": commit.attempt,
                **({"repeat": left} if left else {}),
            }
        )

    def _leave_sample(self, work: ShardInProgress) -> str | None:
        """Leave rows of the shard for another worker to repeat, if that is its turn: the name of the sample."""
        if not self._repeats.wants(work.shard.id):
            return None
        sample = self._repeats.sample(work.shard.id, work.questions(), work.results)
        return self._repeats.leave(
            work.shard.id, work.attempt, sample, [work.results[request.id] for request in sample]
        )

    def _keep(self, work: ShardInProgress, results: pa.Table) -> None:
        """Give a committed shard's answers to the cache, before the driver may end this process."""
        if self._answers is None:
            return
        try:
            self._answers.add(work.keys, work.occurrences, results)
        except OSError as error:  # a full disk costs later runs these answers, and this one nothing
            self._answers = None
            self._mailbox.send({"event": "warning", "message": f"answers are no longer kept in the cache: {error}"})

    @contextmanager
    def _reported(self, shard: Shard, base: int | None = None) -> Iterator[None]:
        """A full disk or a damaged prompt file is no fault of this process: another one would meet it too."""
        try:
            yield
        except (OSError, RunError) as error:
            with suppress(OSError):  # the log may lie on the disk that is full
                traceback.print_exc()
            self._fail(shard, self._shards.pop(base) if base is not None else None, error)

    def _fail(self, shard: Shard, work: ShardInProgress | None, error: Exception) -> None:
        with suppress(OSError, RunError):  # the record would be missed only by the counts of a later attempt
            if work is not None:
                work.survive()
        self._mailbox.send({"event": "failed", "shard": shard.id, "message": str(error)})

    def _tell(self, at_once: bool = False) -> None:
        now = time.monotonic()
        if at_once or now - self._told >= PROGRESS_SECONDS:
            self._told = now
            work = sum(self._engine.statistics().values())  # grows with every batch
            self._mailbox.send({"event": "progress", "work": work, **self._counts})


def build(order: WorkerOrder, warn: Callable[[str], object] | None = None) -> tuple[BuiltEngine, ResultTable, int]:
    """Load the model and make the engine of the job's kind, with the table that its results go into, and its context.

    `warn` is told what the user should know of the model.
    Raises InputError, ValueError or OSError for a model that cannot be loaded, CanaryFailed for one that must not be
    used.
    """
    with without_collections():
        import torch

        from engine.weights import open_weights

    settings, code = order.settings, order.settings.model.trust_remote_code
    checkpoint = Checkpoint.open(settings.model.path, settings.model.revision, code)
    with open_weights(checkpoint.weights, torch.device(order.device), ahead=not code) as weights:
        with without_collections():
            from tasks.engines import build_engine  # imports transformers, while the weights are read

        built = build_engine(settings, checkpoint, order.device, order.threads, weights)
        machine = torch.cuda.get_device_name(order.device) if order.device == "cuda" else order.expected.machine
        found = Found(checkpoint, built.engine, built.weights, order.device, machine)
        notice = check_canaries(RunFolder.open(order.run), settings, order.expected, found)
        if notice is not None and warn is not None:
            warn(notice)
    return built, ResultTable(settings, checkpoint.tokenizer(), built.embedding_size), checkpoint.context_length


def main(mailbox: Mailbox) -> None:
    """The process: read the order, load the model, work."""
    started = time.monotonic()
    order = WorkerOrder.model_validate(mailbox.receive(wait=True))
    try:
        built, table, context = build(order, lambda text: mailbox.send({"event": "warning", "message": text}))
    except (InputError, ValueError, OSError) as error:
        traceback.print_exc()
        mailbox.send({"event": "refused", "message": f"the model cannot be loaded: {error}"})
        return
    except CanaryFailed as failed:
        print(failed, flush=True)
        mailbox.send({"event": "refused", "message": str(failed), "canary": True, "certain": failed.certain})
        return
    from engine.footprint import weight_bytes
    from engine.weight_sums import WeightWatch

    watch = WeightWatch(built.model)
    seconds = time.monotonic() - started
    mailbox.send(
        {
            "event": "ready",
            "seconds": seconds,
            "device": order.device,
            "precision": built.precision,
            "weight_bytes": weight_bytes(built.model),
        }
    )
    Worker(mailbox, order, built.engine, table, context, watch).serve()
