"""Of two drivers of one run, or of one output, the second is told so before it changes anything."""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path

import pytest

from data.errors import Held, InputError
from tasks.configuration import load_settings
from tasks.job import Job, RunOptions, prepare
from tasks.job_paths import dated
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


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("slash", ["", "/"])
def test_a_link_at_the_output_is_followed(tmp_path: Path, there: bool, slash: str) -> None:
    place = tmp_path / "disk" / "answers"
    (place if there else place.parent).mkdir(parents=True)
    (tmp_path / "link").symlink_to("disk/answers")
    ours = job(tmp_path, f"link{slash}")
    assert ours.output_path == str(place)
    assert ours.run_path == tmp_path / "disk" / ".overnight" / ours.run_id, "on the disk of the result"


@pytest.mark.parametrize("leads_to", ["link", "nowhere/answers", "answers.parquet"])
def test_a_link_to_where_nothing_can_be_put_is_refused(tmp_path: Path, leads_to: str) -> None:
    (tmp_path / "link").symlink_to(leads_to)
    with pytest.raises(InputError, match=r"output\.path .*/link (is a link to|cannot be used)"):
        job(tmp_path, "link")


def test_the_home_may_be_named_by_its_sign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    given = {"input": {"path": "~/in.jsonl"}, "output": {"path": "~/out"}}
    found = dated(load_settings(None, given, (), {}), datetime.now())
    assert (found.input.path, found.output.path) == (str(tmp_path / "home/in.jsonl"), str(tmp_path / "home/out"))


def test_a_run_folder_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match=r"the run folder .*/file is a file: choose another --run-dir"):
        job(tmp_path, run_dir=tmp_path / "file")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "day").touch()
    with pytest.raises(InputError, match=r"run/day is damaged: .* or set the run aside with --fresh"):
        job(tmp_path, run_dir=tmp_path / "run")
    assert job(tmp_path, run_dir=tmp_path / "run", fresh=True).run_path == tmp_path / "run"


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
