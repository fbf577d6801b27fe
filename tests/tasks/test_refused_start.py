"""A start that is refused leaves nothing that was not there before."""

from __future__ import annotations

from pathlib import Path

import pytest

from data.errors import InputError
from tasks.places import locked_places
from tests.tasks.test_places import job


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize("run_dir", [None, "runs/tonight"])
def test_an_output_of_somebody_else_is_refused_without_a_trace(tmp_path: Path, run_dir: str | None) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("x")
    refused = job(tmp_path, run_dir=tmp_path / run_dir if run_dir else None)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=r"mine\.txt"), locked_places(refused):
        pass
    assert sorted(tmp_path.rglob("*")) == before
