"""One shard in the hands of a worker, between its arrival and its commit.

As a rule it is one part: all of its sequences at once. A shard whose workers have died comes in several, each computed
for itself, with a durable record before it and another when it was survived: trials first, whose results are dropped,
then what is left to compute (`data.suspect` says which). Sequences that kill their workers get an error here.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterator

from data.attempts import read_attempts, record_attempt, record_end
from data.error_codes import Code
from data.errors import RunError
from data.run_folder import RunFolder
from data.shards import Shard, read_prompts
from data.suspect import judge
from engine.request import Completion, Request
from tasks.settings import Settings

_TROUBLES = {
    Code.NAN_LOGITS: "the model gave logits that are not numbers",
    Code.WORKER_DIED: "worker processes died",
}


class ShardInProgress:
    """The sequences of a shard by slot, what is being computed of them, and what came of them."""

    def __init__(self, run: RunFolder, shard: Shard, worker: int, settings: Settings, context: int) -> None:
        """`context` is the model's in tokens. RunError: the shard's prompts are not there, or nothing can be done."""
        self.shard, self.started = shard, time.monotonic()
        self.results: dict[int, Completion] = {}
        self.poisoned: frozenset[int] = frozenset()
        self.attempt = 0
        """The number of the attempt under way; 0 before the first."""
        self._run, self._worker, self._settings, self._context = run, worker, settings, context
        prompts = read_prompts(run, shard.id)
        if len(prompts) != shard.sequences:
            raise RunError(f"shard {shard.id} has {len(prompts)} prompts instead of {shard.sequences}")
        self.keys, self.occurrences = prompts.keys, prompts.occurrences
        self._prompts = prompts
        self._parts: deque[range] | None = None
        self._trial = False
        self._wanted: set[int] = set()

    @property
    def trial(self) -> bool:
        """Whether the results of the part under way are dropped."""
        return self._trial

    @property
    def missing(self) -> int:
        """Sequences of the part under way that have no result yet."""
        return len(self._wanted)

    def next_part(self, base: int) -> list[Request]:
        """Record an attempt and return its requests, with ids that count from `base` by slot; none when all is done.

        RunError: nothing that could be tried is left.
        """
        self._close_trial()
        if self._parts is None:
            verdict = judge(self.shard.id, self.shard.sequences, read_attempts(self._run, self.shard.id))
            if verdict.trial is not None:
                return self._begin(verdict.trial, base, trial=True)
            self.poisoned = verdict.poisoned
            self.results.update((slot, self._error(slot)) for slot in self.poisoned)
            self._parts = deque(verdict.parts)
        while self._parts:
            if requests := self._begin(self._parts.popleft(), base):
                return requests
        return []

    def take(self, slot: int, completion: Completion) -> None:
        """Take one result. RunError: it is not one that was asked for."""
        if slot not in self._wanted or completion.key != self.keys[slot]:
            raise RunError(f"the engine gave a result for another row than slot {slot} of shard {self.shard.id}")
        self._wanted.remove(slot)
        if not self._trial:
            self.results[slot] = completion

    def questions(self) -> list[Request]:
        """A request for each sequence that was computed, with its slot as id."""
        return [self._request(slot, 0) for slot in range(self.shard.sequences) if slot not in self.poisoned]

    def completions(self) -> list[Completion]:
        """The results by slot."""
        return [self.results[slot] for slot in range(self.shard.sequences)]

    def troubles(self) -> Iterator[tuple[str, str]]:
        """What somebody should look into, since the run goes on without it: error codes, with a message each."""
        codes = Counter(completion.error[0] for completion in self.results.values() if completion.error is not None)
        for code, what in _TROUBLES.items():
            if found := codes[code]:
                count = len(self.results)
                yield code.value, f"{what} for {found} of {count} sequences of shard {self.shard.id} ({code.value})"

    def survive(self) -> None:
        """Record that the attempt under way did not end its worker, although it gives no commit."""
        if self.attempt:
            record_end(self._run, self.shard.id, self.attempt, "survived")

    def _close_trial(self) -> None:
        if self._trial:
            self.survive()
            self._trial = False

    def _begin(self, part: range, base: int, *, trial: bool = False) -> list[Request]:
        slots = [slot for slot in part if slot not in self.poisoned]
        if slots:
            self.attempt = record_attempt(self._run, self.shard.id, self._worker, part, trial=trial)
            self._trial, self._wanted = trial, set(slots)
        return [self._request(slot, base) for slot in slots]

    def _request(self, slot: int, base: int) -> Request:
        prompts = self._prompts
        return Request(
            id=base + slot,
            prompt=prompts.ids[slot],
            max_tokens=min(self._settings.sampling.max_tokens, max(0, self._context - len(prompts.ids[slot]))),
            key=prompts.keys[slot],
            occurrence=prompts.occurrences[slot],
            scored_from=prompts.scored_from[slot] if prompts.scored_from is not None else 0,
        )

    def _error(self, slot: int) -> Completion:
        message = "computing it alone ended two worker processes"
        return Completion(-1, error=(Code.WORKER_DIED.value, message), prompt_tokens=len(self._prompts.ids[slot]))
