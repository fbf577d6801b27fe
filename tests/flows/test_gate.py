"""The gate of `overnight quantize` through the real flow: a good checkpoint passes, a spoilt one is refused."""

from __future__ import annotations

import json
import shutil
from datetime import datetime
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.quantizer_process import quantize_in_children
from tasks.configuration import load_settings
from tasks.quantization import opened
from tasks.quantization_job import prepare
from tasks.quantization_place import report_of
from tests.flows.conftest import Overnight
from tests.flows.test_quantize import CONFIG

FP8 = ("--set", "quantize.method=fp8", "--set", "evaluate.rows=40")
SECONDS = 560  # three programs in one: on a busy machine that takes a while


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A configuration that quantizes the bundled model with few rows, and judges it on more."""
    path = tmp_path / "config.toml"
    path.write_text(f"{CONFIG}[evaluate]\nrows = 200\n", encoding="utf-8")
    return path


def earlier(folder: Path) -> Path:
    """An earlier checkpoint."""
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "earlier"}')
    return folder


def plant(config: Path, output: Path) -> None:
    """What the engine leaves before the gate, with the scales of all weights in another order."""
    settings = load_settings(config, {"quantize": {"output": str(output)}}, environment={})
    job = prepare(settings, fresh=True, started=datetime.now())
    with opened(job):
        quantize_in_children(
            job.checkpoint.folder,
            job.place.candidate,
            settings.quantize.quantizer(),
            job.calibration.ids,
            lambda *_: None,
        )
    files = {file: load_file(file) for file in sorted(job.place.candidate.glob("*.safetensors"))}
    places = [(file, name) for file, found in files.items() for name in found if name.endswith("weight_scale")]
    pool = torch.cat([files[file][name].view(-1) for file, name in places])
    shuffled = pool[torch.randperm(len(pool), generator=torch.Generator().manual_seed(1))]
    parts = shuffled.split([files[file][name].numel() for file, name in places])
    for (file, name), part in zip(places, parts, strict=True):
        files[file][name] = part.view_as(files[file][name]).clone()
    for file, tensors in files.items():
        save_file(tensors, file, {"format": "pt"})


def test_shuffled_scales_are_refused_and_the_earlier_checkpoint_stands(
    overnight: Overnight, config: Path, tmp_path: Path
) -> None:
    output = earlier(tmp_path / "small")
    plant(config, output)
    done = overnight("quantize", "--output", "small", "--set", "quantize.promote=current", timeout=SECONDS)
    assert done.returncode == 1
    said = " ".join(done.stderr.split())
    assert "the quantized model is refused: accuracy went from" in said
    assert "95 % interval" in said
    assert "quantize.max_loss = 0.02 allows 2.00 %" in said
    assert f"It is kept in {output}.refused" in said
    assert "refused" in done.stdout
    assert not (tmp_path / "current").is_symlink()
    assert json.loads((output / "config.json").read_text()) == {"model_type": "earlier"}
    report = report_of(tmp_path / "small.refused")
    assert report is not None
    assert report["verdict"]["accepted"] is False
    assert report["verdict"]["loss"] > 0.04
    assert report["evaluation"]["reference"]["accuracy"]["value"] > 0.8
    assert Path(report["evaluation"]["report"]).is_file()
    shutil.rmtree(output)
    lenient = overnight("quantize", "--output", "small", "--set", "quantize.max_loss=1.0", timeout=SECONDS)
    assert lenient.returncode == 0
    assert "Quantizing" not in lenient.stderr, "it was quantized already"
    assert not (tmp_path / "small.refused").exists()
    accepted = report_of(output)
    assert accepted is not None
    assert accepted["layers"] == report["layers"]


def test_a_good_one_is_accepted_on_rows_not_calibrated_with_and_replaces_the_earlier(
    overnight: Overnight, tmp_path: Path
) -> None:
    output = earlier(tmp_path / "small")
    refused = overnight("quantize", "--output", "small")
    assert refused.returncode == 2
    assert "exists already" in refused.stderr
    words = ("--set", "quantize.promote=current", *FP8)
    done = overnight("quantize", "--output", "small", "--fresh", *words, timeout=SECONDS)
    assert done.returncode == 0
    assert "accepted" in done.stdout
    report = report_of(output)
    assert report is not None
    assert report["verdict"]["accepted"] is True
    assert report["evaluation"]["rows"] == 40
    assert (tmp_path / "current").resolve() == output
    assert report["evaluation"]["candidate"]["path"] == str(output)
    assert json.loads((output / "config.json").read_text())["quantization_config"]["format"] == "float-quantized"
    again = overnight("quantize", "--output", "small", *FP8)
    assert again.returncode == 0
    assert "published before" in again.stdout
