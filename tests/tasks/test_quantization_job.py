"""What is checked before a model is quantized, and where the new checkpoint is to lie."""

from __future__ import annotations

import shutil
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from data.errors import InputError
from tasks.configuration import load_settings
from tasks.quantization_job import QuantizationJob, prepare

ROOT = Path(__file__).parents[2]
BUNDLED = ROOT / "data" / "models" / "messages-4m"
SAMPLE: dict[str, dict[str, Any]] = {
    "input": {"path": str(ROOT / "data" / "sample" / "messages.jsonl")},
    "job": {"prompt": "{{ text }}", "expected": "expected"},
    "quantize": {"rows": 16},
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    shutil.copytree(BUNDLED, tmp_path / "models" / "large")
    return tmp_path / "models" / "large"


def prepared(model: Path | str, sample: bool = True, **sections: dict[str, Any]) -> QuantizationJob:
    given = {"model": {"path": str(model)}, **(SAMPLE if sample else {})}
    merged = {name: given.get(name, {}) | sections.get(name, {}) for name in given | sections}
    return prepare(load_settings(None, merged, environment={}), fresh=False, started=datetime.now())


def test_the_checkpoint_lies_beside_the_model_and_is_named_after_the_method(model: Path) -> None:
    assert prepared(model).place.path == model.with_name("large-awq-int4-g128")
    assert prepared(model, quantize={"method": "fp8"}).place.path == model.with_name("large-fp8")
    named = prepared(model, quantize={"output": str(model.parent / "small")})
    assert named.place.path == model.parent / "small"


def test_a_model_of_the_hub_is_quantized_from_its_snapshot_into_models_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = tmp_path / "cache" / "models--org--tiny"
    shutil.copytree(BUNDLED, cached / "snapshots" / ("a" * 40))
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    job = prepared("org/tiny")
    assert job.place.path == tmp_path / "models" / "tiny-awq-int4-g128"
    assert job.checkpoint.folder == cached / "snapshots" / ("a" * 40)
    gate = job.gate_settings(job.checkpoint.folder)
    assert gate.evaluate.reference == str(job.checkpoint.folder)


def test_the_gate_asks_rows_that_calibrated_nothing(model: Path) -> None:
    job = prepared(model)
    assert job.gate_settings(job.checkpoint.folder).evaluate.skip == 16
    same = prepared(model, quantize={"dataset": SAMPLE["input"]["path"]})
    assert same.gate_settings(same.checkpoint.folder).evaluate.skip == 16


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"quantize": {"rows": 360}}, ["0 rows beside those that quantize.rows = 360 takes", "quantize.gate = false"]),
        (
            {"job": {"kind": "embed", "prompt": None, "column": "text", "expected": None}},
            ["the gate", "embed", "gate = false"],
        ),
        ({"quantize": {"promote": "small", "output": "small"}}, ["quantize.promote small is the output itself"]),
    ],
)
def test_what_the_work_would_stumble_over_is_told_before_it(
    sections: dict[str, Any], words: list[str], model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(model.parent)
    with pytest.raises(InputError) as caught:
        prepared(model, **sections)
    assert [word for word in words if word not in str(caught.value)] == []
    assert [path.name for path in model.parent.iterdir()] == ["large"]


def test_a_quantized_model_is_not_quantized_again(model: Path) -> None:
    config = model / "config.json"
    config.write_text(config.read_text().replace("{", '{"quantization_config": {"quant_method": "awq"}, ', 1))
    with pytest.raises(InputError, match="is quantized already: name the checkpoint that it was made from"):
        prepared(model)


def test_without_a_gate_a_method_that_calibrates_nothing_needs_no_input(model: Path) -> None:
    job = prepared(model, sample=False, quantize={"method": "rtn", "gate": False})
    assert job.calibration.ids == ()
    with pytest.raises(InputError, match="name them with --input"):
        prepared(model, sample=False, quantize={"method": "rtn"})
