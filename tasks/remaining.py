"""What is left of a run, and what that weighs: a row with a long prompt or answer takes longer than others.

Tokens in and out are weighed by what the cost model says that each of them takes; how fast the weights go down is
measured, and how long answers get is told by those that there are. Where the model said nothing, as in events of an
older program, every sequence weighs the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from tasks.meter import Counts


class Remaining:
    """Adds up what was planned and committed; amounts are (sequences, tokens in, tokens out)."""

    def __init__(self) -> None:
        self._weights: Counts = (1.0, 0.0, 0.0)
        self._planned = 0.0
        self._input = self._output = 0.0

    def plan(self, event: Mapping[str, Any]) -> None:
        """A window with these prompts was planned."""
        self._planned += event.get("sequence_tokens", 0)
        if "token_seconds" in event:
            self._weights = (0.0, *map(float, event["token_seconds"]))

    def commit(self, event: Mapping[str, Any]) -> None:
        """Answers with these tokens were committed."""
        self._input += event.get("input_tokens", 0)
        self._output += event.get("output_tokens", 0)

    def left(self, planned: int, answered: int, flying: Iterable[Counts]) -> Counts:
        """What is not answered yet.

        Args:
            planned: sequences in all.
            answered: those that are answered, committed or not.
            flying: what each worker has answered and not committed.
        """
        _, more_in, more_out = (sum(amounts) for amounts in zip((0.0, 0.0, 0.0), *flying, strict=True))
        left = planned - answered
        mean = (self._output + more_out) / answered if answered else 0.0
        return float(left), max(0.0, self._planned - self._input - more_in), left * mean

    def seconds(self, left: Counts, pace: Counts) -> float | None:
        """Seconds for what is left where a second brings `pace`; None where that is nothing."""
        weight, speed = (sum(w * n for w, n in zip(self._weights, amounts, strict=True)) for amounts in (left, pace))
        return weight / speed if speed > 0 else None
