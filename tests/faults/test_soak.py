"""The short form of the soak; `make faults` has the long one."""

from __future__ import annotations

from pathlib import Path

from tests.faults.laboratory import Laboratory
from tests.faults.soak import soak


def test_killed_workers_change_no_byte(lab: Laboratory, tmp_path: Path) -> None:
    done = soak(lab, tmp_path, rows=240, every=0.7, seed=0, forked=True)
    assert done.problems == []
    assert done.kills >= 2
