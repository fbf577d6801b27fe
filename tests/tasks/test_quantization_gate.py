"""What is checked before a quantization, and what its gate is told."""

from __future__ import annotations

import json
import shutil
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from data.errors import InputError
from tasks.configuration import load_settings
from tasks.quantization_job import QuantizationJob, prepare
from tasks.settings import set_explicitly

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "data" / "models" / "messages-4m"


def written(path: Path, rows: int) -> str:
    path.write_text("".join(json.dumps({"message": f"parcel {row}"}) + "\n" for row in range(rows)))
    return str(path)


def prepared(folder: Path, rows: int = 500, **sections: dict[str, Any]) -> QuantizationJob:
    """A quantization of the bundled model with rows of its own, some settings changed."""
    given: dict[str, dict[str, Any]] = {
        "input": {"path": written(folder / "in.jsonl", rows)},
        "job": {"prompt": "{{ message }}"},
        "model": {"path": str(MODEL)},
    }
    quantize = {"output": str(folder / "small"), "rows": 20, **sections.pop("quantize", {})}
    for name, values in sections.items():
        given[name] = {**given.get(name, {}), **values}
    settings = load_settings(None, {**given, "quantize": quantize}, environment={})
    return prepare(settings, fresh=False, started=datetime(2026, 3, 4, 12))


@pytest.mark.parametrize(
    ("rows", "sections", "words"),
    [
        (27, {}, ["7 rows beside those that quantize.rows = 20", "lower it"]),
        (500, {"evaluate": {"rows": 7}}, ["evaluate.rows = 7"]),
        (7, {"quantize": {"dataset": "DATASET"}}, ["input.path", "has 7 rows", "name more"]),
    ],
)
def test_a_gate_has_rows_enough_to_judge(rows: int, sections: dict[str, Any], words: list[str], tmp_path: Path) -> None:
    if "quantize" in sections:
        sections = {"quantize": {"dataset": written(tmp_path / "other.jsonl", 60)}}
    with pytest.raises(InputError) as caught:
        prepared(tmp_path, rows, **sections)
    assert [word for word in words if word not in str(caught.value)] == []


def test_a_gate_judges_on_rows_that_calibrated_nothing(tmp_path: Path) -> None:
    assert prepared(tmp_path).gate_settings(MODEL).evaluate.skip == 20
    assert prepared(tmp_path, quantize={"dataset": str(tmp_path / "in.jsonl")}).gate_settings(MODEL).evaluate.skip == 20
    other = written(tmp_path / "other.jsonl", 20)  # all of which calibrate
    assert prepared(tmp_path, quantize={"dataset": other}).gate_settings(MODEL).evaluate.skip == 0


def test_the_environment_does_not_reach_the_candidate(tmp_path: Path) -> None:
    told = set_explicitly(prepared(tmp_path).gate_settings(MODEL))
    environment = {"OVERNIGHT_MODEL__QUANTIZATION": "fp8", "OVERNIGHT_MODEL__ADAPTER": "nowhere"}
    assert load_settings(None, told, environment=environment).model.quantization == "none"
    assert load_settings(None, told, environment=environment).model.adapter is None


def test_what_decides_the_evaluation_names_its_folder(tmp_path: Path) -> None:
    def folder(candidate: Path = MODEL, **sections: dict[str, Any]) -> str:
        return prepared(tmp_path, **sections).gate_settings(candidate).output.path

    assert folder() == folder()
    others = [
        folder(engine={"dtype": "bfloat16"}),
        folder(engine={"deterministic": False}),
        folder(evaluate={"rows": 30}),
        folder(sampling={"seed": 3}),
        folder(rows=501),
        folder(written_candidate(tmp_path)),
    ]
    assert len({folder(), *others}) == 1 + len(others)


def written_candidate(folder: Path) -> Path:
    """A checkpoint with another configuration than the bundled one."""
    found = folder / "candidate"
    shutil.copytree(MODEL, found)
    config = json.loads((found / "config.json").read_text())
    (found / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-4}))
    return found


def test_dates_are_filled(tmp_path: Path) -> None:
    written(tmp_path / "rows-2026-03-04.jsonl", 40)
    named = {"output": str(tmp_path / "small-{date}"), "dataset": str(tmp_path / "rows-{date}.jsonl")}
    job = prepared(tmp_path, quantize=named)
    assert job.place.path == tmp_path / "small-2026-03-04"
    assert job.calibration.source == str(tmp_path / "rows-2026-03-04.jsonl")
