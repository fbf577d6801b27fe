"""All settings of a run in one frozen object.

The sections that data and engine read live beside their readers; this module adds the sections of the tasks themselves
and composes them. `reference` lists every setting with its description for whoever prints them. Files, environment and
precedence are the business of tasks.configuration.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, Field, field_validator, model_validator

from data.settings import InputSettings, JobSettings, OutputSettings, Section, no_credentials
from engine.quantizer_settings import BITS, QuantizerSettings
from engine.settings import EngineSettings, ModelSettings, SamplingSettings
from tasks.moment import parse


class WorkersSettings(Section):
    """The processes that hold the model."""

    dp_degree: int = Field(4, ge=1, description="Model replicas side by side, one device each.")
    tp_degree: int = Field(1, ge=1, description="Devices that share one replica.")
    backend: Literal["local", "ray"] = Field("local", description="Processes of this machine, or Ray actors.")
    retries: int = Field(3, ge=0, description="Deaths in a row without a finished shard before a worker is given up.")
    stall_timeout: float = Field(600.0, gt=0, description="Seconds without progress after which a worker is replaced.")
    hourly_price: float = Field(0.0, ge=0, description="Price of one device for an hour, for estimates and job.budget.")


class CacheSettings(Section):
    """Answers of earlier runs."""

    enabled: bool = Field(False, description="Take answers from earlier runs, and keep those of this one.")
    path: str | None = Field(None, description="Folder of the cache; ~/.cache/overnight/answers if not set.")
    max_bytes: int = Field(10 * 2**30, ge=0, description="Size above which the answers longest unused are dropped.")


class ScheduleSettings(Section):
    """When to stop, and what goes first."""

    deadline: str | None = Field(
        None,
        description="A duration from the start (8h, 1h30m), or an ISO time with a zone: what is answered is published.",
    )
    priority: str | None = Field(
        None, description="A column with a number, or an expression over columns; higher values are answered first."
    )

    urgency: int = Field(
        0, description="Of runs that want the same devices of a machine the more urgent one has them first."
    )
    overlap: Literal["wait", "refuse", "share"] | None = Field(
        None,
        description="What to do while a run of the same urgency has the devices: wait, refuse to start, or share them "
        "if that one shares too. If not set, wait for GPUs and share a CPU.",
    )

    @field_validator("deadline", mode="before")
    @classmethod
    def _time_of_toml(cls, deadline: Any) -> Any:
        return deadline.isoformat() if isinstance(deadline, datetime) else deadline

    @field_validator("deadline")
    @classmethod
    def _is_a_time(cls, deadline: str | None) -> str | None:
        if deadline is not None:
            parse(deadline)
        return deadline


class QuantizeSettings(Section):
    """How `overnight quantize` makes a smaller checkpoint, and when that is good enough."""

    method: Literal["awq", "rtn", "fp8", "int8"] = Field(
        "awq", description="awq and rtn (round to nearest) give int4 weights; fp8 and int8 round activations too."
    )
    bits: int | None = Field(None, description="Bits of a weight; if not set 4 for awq and rtn, 8 for fp8 and int8.")
    group_size: int = Field(128, description="Inputs of an int4 group, which share a scale: 128, 64 or 32.")
    symmetric: bool = Field(False, description="Int4 levels lie around zero, without zero points.")
    static_activations: bool = Field(
        False, description="fp8: one calibrated activation scale a layer, not one a token."
    )
    sparsity: Literal["none", "2:4"] = Field(
        "none", description="fp8: 2:4 sets two of every four inputs of the MLP's weights to zero, for faster prefill."
    )
    dataset: str | None = Field(
        None, description="Rows to calibrate with, as input.path takes them; the job's own rows if not set."
    )
    rows: int = Field(128, ge=8, description="Rows to calibrate with, drawn at random.")
    max_tokens: int = Field(512, ge=1, description="Tokens of a calibration row; longer ones are cut.")
    output: str | None = Field(
        None, description="Folder of the new checkpoint; beside the model, or in ./models for a hub id, if not set."
    )
    gate: bool = Field(True, description="Compare with the original on rows not calibrated with, and refuse a loss.")
    max_loss: float = Field(
        0.02,
        ge=0,
        description="Share of its accuracy that the model may lose, 0 or more; where no right answers are known, by "
        "which its perplexity may grow.",
    )
    promote: str | None = Field(
        None, description="A pointer (overnight promote) to move to the checkpoint once it is published."
    )

    @model_validator(mode="after")
    def _supported(self) -> QuantizeSettings:
        needed = BITS[self.method]
        if self.bits not in (None, needed):
            raise ValueError(
                f"quantize.bits = {self.bits} is not supported by quantize.method = {self.method!r}: use {needed}"
            )
        if self.group_size not in (32, 64, 128):
            raise ValueError(f"quantize.group_size = {self.group_size} is not supported: use 128, 64 or 32")
        if self.static_activations and self.method != "fp8":
            raise ValueError(f"quantize.static_activations is for quantize.method = 'fp8', not {self.method!r}")
        if self.sparsity != "none" and self.method != "fp8":
            raise ValueError(f"quantize.sparsity is for quantize.method = 'fp8', not {self.method!r}")
        return self

    @field_validator("dataset")
    @classmethod
    def _no_credentials(cls, dataset: str | None) -> str | None:
        return None if dataset is None else no_credentials(dataset)

    def quantizer(self) -> QuantizerSettings:
        """What the engine is told of it."""
        names = ("group_size", "symmetric", "static_activations", "sparsity")
        given = {name: getattr(self, name) for name in names}
        return QuantizerSettings.model_validate({"quant_method": self.method, "bits": BITS[self.method], **given})


class EvaluateSettings(Section):
    """How `overnight evaluate` measures model.path."""

    reference: str | None = Field(
        None, description="A checkpoint folder or a hub id to compare model.path with; loaded as it is stored."
    )
    rows: int = Field(
        1000, ge=1, description="Rows of the input to measure on, drawn at random; all where it has fewer."
    )
    skip: int = Field(
        0, ge=0, description="Rows of the same draw to leave out first, because something was fitted to them."
    )
    pattern: str | None = Field(None, description="A regular expression that a whole answer has to match.")
    slices: tuple[str, ...] = Field((), description="Columns for whose most frequent values figures are given apart.")

    tasks: tuple[str, ...] = Field(
        (), description="Tasks of lm-eval to measure besides: names, or YAML files. Needs the extra `harness`."
    )

    @field_validator("pattern")
    @classmethod
    def _is_an_expression(cls, pattern: str | None) -> str | None:
        if pattern is not None:
            import regex

            try:
                regex.compile(pattern)
            except regex.error as error:
                raise ValueError(f"must be a regular expression: {error}") from None
        return pattern


class Settings(Section):
    """Every setting of a run."""

    input: InputSettings = Field(default_factory=lambda: InputSettings())
    job: JobSettings = Field(default_factory=lambda: JobSettings())
    model: ModelSettings = Field(default_factory=lambda: ModelSettings())
    sampling: SamplingSettings = Field(default_factory=lambda: SamplingSettings())
    engine: EngineSettings = Field(default_factory=lambda: EngineSettings())
    workers: WorkersSettings = Field(default_factory=lambda: WorkersSettings())
    output: OutputSettings = Field(default_factory=lambda: OutputSettings())
    cache: CacheSettings = Field(default_factory=lambda: CacheSettings())
    schedule: ScheduleSettings = Field(default_factory=lambda: ScheduleSettings())
    quantize: QuantizeSettings = Field(default_factory=lambda: QuantizeSettings())
    evaluate: EvaluateSettings = Field(default_factory=lambda: EvaluateSettings())


# Names that are part of the contract while what they switch is not built: accepted at their default alone.
NOT_BUILT = (
    "job.schema",
    "model.adapter",
    "engine.gradient_checkpointing",
    "workers.tp_degree",
    "workers.backend",
)


class Setting(BaseModel):
    """One line of the reference: a key, its type, default and description."""

    section: str
    key: str
    annotation: Any
    default: Any
    description: str

    @property
    def name(self) -> str:
        """The dotted name, as in `--set section.key=value`."""
        return f"{self.section}.{self.key}"

    @property
    def built(self) -> bool:
        """False if only the default is accepted so far."""
        return self.name not in NOT_BUILT


def reference() -> Iterator[Setting]:
    """Every setting in the order of the sections, the one source of `--help`, config.toml and docs/configuration.md."""
    for section, section_field in Settings.model_fields.items():
        model = section_field.annotation
        assert isinstance(model, type)
        assert issubclass(model, BaseModel)
        for field_name, field in model.model_fields.items():
            yield Setting(
                section=section,
                key=field.alias or field_name,
                annotation=field.annotation,
                default=field.get_default(call_default_factory=True),
                description=field.description or "",
            )


def set_explicitly(settings: Settings) -> dict[str, dict[str, Any]]:
    """What was given rather than defaulted, by section and key: the overrides a flow's parameters carry."""
    given = settings.model_dump(exclude_unset=True, by_alias=True)
    return {section: values for section, values in given.items() if values}
