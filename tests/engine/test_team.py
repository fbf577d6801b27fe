"""Two processes that share the calibration rows come to what one comes to, and a death of either costs no layer."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from engine.quantizer_process import QuantizationFailed, quantize_in_children
from engine.quantizer_report import LayerReport, QuantizationReport
from engine.quantizer_settings import QuantizerSettings
from tests.engine.test_quantizer import calibration

ONE = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
SETTINGS = QuantizerSettings(group_size=32, search_steps=4, clip_steps=6, batch_tokens=64)


def quantized(
    model: Path, output: Path, processes: int, told: Callable[[LayerReport, int], None] = lambda *_: None
) -> QuantizationReport:
    return quantize_in_children(model, output, SETTINGS, calibration(), told, [ONE] * processes)


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def test_two_processes_equal_one_but_for_the_order_of_sums(model_folders: dict[str, Path], tmp_path: Path) -> None:
    alone = quantized(model_folders["qwen3"], tmp_path / "alone", 1)
    killed: list[int] = []

    def kill(layer: LayerReport, layers: int) -> None:
        assert layers == 3
        if killed:
            return
        workers = [child for child in psutil.Process().children() if "engine.quantizer_child:serve" in child.cmdline()]
        assert len(workers) == 2
        os.kill(max(workers, key=lambda worker: worker.create_time()).pid, signal.SIGKILL)
        killed.append(layer.layer)

    with pytest.raises(QuantizationFailed):
        quantized(model_folders["qwen3"], tmp_path / "both", 2, kill)
    assert killed == [0]
    both = quantized(model_folders["qwen3"], tmp_path / "both", 2)
    assert [layer.folds for layer in both.layers] == [layer.folds for layer in alone.layers]
    for one, other in zip(alone.layers, both.layers, strict=True):
        assert other.error_before == pytest.approx(one.error_before, rel=1e-5)
        assert other.error_after == pytest.approx(one.error_after, rel=1e-3)
    first, second = tensors(tmp_path / "alone"), tensors(tmp_path / "both")
    assert first.keys() == second.keys()
    same = sum(int((tensor == second[name]).sum()) for name, tensor in first.items())
    assert same >= 0.98 * sum(tensor.numel() for tensor in first.values())
