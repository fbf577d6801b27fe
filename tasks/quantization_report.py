"""What a quantization came to, as it is kept in the checkpoint's folder, printed and shown in Prefect."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from engine.quantizer_report import QuantizationReport
from engine.quantizer_settings import QuantizerSettings
from tasks.calibration_rows import CalibrationRows
from tasks.evaluation import Evaluation
from tasks.gate import Verdict


class Calibration(BaseModel):
    """The rows that it was calibrated with."""

    model_config = ConfigDict(frozen=True)

    source: str
    text: str
    rows: int
    tokens: int
    skipped: int
    sha256: str

    @classmethod
    def of(cls, rows: CalibrationRows) -> Calibration:
        """What is kept of the rows; none of their text."""
        return cls(
            source=rows.source,
            text=rows.text,
            rows=len(rows.ids),
            tokens=rows.tokens,
            skipped=rows.skipped,
            sha256=rows.digest,
        )


class Quantization(QuantizationReport):
    """The engine's report, with where all came from and what was made of it."""

    model_config = ConfigDict(frozen=True)

    model: str
    identity: dict[str, Any]
    """What decides the bytes: digests of the model and of the calibration rows, and the settings."""
    settings: QuantizerSettings
    calibration: Calibration
    evaluation: Evaluation | None = None
    """None without a gate."""
    verdict: Verdict | None = None
    warnings: tuple[str, ...] = ()
    pointer: str | None = None
    """What leads to it now, where one was named."""

    @property
    def state(self) -> str:
        """`completed` or `refused`."""
        return "refused" if self.verdict is not None and not self.verdict.accepted else "completed"

    @property
    def mean_error(self) -> float | None:
        """Of the layers; None without calibration rows."""
        errors = self.errors
        return sum(errors) / len(errors) if errors else None

    @property
    def errors(self) -> list[float]:
        """Of each layer that has one, after the search."""
        return [layer.error_after for layer in self.layers if layer.error_after is not None]
