"""How a checkpoint is to be quantized: frozen, checked once and passed down."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from engine.settings import Section

METHODS = ("awq", "rtn", "fp8", "int8")
BITS = {"awq": 4, "rtn": 4, "fp8": 8, "int8": 8}
SPARSITIES = ("none", "2:4")


class QuantizerSettings(Section):
    """What decides the bytes of a quantized checkpoint, beside the model and the calibration rows."""

    quant_method: Literal["awq", "rtn", "fp8", "int8"] = Field(
        "awq", description="awq and rtn (round to nearest) give int4 weights; fp8 and int8 round activations too."
    )
    bits: int = Field(4, description="Bits of a weight: 4 for awq and rtn, 8 for fp8 and int8.")
    group_size: Literal[32, 64, 128] = Field(128, description="Inputs of an int4 group, which share a scale.")
    symmetric: bool = Field(False, description="Int4 levels lie around zero, without zero points.")
    static_activations: bool = Field(
        False, description="fp8: one calibrated activation scale a layer, not one a token."
    )
    sparsity: Literal["none", "2:4"] = Field(
        "none", description="fp8: 2:4 sets two of every four inputs of the MLP's weights to zero, for faster prefill."
    )
    search_steps: int = Field(20, ge=1, description="Exponents tried for the scales, from 0 up to below 1.")
    clip_steps: int = Field(20, ge=0, description="Steps into which a group's range is divided to be clipped.")
    clip_most: float = Field(0.5, ge=0, lt=1, description="Share of a group's range that clipping may take away.")
    batch_tokens: int = Field(4096, ge=1, description="Calibration tokens of one forward pass.")

    @model_validator(mode="before")
    @classmethod
    def _known(cls, values: dict[str, object]) -> dict[str, object]:
        method = values.get("quant_method", "awq")
        if method not in METHODS:
            raise ValueError(f"quant_method = {method!r} is unknown; use {', '.join(METHODS)}")
        bits, needed = values.get("bits", 4), BITS[str(method)]
        if bits != needed:
            raise ValueError(f"bits = {bits!r} is not supported by quant_method = {method!r}; use bits = {needed}")
        if values.get("group_size", 128) not in (32, 64, 128):
            raise ValueError(f"group_size = {values['group_size']!r} is not supported; use 128, 64 or 32")
        if values.get("static_activations") and method != "fp8":
            raise ValueError(f"static_activations is for quant_method = 'fp8', not {method!r}")
        sparsity = values.get("sparsity", "none")
        if sparsity not in SPARSITIES:
            raise ValueError(f"sparsity = {sparsity!r} is unknown; use {', '.join(SPARSITIES)}")
        if sparsity != "none" and method != "fp8":
            raise ValueError(f"sparsity = {sparsity!r} is for quant_method = 'fp8', not {method!r}")
        return values

    @property
    def int4(self) -> bool:
        """Whether weights are rounded to 4 bits in groups."""
        return self.bits == 4

    @property
    def searches(self) -> bool:
        """Whether scales are searched for: int8 needs them for its activations, as int4 does for its weights."""
        return self.quant_method in ("awq", "int8")

    @property
    def prunes(self) -> bool:
        """Whether weights are set to zero."""
        return self.sparsity != "none"

    @property
    def calibrated(self) -> bool:
        """Whether the result depends on calibration rows."""
        return self.searches or self.static_activations or self.prunes

    @property
    def label(self) -> str:
        """What a checkpoint quantized so is called."""
        if self.int4:
            return f"{self.quant_method}-int4-g{self.group_size}{'-symmetric' if self.symmetric else ''}"
        found = f"{self.quant_method}-static" if self.static_activations else self.quant_method
        return f"{found}-2of4" if self.prunes else found  # no colon, which paths may not have everywhere
