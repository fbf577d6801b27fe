"""What a benchmark measures, and the command line that says so. A wrong option is told before torch is loaded."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args

from pydantic import Field, ValidationError, field_validator

from engine.settings import Section
from engine.workloads import DEFAULT_ROWS, Workload, find_shape

_DESCRIPTION = """\
Measure the engine on fixed workloads with random weights, end-of-sequence ignored.

Prints one JSON object a line for each workload and repeat, and one with "median": true after the repeats of each.
startup_s counts from the start of the process until the engine is ready. in_tok_s counts the tokens of all rows, also
of those that are answered together. floor_s is what the unique work takes at the rates measured on the device just
before (copy_bytes_s, matrix_flop_s), and of_floor is floor_s / s. host_share is the share of the steps' time in which
the device waited for the host. The exit status is 1 if a row did not get exactly its tokens.
"""


class BenchSettings(Section):
    """What is measured."""

    workloads: tuple[str, ...] = Field(
        tuple(Workload(kind, rows).name for kind, rows in DEFAULT_ROWS.items()),
        min_length=1,
        description="decode, label or prefill, with a number of rows and a seed: decode:1024, label:4096:seed3.",
    )
    model: str = Field("r1-7b", description="A named shape (r1-7b, qwen3-0.6b), a config.json, or a folder with one.")
    quant: Literal["bf16", "fp8", "fp8-2:4", "awq", "awq-packed"] = Field(
        "bf16",
        description="The weights; bf16 is float32 on CPU, fp8-2:4 is fp8 with half of the MLP's zero, awq-packed is "
        "awq kept in 4 bits.",
    )
    kv_dtype: Literal["auto", "fp8"] = Field("auto", description="Number format of the KV cache; auto is the model's.")
    lengths: Literal["known", "hidden"] = Field(
        "known", description="Whether the engine is told the length of each answer, or only the longest there can be."
    )
    deterministic: Literal["auto", "batch-invariant"] = Field(
        "auto", description="As engine.deterministic; auto is that if it is not set."
    )
    device: Literal["auto", "cuda", "cpu"] = Field("auto", description="auto is the GPU if there is one.")
    memory_fraction: float = Field(0.9, gt=0, le=1, description="Share of the device's memory to use.")
    max_batch_tokens: int = Field(8192, ge=16, description="Most tokens of one forward pass.")
    repeat: int = Field(3, ge=1, description="Runs of each workload, every one on a new engine.")
    trace: Path | None = Field(
        None, description="Write some 30 steps from the middle of one more run of the first workload here (Perfetto)."
    )

    @field_validator("workloads")
    @classmethod
    def _known_workloads(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(Workload.parse(name).name for name in names)

    @field_validator("model")
    @classmethod
    def _known_model(cls, model: str) -> str:
        find_shape(model)
        return model

    @field_validator("trace")
    @classmethod
    def _writable(cls, trace: Path | None) -> Path | None:
        if trace is not None and not trace.absolute().parent.is_dir():
            raise ValueError(f"there is no folder {trace.absolute().parent}")
        return trace


def parse(arguments: Sequence[str], program: str, epilog: str | None = None) -> BenchSettings:
    """The settings on a command line. A wrong one ends the process with one line and status 2; --help with 0.

    `epilog` ends the help.
    """
    parser = argparse.ArgumentParser(
        program,
        usage="%(prog)s [WORKLOAD ...] [options]",
        description=_DESCRIPTION,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    for name, field in BenchSettings.model_fields.items():
        text = field.description or ""
        if name == "workloads":
            parser.add_argument(
                name, nargs="*", metavar="WORKLOAD", help=f"{text} Default: {' '.join(field.default)}", default=[]
            )
            continue
        choices = "|".join(choice for choice in get_args(field.annotation) if isinstance(choice, str))
        default = "" if field.default is None else f" Default: {field.default}"
        flag = "--" + name.replace("_", "-")
        parser.add_argument(flag, metavar=choices or "VALUE", help=text + default, default=argparse.SUPPRESS)
    given: dict[str, Any] = {name: value for name, value in vars(parser.parse_args(arguments)).items() if value != []}
    try:
        return BenchSettings(**given)
    except ValidationError as error:
        _refuse(parser, error)


def _refuse(parser: argparse.ArgumentParser, error: ValidationError) -> NoReturn:
    problem = error.errors()[0]
    name = str(problem["loc"][0]).replace("_", "-")
    message = problem["msg"].removeprefix("Value error, ")
    where = "" if name == "workloads" else f"--{name}: "
    parser.error(f"{where}{message[0].lower()}{message[1:]}")
