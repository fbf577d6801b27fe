"""What runs the model and how: the settings of the checkpoint, of sampling and of the engine.

Frozen models, parsed once and passed down; "auto" is resolved by giving a new object, never in place.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Deterministic = bool | Literal["batch-invariant"]


class Section(BaseModel):
    """One section of the configuration: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())


class ModelSettings(Section):
    """Which checkpoint answers."""

    path: str = Field("", description="A checkpoint folder or a hub id.")
    revision: str | None = Field(None, description="Revision of a hub id.")
    quantization: Literal["none", "fp8", "awq", "awq-fp8", "awq-dtype"] = Field(
        "none", description="Quantize the weights at load; awq is awq-fp8 where every GPU of the run has FP8."
    )
    adapter: str | None = Field(None, description="A LoRA adapter folder to apply.")
    trust_remote_code: bool = Field(False, description="Run Python code that the checkpoint folder brings.")


class SamplingSettings(Section):
    """How the next token is chosen."""

    max_tokens: int = Field(256, ge=1, le=1 << 22, description="Longest answer in tokens.")
    temperature: float = Field(0.0, ge=0, description="0 takes the likeliest token; above 0 samples.")
    top_p: float = Field(1.0, gt=0, le=1, description="Sample from the likeliest tokens that hold this probability.")
    top_k: int = Field(0, ge=0, description="Sample from this many likeliest tokens; 0 for all.")
    min_p: float = Field(
        0.0, ge=0, le=1, description="Drop tokens below this share of the likeliest one's probability."
    )
    repetition_penalty: float = Field(1.0, gt=0, description="Above 1 makes tokens seen before less likely.")
    seed: int = Field(0, ge=0, lt=2**63, description="Seed of the samples.")
    stop: tuple[str, ...] = Field((), description="Texts that end an answer; they are not part of it.")

    @field_validator("stop")
    @classmethod
    def _not_empty(cls, stop: tuple[str, ...]) -> tuple[str, ...]:
        if any(not text for text in stop):
            raise ValueError("an empty stop text would end every answer at once")
        return stop


class EngineSettings(Section):
    """How the model is run on a device."""

    dtype: Dtype = Field("auto", description="Number format of the weights: auto is float32 on CPU, else bfloat16.")
    amp: bool = Field(False, description="Run float32 weights under automatic mixed precision.")
    kv_dtype: Literal["auto", "fp8"] = Field("auto", description="Number format of the KV cache; auto is the model's.")
    memory_fraction: float = Field(0.9, gt=0, le=1, description="Share of the device's memory that a worker may use.")
    max_batch_tokens: int = Field(8192, ge=16, description="Most tokens of one forward pass.")
    deterministic: Deterministic | None = Field(
        None,
        description="Batches depend on their shard alone (if not set: on CPU); batch-invariant: no text on its batch.",
    )
    gradient_checkpointing: bool = Field(False, description="Recompute activations in training to save memory.")

    @property
    def shardwise(self) -> bool:
        """Whether the batches of a shard are to be the same whenever it is computed."""
        return self.deterministic is True

    @property
    def invariant(self) -> bool:
        """Whether a row's numbers are to be the same in whatever batch it is computed."""
        return self.deterministic == "batch-invariant"
