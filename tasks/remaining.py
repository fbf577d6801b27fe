"""What is left of a run, and what that weighs: a row with a long prompt or answer takes longer than others.

Tokens in and out are weighed by what the cost model says that each of them takes; how fast the weights go down is
measured. Where the model said nothing, as in events of an older program, every sequence weighs the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Left:
    """What is not answered yet; tokens out are judged by the answers so far."""

    sequences: float
    input_tokens: float
    output_tokens: float


@dataclass(frozen=True, slots=True)
class Weights:
    """What a sequence, a token of a prompt and one of an answer weigh."""

    sequence: float
    input_token: float
    output_token: float

    @classmethod
    def read(cls, planned: Mapping[str, Any]) -> Weights:
        """The weights that the event `planned` gives."""
        if "token_seconds" not in planned:
            return BY_SEQUENCE
        of_input, of_output = planned["token_seconds"]
        return cls(0.0, float(of_input), float(of_output))

    def of(self, sequences: float, input_tokens: float, output_tokens: float) -> float:
        """What these weigh together."""
        return sequences * self.sequence + input_tokens * self.input_token + output_tokens * self.output_token


BY_SEQUENCE = Weights(1.0, 0.0, 0.0)
