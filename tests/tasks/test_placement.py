"""What "auto" and "awq" come to on the devices there are."""

from __future__ import annotations

from typing import Any

import pytest

from tasks import placement
from tasks.placement import Placement, device_names, resolve
from tasks.settings import Settings

A100, L4, H100 = (8, 0), (8, 9), (9, 0)


def resolved(monkeypatch: pytest.MonkeyPatch, quantization: str, *capabilities: tuple[int, int]) -> Settings:
    """The settings for a machine with GPUs of these compute capabilities."""

    class Driver:
        nvmlInit = nvmlShutdown = staticmethod(lambda: None)  # noqa: N815
        nvmlDeviceGetHandleByIndex = staticmethod(lambda index: index)  # noqa: N815
        nvmlDeviceGetCudaComputeCapability = staticmethod(lambda handle: list(capabilities[handle]))  # noqa: N815

    monkeypatch.setattr(placement, "pynvml", Driver)
    gpus = tuple(map(str, range(len(capabilities))))
    settings: Any = {"model": {"quantization": quantization}}
    place = Placement("cuda" if gpus else "cpu", gpus, max(1, len(gpus)), 1, None)
    return resolve(Settings(**settings), place)


@pytest.mark.parametrize(
    ("capabilities", "wanted"),
    [
        ((), "awq-fp8"),
        ((H100,), "awq-fp8"),
        ((L4, H100), "awq-fp8"),
        ((A100,), "awq-dtype"),
        ((H100, A100), "awq-dtype"),  # all workers of a run compute alike
    ],
)
def test_awq_is_computed_in_fp8_where_every_worker_can(
    capabilities: tuple[tuple[int, int], ...], wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert resolved(monkeypatch, "awq", *capabilities).model.quantization == wanted


@pytest.mark.parametrize("quantization", ["none", "fp8", "awq-fp8", "awq-dtype"])
def test_what_says_how_stays(quantization: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolved(monkeypatch, quantization, A100).model.quantization == quantization


def test_dtype_and_determinism_follow_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    on_gpu, on_cpu = resolved(monkeypatch, "none", H100).engine, resolved(monkeypatch, "none").engine
    assert (on_gpu.dtype, on_gpu.deterministic) == ("bfloat16", False)
    assert (on_cpu.dtype, on_cpu.deterministic) == ("float32", True)


def test_drivers_that_name_a_device_in_different_ways_mean_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    uuids = ["GPU-aa11", "GPU-bb22"]

    class Driver:
        nvmlInit = nvmlShutdown = staticmethod(lambda: None)  # noqa: N815
        nvmlDeviceGetCount = staticmethod(lambda: len(uuids))  # noqa: N815
        nvmlDeviceGetHandleByIndex = staticmethod(lambda index: index)  # noqa: N815
        nvmlDeviceGetUUID = staticmethod(lambda handle: uuids[handle])  # noqa: N815

    monkeypatch.setattr(placement, "pynvml", Driver)

    def names(*gpus: str) -> frozenset[str]:
        return device_names(Placement("cuda", gpus, len(gpus), 1, None))

    assert names("1") == names("GPU-bb22") == names("GPU-b") == {"GPU-bb22"}
    assert names("0", "MIG-cc") == {"GPU-aa11", "MIG-cc"}
    assert device_names(Placement("cpu", (), 4, 1, None)) == {"cpu"}
