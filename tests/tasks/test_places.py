"""Of two drivers of one run, or of one output, the second is told so before it changes anything."""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path

import pytest

from data.errors import Held, InputError
from tasks.configuration import load_settings
from tasks.job import Job, RunOptions, prepare
from tasks.places import locked_places
from tests.flows.conftest import MODEL


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def job(place: Path, output: str = "out", seed: int = 0, fresh: bool = False, run_dir: Path | None = None) -> Job:
    (place / "in.jsonl").write_text('{"text": "hello"}\n')
    given = {
        "input": {"path": str(place / "in.jsonl")},
        "output": {"path": str(place / output)},
        "model": {"path": str(MODEL)},
        "job": {"prompt": "{{ text }}"},
        "sampling": {"seed": seed},
    }
    return prepare(load_settings(None, given, (), {}), RunOptions(run_dir, fresh), datetime.now(), "overnight infer")


@pytest.mark.parametrize(
    ("output", "run", "words"),
    [
        ("out", "out", "the run folder .*/out lies inside output.path"),
        ("out", "out/run", "the run folder .*/out/run lies inside output.path"),
        ("run/out", "run", "output.path .*/run/out lies inside the run folder"),
    ],
)
def test_output_and_run_folder_lie_apart(tmp_path: Path, output: str, run: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        job(tmp_path, output, run_dir=tmp_path / run)
    assert job(tmp_path, "out", run_dir=tmp_path / "out.run").run_path == tmp_path / "out.run"


def test_a_run_has_one_driver_whatever_output_it_names(tmp_path: Path) -> None:
    ours = job(tmp_path, run_dir=tmp_path / "run")
    elsewhere = job(tmp_path, "other", run_dir=tmp_path / "run")
    afresh = job(tmp_path, fresh=True, run_dir=tmp_path / "run")
    with locked_places(ours) as (folder, _):
        attempt = folder.tmp / "an attempt in progress"
        attempt.touch()
        for theirs in (ours, elsewhere, afresh):
            with (
                pytest.raises(Held, match=f"the run folder .*/run is in use by process {os.getpid()}"),
                locked_places(theirs),
            ):
                pass
        assert attempt.exists()
    with locked_places(elsewhere):
        assert not attempt.exists()


def test_an_output_has_one_driver_whatever_run_it_is(tmp_path: Path) -> None:
    with locked_places(job(tmp_path)):
        with (
            pytest.raises(Held, match=f"the output .*/out is in use by process {os.getpid()}"),
            locked_places(job(tmp_path, seed=1)),
        ):
            pass
        with locked_places(job(tmp_path, "other", seed=1)):
            pass
    with locked_places(job(tmp_path, seed=1)):
        pass
