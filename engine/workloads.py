"""The fixed workloads of throughput comparisons, and the two model shapes they are run on.

Rows are token ids made from a seed, so no tokenizer is in the measurement and everybody who runs "decode:1024" computes
the same rows. Three kinds stand for three jobs: `decode` for long answers, `label` for a table with one instruction and
repeated rows, `prefill` for scoring and embedding. Plain Python; what is measured on them belongs to engine.bench.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Literal, get_args

Kind = Literal["decode", "label", "prefill"]

DEFAULT_ROWS: dict[Kind, int] = {"decode": 1024, "label": 4096, "prefill": 2048}
VOCABULARY = 150_000
"""Token ids are below this where the model's vocabulary is not smaller: below those that mean something special."""
_FIRST_ID = 100
_LONGEST_OUTPUT: dict[Kind, int] = {"decode": 1024, "label": 48, "prefill": 1}
_INSTRUCTION = 512

SHAPES: dict[str, dict[str, Any]] = {
    # The architecture of DeepSeek-R1-Distill-Qwen-7B.
    "r1-7b": {
        "model_type": "qwen2",
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10_000.0,
        "tie_word_embeddings": False,
        "hidden_act": "silu",
    },
    "qwen3-0.6b": {
        "model_type": "qwen3",
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151936,
        "max_position_embeddings": 40960,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000.0,
        "tie_word_embeddings": True,
        "hidden_act": "silu",
    },
}
"""config.json entries of the named model shapes."""


class WrongAnswer(RuntimeError):
    """A row did not get exactly its tokens, so that what was measured means nothing."""


def find_shape(model: str) -> dict[str, Any] | Path:
    """The entries of a named shape, else the config.json that `model` names or is the folder of.

    Raises ValueError if there is none.
    """
    if model in SHAPES:
        return SHAPES[model]
    path = Path(model)
    file = path / "config.json" if path.is_dir() else path
    if not file.is_file():
        raise ValueError(f"model {model!r} is none of {', '.join(SHAPES)}, nor a config.json or a folder with one")
    return file


@dataclass(frozen=True, slots=True)
class Row:
    """One prompt, and how many tokens its answer has."""

    prompt: list[int]
    output: int


@dataclass(frozen=True, slots=True)
class Workload:
    """`count` rows of a kind."""

    kind: Kind
    count: int
    seed: int = 0

    @classmethod
    def parse(cls, text: str) -> Workload:
        """Read "decode", "decode:1024" or "label:4096:seed3". ValueError for anything else."""
        found = re.fullmatch(r"([a-z]+)(?::([1-9]\d*))?(?::seed(\d+))?", text)
        kind = next((kind for kind in get_args(Kind) if found and found[1] == kind), None)
        if found is None or kind is None:
            raise ValueError(
                f"workload {text!r} is not KIND, KIND:ROWS or KIND:ROWS:seedN with KIND one of "
                f"{', '.join(get_args(Kind))}, for instance decode:1024 or label:4096:seed3"
            )
        return cls(kind, int(found[2] or DEFAULT_ROWS[kind]), int(found[3] or 0))

    @property
    def name(self) -> str:
        """What `parse` reads, in full; the default seed is left out."""
        return f"{self.kind}:{self.count}" + (f":seed{self.seed}" if self.seed else "")

    @property
    def longest_output(self) -> int:
        """The most tokens an answer can have: all that is known where the lengths are hidden."""
        return _LONGEST_OUTPUT[self.kind]

    def rows(self, vocabulary: int = VOCABULARY) -> list[Row]:
        """The rows, with token ids below `vocabulary`. ValueError where that leaves too few ids."""
        if vocabulary <= _FIRST_ID:
            raise ValueError(f"a vocabulary of {vocabulary} is too small: the workloads use token ids from {_FIRST_ID}")
        return _MAKERS[self.kind](_Dice(self.seed, vocabulary), self.count)


class _Dice:
    """The random numbers of a workload. Their order of use is fixed: the rows depend on it."""

    def __init__(self, seed: int, vocabulary: int) -> None:
        self.random = Random(seed)
        self._vocabulary = vocabulary

    def ids(self, count: int) -> list[int]:
        return [self.random.randrange(_FIRST_ID, self._vocabulary) for _ in range(count)]

    def row(self, prompt: tuple[int, int], output: tuple[int, int]) -> Row:
        ids = self.ids(self.random.randint(*prompt))
        return Row(ids, self.random.randint(*output))


def _decode(dice: _Dice, count: int) -> list[Row]:
    """Prompts and outputs of 100 to 1,024 tokens."""
    return [dice.row((100, 1024), (100, 1024)) for _ in range(count)]


def _label(dice: _Dice, count: int) -> list[Row]:
    """One instruction before rows of 32 to 256 tokens, outputs of 16 to 48; a fifth of the rows are exact repeats."""
    instruction = dice.ids(_INSTRUCTION)
    own = [dice.row((32, 256), (16, 48)) for _ in range(count - count // 5)]
    rows = [Row(instruction + row.prompt, row.output) for row in own]
    rows += [dice.random.choice(rows) for _ in range(count // 5)]
    dice.random.shuffle(rows)
    return rows


def _prefill(dice: _Dice, count: int) -> list[Row]:
    """Prompts of 64 to 1,024 tokens, one token of output."""
    # An output of (1, 1) would draw a random number that the fixed rows do not.
    return [Row(dice.ids(dice.random.randint(64, 1024)), 1) for _ in range(count)]


_MAKERS = {"decode": _decode, "label": _label, "prefill": _prefill}
