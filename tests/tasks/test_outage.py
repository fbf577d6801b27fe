"""What a report says of an error: the first one, and after publication that the result is whole."""

from __future__ import annotations

import errno
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data.errors import RunError
from tasks.outage import failed
from tasks.outcome import final_report
from tasks.run import opened
from tests.tasks.test_places import job


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_locks_that_cannot_be_released_are_warnings_of_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real: Any = os.unlink

    def refuse(name: Any, *rest: Any, **more: Any) -> None:
        if str(name).endswith("lock"):
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(name))
        real(name, *rest, **more)

    monkeypatch.setattr(os, "unlink", refuse)
    with opened(job(tmp_path, run_dir=tmp_path / "run")) as run:
        report = failed(run, RunError("of the block"), ours=True)
    assert "lock" not in str(report.warnings)
    report = final_report(run, report)
    assert report.message == "of the block"
    assert ".out.lock" in report.warnings[-2]
    assert "run/lock" in report.warnings[-1]


def test_the_error_is_told_that_came_first_also_where_the_run_folder_is_gone(tmp_path: Path) -> None:
    with opened(job(tmp_path, run_dir=tmp_path / "run")) as run:
        shutil.rmtree(run.folder.path)
        with pytest.raises(RunError, match="the first error"):
            failed(run, OSError("the first error"), ours=True)


def test_an_error_after_publication_takes_no_result_back(tmp_path: Path) -> None:
    with opened(job(tmp_path, run_dir=tmp_path / "run")) as run:
        before = failed(run, RunError("before"), ours=True)
        run.report = replace(before, state="completed", message=None)
        report = failed(run, OSError("too late"), ours=True)
    assert (report.state, report.message) == ("completed", None)
    assert "too late" in report.warnings[-1]
