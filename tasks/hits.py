"""What a run need not compute: equal prompts, answers of earlier runs, and beginnings of prompts computed once.

Two levels. Static hits are sequences that never reach a worker: prompts folded onto an equal one, and those that the
cache answers. Predicted hits are prompt tokens of the others whose KV was there already, since the plan brings prompts
together that begin alike. Sequences and tokens only add up in one unit, so the hit rate is in prompt tokens: (static +
predicted) / all. Everything follows from the plan and the commits.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from data.ledger import Commit
from data.window import Window


@dataclass(frozen=True, slots=True)
class Hits:
    """Of the windows planned and the shards committed so far."""

    folded: int
    """Rows that share the answer of another row's equal prompt."""
    cached: int
    """Sequences whose answer an earlier run has computed."""
    static_tokens: int
    """Prompt tokens of both."""
    predicted_tokens: int
    """Prompt tokens of computed sequences whose KV was there already."""
    total_tokens: int
    """Prompt tokens of every row."""

    @property
    def static(self) -> int:
        """Rows and sequences that no worker has computed."""
        return self.folded + self.cached

    @property
    def rate(self) -> float:
        """Share of the prompt tokens that were not computed, 0 to 1."""
        saved = self.static_tokens + self.predicted_tokens
        return min(1.0, saved / self.total_tokens) if self.total_tokens else 0.0

    def to_json(self) -> dict[str, Any]:
        """As the manifest has them."""
        return {**asdict(self), "rate": round(self.rate, 6)}


def count_hits(windows: Iterable[Window], commits: Mapping[str, Commit]) -> Hits:
    """The hits of a run; `commits` by shard id."""
    folded = cached = computed = total = shared = 0
    for window in windows:
        folded += window.folded
        total += window.input_tokens
        for shard in window.shards:
            commit = commits.get(shard.id)
            if commit is not None and commit.cached:
                cached += shard.sequences
            else:
                computed += shard.input_tokens
                shared += commit.tokens.get("shared", 0) if commit is not None else 0
    return Hits(folded, cached, total - computed, shared, total)
