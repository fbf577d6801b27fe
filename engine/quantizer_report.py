"""What quantizing a checkpoint came to: for each layer and for the whole. It lies in the checkpoint's folder, too."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

REPORT_NAME = "quantization-report.json"


class LayerReport(BaseModel):
    """One decoder layer. Errors are of its change to the hidden states, over all calibration tokens.

    On a GPU they contain the rounding of the hidden states to 16 bits, which the search does not see.
    """

    model_config = ConfigDict(frozen=True)

    layer: int
    error_before: (
        float | None
    )  # |rounded - exact| / |exact|, pruned if asked and rounded; None without calibration rows
    error_after: float | None  # the same, after the search
    folds: int  # places where scales were moved
    linear_bytes_before: int  # of the linears' weights, as they are stored
    linear_bytes_after: int  # of all that a weight is stored as
    bytes_after: int  # of all the layer's tensors
    seconds: float


class QuantizationReport(BaseModel):
    """A whole checkpoint."""

    model_config = ConfigDict(frozen=True)

    output: str
    layers: tuple[LayerReport, ...]
    bytes_before: int  # of all tensors
    bytes_after: int
    seconds: float  # of this call; a layer done by an earlier one has its own

    @property
    def linear_bytes_before(self) -> int:
        """Bytes of the weights that were quantized."""
        return sum(layer.linear_bytes_before for layer in self.layers)

    @property
    def linear_bytes_after(self) -> int:
        """Bytes of what they are stored as."""
        return sum(layer.linear_bytes_after for layer in self.layers)
