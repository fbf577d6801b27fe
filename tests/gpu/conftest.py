"""Each test finds the device's memory free: an engine holds on to it until its cycles are collected."""

from __future__ import annotations

import gc

import pytest
import torch


@pytest.fixture(autouse=True)
def free_memory() -> None:
    gc.collect()
    torch.cuda.empty_cache()
