"""The memory of a container is that of its control group, whichever version the system has."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from tasks.host_memory import host_memory

GROUPS = {
    "0::/a/b": ("a", "memory.max", "memory.current", "inactive_file"),
    "5:cpu:/\n4:memory:/elsewhere": ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


@pytest.mark.parametrize("groups", GROUPS)
def test_a_limit_of_a_group_counts(tmp_path: Path, groups: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cgroup").write_text(groups)
    monkeypatch.setattr("tasks.host_memory.GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr("tasks.host_memory.MOUNT", tmp_path)
    assert host_memory().total == psutil.virtual_memory().total
    name, limit, used, idle = GROUPS[groups]
    (tmp_path / name).mkdir()
    for file, content in ((limit, "1000000"), (used, "900000"), ("memory.stat", f"anon 1\n{idle} 300000")):
        (tmp_path / name / file).write_text(content)
    assert host_memory() == (1_000_000, 400_000)
    (tmp_path / name / limit).write_text("max")
    assert host_memory().total == psutil.virtual_memory().total
