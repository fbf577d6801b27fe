"""A worker's side of the cross-check: a few rows of some shards are answered again by another worker.

A device that computes wrongly, now and then or after hours, passes its canaries at the start. So of the first shard
that each worker process finishes, and then of one shard in two hundred by its id, a few sequences and the beginnings of
their answers are left in RUN/repeats before the shard is committed; another worker answers them again, compares, and
tells the driver how many differ. Where batches are to depend on their shard alone, it does so between two shards. The
folder holds prompts, as the rest of the run folder does, and each file goes once it was compared.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data.durable import write_file
from data.run_folder import RunFolder
from engine.request import Completion, Request
from tasks.likeness import Answer, differs, to_answer

FOLDER = "repeats"
OUT_OF_MEMORY = "out_of_memory"  # says nothing of how the device computes
SHARE = 200  # of so many shards one is repeated in part
_ROWS = 4
_TOKENS = 8
_TURNED = 1  # answers of a sample that may differ by chance where rounding turns hardly any
_TURNED_OFTEN = 2  # and where batches of other shapes turn some: rows of one template may do so together


@dataclass
class Repeated:
    """A sample of a shard that is being answered again."""

    name: str
    theirs: dict[int, Mapping[str, Any]]  # by request id
    ours: dict[int, Answer] = field(default_factory=dict)

    def differ(self, exact: bool) -> int:
        """How many answers differ by more than rounding, if that is more than rounding can turn; 0 if not."""
        tokens = _TOKENS if exact else 1
        pairs = [(self.ours[i], theirs) for i, theirs in self.theirs.items() if self.ours[i]["error"] != OUT_OF_MEMORY]
        count = sum(differs(ours, theirs, tokens=tokens, exact=exact) for ours, theirs in pairs)
        return count if count > (min(_TURNED, len(self.theirs) - 1) if exact else _TURNED_OFTEN) else 0


class Repeats:
    """What one worker leaves for others, and answers for others."""

    def __init__(self, run: RunFolder, *, wanted: bool, exact: bool) -> None:
        """wanted: whether there are other workers; exact: whether rounding turns no answer."""
        self._run, self._wanted, self._exact = run, wanted, exact
        self._first = True
        self._waiting: deque[str] = deque()
        self._repeated: dict[int, Repeated] = {}  # by request id
        self._next_id = -1  # a worker counts its own requests up from 0

    def wants(self, shard: str) -> bool:
        """Whether rows of a shard are to be left for another worker."""
        return self._wanted and (self._first or int(shard[:12], 16) % SHARE == 0)

    def sample(self, shard: str, asked: Sequence[Request], answers: Mapping[int, Completion]) -> list[Request]:
        """The requests of a shard that another worker is to answer again; mostly none.

        Rows with an error are left out: they may have failed at a later token than the repeat gets to, or for want of
        memory. A sample too small to tell a fault from rounding is not taken.
        """
        if not self.wants(shard):
            return []
        requests = [request for request in asked if answers[request.id].error is None]
        if len(requests) < (1 if self._exact else _ROWS):
            return []
        self._first = False
        return list(requests[:: max(1, len(requests) // _ROWS)][:_ROWS])

    def leave(self, shard: str, attempt: int, sample: Sequence[Request], answers: Sequence[Completion]) -> str | None:
        """Write down a sample with its answers. Its name, which tells of the attempt that it is from.

        None if there is none, or no room for it on the disk.
        """
        if not sample:
            return None
        name = f"{shard}-{attempt}"  # an attempt that was not committed may have left one that nobody compares
        rows = [
            {"request": _to_json(request), "answer": _beginning(answer)}
            for request, answer in zip(sample, answers, strict=True)
        ]
        content = json.dumps(rows).encode()
        try:
            new = write_file(self._run.tmp, _path(self._run, name), lambda file: file.write(content))
        except OSError:  # the shard's own results are what must be stored; a check that is not made costs nothing
            return None
        return name if new else None

    def ask(self, name: str) -> None:
        """Queue a sample that another worker has left."""
        self._waiting.append(name)

    @property
    def waiting(self) -> bool:
        return bool(self._waiting)

    def requests(self) -> list[Request]:
        """The requests of the next queued sample; empty if it is gone."""
        name = self._waiting.popleft()
        try:
            rows = json.loads(_path(self._run, name).read_bytes())
        except (OSError, ValueError):
            return []
        found = Repeated(name, {})
        requests = []
        for row in rows:
            requests.append(_request(self._next_id, row["request"]))
            found.theirs[self._next_id] = row["answer"]
            self._repeated[self._next_id] = found
            self._next_id -= 1
        return requests

    def take(self, completion: Completion) -> dict[str, Any] | None:
        """Take in an answer to one of `requests`; the event to tell once its sample is compared."""
        repeated = self._repeated.pop(completion.id)
        repeated.ours[completion.id] = _beginning(completion)
        if len(repeated.ours) < len(repeated.theirs):
            return None
        _path(self._run, repeated.name).unlink(missing_ok=True)
        shard, rows, differ = repeated.name.partition("-")[0], len(repeated.theirs), repeated.differ(self._exact)
        return {"event": "repeated", "shard": shard, "sample": repeated.name, "rows": rows, "differ": differ}


def _path(run: RunFolder, name: str) -> Path:
    return run.path / FOLDER / f"{name}.json"


def _beginning(completion: Completion) -> Answer:
    answer = to_answer(completion)
    return answer | {"tokens": answer["tokens"][:_TOKENS]}


def _to_json(request: Request) -> dict[str, Any]:
    return {
        "prompt": [int(token) for token in request.prompt],
        "max_tokens": request.max_tokens,
        "key": request.key.hex(),
        "occurrence": request.occurrence,
        "scored_from": request.scored_from,
    }


def _request(number: int, row: Mapping[str, Any]) -> Request:
    return Request(
        id=number,
        prompt=row["prompt"],
        max_tokens=min(row["max_tokens"], _TOKENS),
        key=bytes.fromhex(row["key"]),
        occurrence=row["occurrence"],
        scored_from=row["scored_from"],
    )
