"""What goes into an engine and what comes out: requests, completions, and the interface every kind of engine offers.

An engine works on token ids alone; rendering, tokenizing and decoding belong to others. Every request that is added
completes exactly once, with a result or with an error, in whatever order the engine finishes them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np

Failure = Literal["bad_prompt_ids", "blank_prompt", "nan_logits", "out_of_memory", "prompt_too_long"]
"""Why an engine has no result for a request."""


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt to answer, embed, classify or score."""

    id: int
    prompt: Sequence[int] | np.ndarray
    max_tokens: int = 0
    """Longest answer in tokens; 0 takes the engine's setting. Clipped to what the context has left."""
    key: bytes = b""
    """Digest of the prompt, which keys its samples; computed from the ids where empty."""
    occurrence: int = 0
    """How many equal prompts came before this one, so that each draws samples of its own."""
    scored_from: int = 0
    """Index of the first token that is scored; those before it are condition only."""


@dataclass(slots=True)
class Completion:
    """The one outcome of a request; which fields are set depends on the engine's kind.

    `token_ids` end before a stop id. Where a stop string matched, they end with the token that completed it, `stop`
    names it, and the caller cuts the decoded text at its first occurrence.
    """

    id: int
    token_ids: list[int] = field(default_factory=list)
    finish_reason: Literal["stop", "length"] | None = None
    stop: str | None = None
    error: tuple[str, str] | None = None
    """A `Failure`, or the code of a caller that asked no engine, and one line about it without text of the prompt."""
    probabilities: list[float] | None = None
    embedding: np.ndarray | None = None
    logprob: float | None = None
    scored: int = 0
    prompt_tokens: int = 0
    key: bytes = field(default=b"", compare=False)
    """The key of the prompt that was computed, which tells a result that was given to another request."""


class Engine(Protocol):
    """Requests in, completions out, one batch of the device at a time."""

    def add(self, requests: Iterable[Request]) -> None:
        """Queue requests, in the order in which they are to be started."""

    def step(self) -> list[Completion]:
        """Run one batch and return what it finished, which may be nothing."""

    @property
    def has_work(self) -> bool:
        """Whether a completion is still owed."""

    def statistics(self) -> dict[str, float]:
        """Counters since the engine was made."""


def run(engine: Engine, requests: Iterable[Request]) -> Iterator[Completion]:
    """Answer `requests`, yielding completions as they finish."""
    engine.add(requests)
    while engine.has_work:
        yield from engine.step()
