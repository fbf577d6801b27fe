"""A run folder belongs to one run, says how another one differs, and is refused where the protocol cannot work."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from data.errors import Held, InputError
from data.run_folder import RunFolder, preflight, run_id, set_aside

IDENTITY = {"sampling": {"seed": 1, "top_p": 0.5}, "job": {"prompt": "secret text"}, "input": ["aa", "bb"]}


def test_the_id_is_a_digest_of_the_identity_whatever_its_key_order() -> None:
    assert run_id({"b": 1, "a": [1, 2]}) == run_id({"a": [1, 2], "b": 1})
    assert run_id({"a": [1, 2]}) != run_id({"a": [2, 1]})
    assert len(run_id({})) == 16


def test_creating_it_again_goes_on_with_it(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "x" / "run", IDENTITY)
    assert RunFolder.create(run.path, IDENTITY) == run == RunFolder.open(run.path)
    assert run.identity == IDENTITY
    assert run.path.stat().st_mode & 0o777 == 0o700
    for folder in (run.plan, run.prompts, run.shards, run.commits, run.attempts, run.publications, run.tmp):
        assert folder.stat().st_mode & 0o777 == 0o700


def test_another_identity_is_refused_with_the_differences_but_no_prompt(tmp_path: Path) -> None:
    RunFolder.create(tmp_path / "run", IDENTITY)
    other = {**IDENTITY, "sampling": {"seed": 2, "top_p": 0.5}, "job": {"prompt": "other text"}}
    with pytest.raises(InputError) as caught:
        RunFolder.create(tmp_path / "run", other)
    message = str(caught.value)
    assert "sampling.seed was 1, is 2" in message
    assert "job.prompt differs" in message
    assert "top_p" not in message
    assert "text" not in message
    assert "\n" not in message


def refuse(run: RunFolder, *, gone: bool = False) -> None:
    def block() -> None:
        with run.lock():
            if gone:
                shutil.rmtree(run.path)
            raise InputError("refused")

    with pytest.raises(InputError, match="refused"):
        block()


def test_a_folder_made_for_a_run_that_is_refused_goes_again(tmp_path: Path) -> None:
    refuse(RunFolder.create(tmp_path / "x" / "run", IDENTITY))
    assert not list(tmp_path.iterdir())
    (tmp_path / "x").mkdir()
    refuse(RunFolder.create(tmp_path / "x" / "run", IDENTITY))
    assert [path.name for path in tmp_path.rglob("*")] == ["x"]


def test_a_refusal_is_told_also_where_the_folder_is_gone(tmp_path: Path) -> None:
    refuse(RunFolder.create(tmp_path / "run", IDENTITY), gone=True)


@pytest.mark.parametrize("begun", ["plan/w00000.json", "events.jsonl", "publications/replace.json", None])
def test_a_folder_that_was_there_or_holds_what_was_begun_stays(tmp_path: Path, begun: str | None) -> None:
    run = RunFolder.create(tmp_path / "run", IDENTITY)
    if begun is not None:
        (run.path / begun).touch()
    refuse(run if begun is not None else RunFolder.create(run.path, IDENTITY))
    with pytest.raises(KeyError), run.lock():
        raise KeyError
    assert RunFolder.open(run.path) == run
    assert begun is None or (run.path / begun).exists()


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(InputError, match=r"not a run folder and not empty .*thesis\.tex"):
        RunFolder.create(tmp_path, IDENTITY)
    with pytest.raises(InputError, match=r"no run\.json"):
        RunFolder.open(tmp_path)


def test_what_a_driver_left_that_was_killed_while_creating_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "run" / "plan").mkdir(parents=True)
    assert RunFolder.create(tmp_path / "run", IDENTITY).identity == IDENTITY


def test_a_damaged_identity_is_named(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", IDENTITY)
    content = (run.path / "run.json").read_text()
    (run.path / "run.json").write_text(content.replace('"seed": 1', '"seed": 3'))
    with pytest.raises(InputError, match=r"run\.json is damaged"):
        RunFolder.open(run.path)


def test_setting_aside_keeps_the_old_folder_and_frees_the_name(tmp_path: Path) -> None:
    path = tmp_path / "run"
    assert set_aside(path) is None
    RunFolder.create(path, IDENTITY)
    assert set_aside(path) == tmp_path / "run.old-0"
    run = RunFolder.create(path, {"other": 1})
    with run.lock(), pytest.raises(Held):
        set_aside(path)
    assert set_aside(path) == tmp_path / "run.old-1"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["run.old-0", "run.old-1"]


def test_sweeping_removes_what_the_dead_left(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", IDENTITY)
    (run.tmp / "spill").mkdir()
    (run.tmp / "spill" / "block").touch()
    (run.tmp / "77-abc").touch()
    run.sweep()
    assert not list(run.tmp.iterdir())


def test_preflight_makes_the_parents_and_leaves_no_probe(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", IDENTITY)
    preflight(run, tmp_path / "new" / "deep" / "out")
    assert (tmp_path / "new" / "deep").is_dir()
    (tmp_path / "new" / "deep" / f".overnight-probe-{run.id}-dead.renamed").touch()  # of a start that was killed
    preflight(run, tmp_path / "new" / "deep" / "out")
    assert not list((tmp_path / "new" / "deep").iterdir())
    assert not list(run.tmp.iterdir())


def test_preflight_refuses_another_filesystem(tmp_path: Path) -> None:
    elsewhere = Path("/dev/shm")
    if not os.access(elsewhere, os.W_OK) or elsewhere.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("needs a second filesystem")
    run = RunFolder.create(tmp_path / "run", IDENTITY)
    with pytest.raises(InputError, match=r"another filesystem.*--run-dir"):
        preflight(run, elsewhere / "overnight-test" / "out")
    (elsewhere / "overnight-test").rmdir()


def test_preflight_names_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", IDENTITY)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"cannot write, link and rename in .*file"):
        preflight(run, tmp_path / "file" / "out")


@pytest.mark.parametrize("call", ["link", "rename", "fsync"])
def test_preflight_refuses_a_filesystem_without_what_publication_needs(
    tmp_path: Path, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunFolder.create(tmp_path / "run", IDENTITY)
    (tmp_path / "results").mkdir()
    real, made = getattr(os, call), 0

    def refuses(*arguments: object) -> None:
        nonlocal made
        made += 1
        if call == "fsync" and made == 1:  # of the probe's content; the second one is of the folder
            return real(*arguments)
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, call, refuses)
    words = r"cannot write, link and rename in .*results: Operation not supported; set output\.path"
    with pytest.raises(InputError, match=words):
        preflight(run, tmp_path / "results" / "out")
    monkeypatch.undo()
    assert not list((tmp_path / "results").iterdir())
    assert not list(run.tmp.iterdir())


def test_a_place_where_no_run_folder_can_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        InputError, match=r"run folder .*file/run cannot be written: .*file: File exists\. Set --run-dir"
    ):
        RunFolder.create(tmp_path / "file" / "run", IDENTITY)
