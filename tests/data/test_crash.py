"""Killed drivers and power cuts: the run resumes to the same bytes, loses no commit and computes nothing twice.

A seeded share of the points runs here; `crash_driver.py ROOT SCENARIO MODE 1 0` runs them all.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from data.durable import sync_folder
from data.publish import prepare_output, published_base, verify_published
from data.settings import OutputSettings
from data.target import Target
from tests.data.publishing import ROWS
from tests.faults.durability import Durable

DRIVER = Path(__file__).with_name("crash_driver.py")


def outcomes(root: Path, scenario: str, mode: str, share: int, offset: int, plant: str = "") -> tuple[Any, list[Any]]:
    command = [sys.executable, str(DRIVER), str(root), scenario, mode, str(share), str(offset), plant]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    child = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=600)
    assert child.returncode == 0, child.stderr
    _, undisturbed, *points = map(json.loads, child.stdout.splitlines())
    return undisturbed, points


def faults(undisturbed: Any, point: Any) -> list[str]:
    """What is wrong with the outcome of one point, nothing if the run survived it."""
    found = [
        f"{name}: {point[name]['error']}"
        for name in ("first", "seen", "resumed", "again", "result")
        if "error" in point[name]
    ]
    if found:
        return found
    found = point["seen"]["value"]["problems"] + point["result"]["value"]["problems"]
    found += [f"computed again: {shard}" for shard in point["again"]["value"]]
    if point["result"]["value"]["digest"] != undisturbed["digest"]:
        found.append("other bytes than an undisturbed run's")
    return found


@pytest.mark.parametrize(
    ("scenario", "mode", "offset"),
    [
        ("plain", "power", 31),
        ("file", "power", 75),
        ("fresh", "power", 70),
        ("partial", "power", 55),
        ("retry", "power", 88),
        ("cached", "power", 32),
        ("plain", "kill", 66),
        ("retry", "kill", 20),
    ],
)
def test_a_run_survives(tmp_path: Path, scenario: str, mode: str, offset: int) -> None:
    share = 90
    undisturbed, points = outcomes(tmp_path / "lab", scenario, mode, share, offset)
    assert undisturbed["problems"] == []
    assert len(points) >= 2
    assert {point["point"]: faults(undisturbed, point) for point in points} == {p["point"]: [] for p in points}
    assert all(point["first"] == {"killed": True} for point in points)


@pytest.mark.parametrize("folder", ["out", "run/publications"])
def test_what_a_killed_publication_has_named_outlives_the_power_once_a_start_counts_on_it(
    new_lab: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    (tmp_path / "disk").mkdir()
    lab = new_lab(
        tmp_path / "disk", ROWS[:50], output=OutputSettings(path=str(tmp_path / "disk" / "out"), error_budget=1)
    )
    durable, fsync = Durable(lab.root), os.fsync

    def watched(descriptor: int) -> None:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        if path.startswith(str(lab.root)):
            durable.synced(path)
        fsync(descriptor)

    class Killed(BaseException):
        pass

    def killed(path: Path) -> None:
        if path == lab.root / folder:
            raise Killed
        sync_folder(path)

    def start() -> None:
        Target.at(lab.target, lab.run).preflight()
        if prepare_output(lab.run, lab.output) is None:
            lab.compute()
            lab.publish()

    monkeypatch.setattr(os, "fsync", watched)
    with monkeypatch.context() as patch:
        patch.setattr("data.durable.sync_folder", killed)
        with pytest.raises(Killed):
            start()
    start()
    durable.cut(0)
    durable.release()
    assert verify_published(lab.target).complete
    assert published_base(lab.run, lab.output) is not None


@pytest.mark.parametrize("plant", ["no file sync", "no folder sync"])
def test_power_cuts_find_a_missing_sync(tmp_path: Path, plant: str) -> None:
    undisturbed, points = outcomes(tmp_path / "lab", "plain", "power", 50, 5, plant)
    assert any(faults(undisturbed, point) for point in points)
