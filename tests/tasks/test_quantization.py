"""What is left of a quantization when it is run again, and what is told of one whose gate never came to a verdict."""

from __future__ import annotations

import shutil
from datetime import datetime
from pathlib import Path
from typing import Any

from data.pointer import Pointer
from tasks.configuration import load_settings
from tasks.quantization import opened, publish, quantize
from tasks.quantization_job import QuantizationJob, prepare

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "data" / "models" / "messages-4m"


def prepared(folder: Path, **quantize: Any) -> QuantizationJob:
    sections = {
        "model": {"path": str(MODEL)},
        "quantize": {"output": str(folder / "small"), "method": "fp8", "gate": False, **quantize},
        "workers": {"dp_degree": 1},
    }
    return prepare(load_settings(None, sections, environment={}), fresh=False, started=datetime.now())


def test_a_rollback_stands_when_the_finished_quantization_runs_again(tmp_path: Path) -> None:
    pointer, before = Pointer(tmp_path / "current"), tmp_path / "before"
    shutil.copytree(MODEL, before)
    pointer.promote(before)
    with opened(prepared(tmp_path)) as work:
        quantize(work, lambda _: None)
        assert work.report is None, "nothing is published"
        publish(work, None)
    with opened(prepared(tmp_path, promote=str(tmp_path / "current"))) as work:
        assert work.finished
        assert work.report is not None
        assert work.report.pointer == str(tmp_path / "current")
    assert pointer.target() == tmp_path / "small", "as after a kill before it was promoted"
    pointer.roll_back()
    with opened(prepared(tmp_path, promote=str(tmp_path / "current"))) as work:
        assert work.finished
        assert work.report is not None
        assert work.report.pointer is None
        assert "overnight promote" in work.report.warnings[-1]
    assert pointer.target() == before
