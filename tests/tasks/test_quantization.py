"""What is left of a quantization when it is run again, and what is told of one whose gate never came to a verdict."""

from __future__ import annotations

import shutil
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from data.errors import Held, InputError, RunError
from data.pointer import Pointer
from tasks.configuration import load_settings
from tasks.quantization import opened, publish, quantize
from tasks.quantization_job import QuantizationJob, prepare

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "data" / "models" / "messages-4m"


def prepared(
    folder: Path, model: Path = MODEL, fresh: bool = False, flow_run: str | None = None, **quantize: Any
) -> QuantizationJob:
    sections = {
        "model": {"path": str(model)},
        "quantize": {"output": str(folder / "small"), "method": "fp8", "gate": False, **quantize},
        "workers": {"dp_degree": 1},
    }
    settings = load_settings(None, sections, environment={})
    return prepare(settings, fresh=fresh, started=datetime.now(), flow_run=flow_run)


def test_an_error_of_the_engine_names_a_log_with_its_traceback(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(MODEL, broken)
    for file in broken.glob("*.safetensors"):
        tensors = load_file(file)
        save_file({name: tensor for name, tensor in tensors.items() if "layers.0.mlp.up" not in name}, file)
    with opened(prepared(tmp_path, model=broken)) as work:
        with pytest.raises((InputError, RunError), match=r"small/log-0"):
            quantize(work, lambda _: None)
        assert work.report is None
        assert "Traceback" in (work.job.place.work / "log-0").read_text()


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


def test_a_flow_run_starts_afresh_once_also_if_its_first_attempt_was_refused(tmp_path: Path) -> None:
    with opened(prepared(tmp_path)) as work:
        quantize(work, lambda _: None)
        publish(work, None)
    afresh = prepared(tmp_path, fresh=True, flow_run="first")
    with work.job.place.lock(), pytest.raises(Held), opened(afresh):
        pass
    with opened(afresh) as work:
        assert not work.finished
        begun = work.job.place.work.stat().st_ino
    with opened(afresh) as work:
        assert work.job.place.work.stat().st_ino == begun, "a retry goes on with what it has"
        quantize(work, lambda _: None)
        publish(work, None)
    with opened(afresh) as work:
        assert work.finished
    with opened(prepared(tmp_path, fresh=True, flow_run="second")) as work:
        assert not work.finished
        quantize(work, lambda _: None)
        publish(work, None)
    with opened(afresh) as work:
        assert work.finished, "a late retry does not undo another one's"
