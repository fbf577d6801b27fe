"""Quantizing through kills, and with little memory. Children are killed as a machine kills: without a word."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, LlamaConfig

from engine.quantizer import Quantizer
from engine.quantizer_report import REPORT_NAME
from tests.engine.test_quantizer import CPU, calibration, quantized

ROOT = Path(__file__).parents[2]

KILLED = """
import os, shutil, signal, sys
from pathlib import Path
from tests.engine.test_quantizer import quantized

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def replace(source, target, replace=os.replace):
    die() if Path(target).name == where else replace(source, target)

def progress(layer, _):
    if where == f"layer {layer.layer}":
        die()

folder, output, where = sys.argv[1:]
os.replace = replace
if where == "the renaming":
    os.rename = die
if where == "the end":
    os.rename = lambda source, target, rename=os.rename: (rename(source, target), die())
quantized(Path(folder), Path(output), progress=progress)
"""


def test_a_killed_quantization_goes_on_to_the_same_bytes(model_folders: dict[str, Path], tmp_path: Path) -> None:
    """Behind the first layer, between a shard and its record, before config.json, before and behind the renaming."""
    source = model_folders["qwen3"]
    whole = quantized(source, tmp_path / "whole")
    output, work = tmp_path / "out", tmp_path / ".out.quantizing"
    for where in ("layer 0", "shard-00001.json", "config.json", "the renaming", "the end"):
        child = subprocess.run(
            [sys.executable, "-c", KILLED, str(source), str(output), where], cwd=ROOT, capture_output=True, check=False
        )
        assert child.returncode == -signal.SIGKILL, child.stderr.decode()
        assert output.exists() == (where == "the end"), "a part never looks whole"
        assert work.exists()
    again: list[float] = []
    resumed = quantized(source, output, progress=lambda layer, _: again.append(layer.seconds))
    assert not work.exists()
    assert [layer.error_after for layer in resumed.layers] == [layer.error_after for layer in whole.layers]
    assert (resumed.bytes_before, resumed.bytes_after) == (whole.bytes_before, whole.bytes_after)
    names = sorted(path.name for path in output.iterdir())
    assert names == sorted(path.name for path in (tmp_path / "whole").iterdir())
    names.remove(REPORT_NAME)  # it tells how long each layer took
    assert all((output / name).read_bytes() == (tmp_path / "whole" / name).read_bytes() for name in names)


class _Stop(Exception):
    pass


def _stop(*_: object) -> None:
    raise _Stop


def test_finished_layers_are_kept_and_damaged_ones_are_not(model_folders: dict[str, Path], tmp_path: Path) -> None:
    source, output = model_folders["llama"], tmp_path / "out"
    with pytest.raises(_Stop):
        quantized(source, output, progress=_stop)
    shard = tmp_path / ".out.quantizing" / "model" / "model-00001-of-00004.safetensors"
    written = shard.stat().st_mtime_ns
    with pytest.raises(_Stop):
        quantized(source, output, progress=_stop)
    assert shard.stat().st_mtime_ns == written
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(_Stop):
        quantized(source, output, progress=_stop)
    assert shard.read_bytes() == whole


def test_work_of_other_settings_or_rows_is_not_mixed(model_folders: dict[str, Path], tmp_path: Path) -> None:
    source, output = model_folders["llama"], tmp_path / "out"
    with pytest.raises(_Stop):
        quantized(source, output, progress=_stop)
    with pytest.raises(ValueError, match="begun with another calibration, settings; go on with the same, or delete"):
        quantized(source, output, calibration=calibration(3), symmetric=True)
    quantized(source, output)
    assert output.is_dir()


def test_two_processes_do_not_quantize_into_one_folder(model_folders: dict[str, Path], tmp_path: Path) -> None:
    source, output = model_folders["llama"], tmp_path / "out"

    def second(*_: object) -> None:
        with pytest.raises(ValueError, match="another process is quantizing to"):
            Quantizer(source, "rtn", group_size=32, output=output, device=CPU).apply()

    quantized(source, output, quant_method="rtn", progress=second)


MEASURED = """
import json, sys
from pathlib import Path
import torch
from engine.quantizer import Quantizer
from engine.quantizer_report import REPORT_NAME
from tests.engine.test_quantizer import CPU, calibration

def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) * 1024

torch.set_num_threads(1)
folder = Path(sys.argv[1])
Quantizer(folder.with_name("small"), output=folder.with_name("first"), calibration=calibration(4), device=CPU,
          search_steps=2, clip_steps=2).apply()
Path("/proc/self/clear_refs").write_text("5")
before = peak()
report = Quantizer(folder, output=folder.with_name("out"), calibration=calibration(4), device=CPU, search_steps=2,
                   clip_steps=2).apply()
print(json.dumps({"grown": peak() - before, "model": report.bytes_before}))
"""


def test_memory_is_that_of_a_layer(tmp_path: Path) -> None:
    """24 layers of 13.6 MB: far less than the model is taken, though the search holds a layer several times over."""
    shape = {"vocab_size": 199, "hidden_size": 512, "intermediate_size": 1536, "num_attention_heads": 8}
    for name, layers in (("small", 1), ("large", 24)):
        model = AutoModelForCausalLM.from_config(LlamaConfig(**shape, num_hidden_layers=layers))
        model.save_pretrained(tmp_path / name)
    del model
    child = subprocess.run(
        [sys.executable, "-c", MEASURED, str(tmp_path / "large")], cwd=ROOT, capture_output=True, check=False
    )
    assert child.returncode == 0, child.stderr.decode()
    found = json.loads(child.stdout.splitlines()[-1])
    assert found["model"] > 300e6
    assert found["grown"] < found["model"] / 3
