"""What lies at the output already: replaced only where it is a result and the user asks for it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data.assemble import assemble
from data.durable import move
from data.errors import InputError, RunError
from data.publish import prepare_output, verify_published
from data.settings import OutputSettings
from data.target import Target
from tests.data.publishing import ROWS, expected, settings


def test_another_result_or_foreign_files_are_replaced_only_with_fresh(
    tmp_path: Any, new_lab: Callable[..., Any]
) -> None:
    first = new_lab(tmp_path / "a", ROWS[:50], output=OutputSettings(path=str(tmp_path / "out"), error_budget=1))
    first.compute()
    old = first.publish()
    second = new_lab(tmp_path / "b", ROWS, output=first.output, identity={"other": 1})
    second.compute()
    with pytest.raises(InputError, match=r"result of another run; .*--fresh"):
        second.publish()
    with pytest.raises(InputError, match="--fresh"):
        prepare_output(second.run, second.output)
    assert verify_published(tmp_path / "out") == old
    assert prepare_output(second.run, second.output, fresh=True) is None
    assert verify_published(tmp_path / "out") == old, "the old result stays until the new one is complete"
    assert second.publish().run == second.run.id, "the permission outlives the process that gave it"
    assert second.rows() == expected(ROWS)
    assert sorted(os.listdir(tmp_path)) == ["a", "b", "out"]
    (tmp_path / "out" / "_manifest.json").unlink()
    (tmp_path / "out" / "part-00000.parquet").write_text("mine")
    with pytest.raises(InputError, match="is not empty and not a result"):
        second.publish()


@pytest.mark.parametrize("name", ["thesis.docx", ".git", "_notes", "part-00000.parquet.bak"])
def test_files_that_are_no_result_are_not_replaced_with_fresh_either(done: Any, name: str) -> None:
    done.publish()
    (done.target / name).mkdir()
    (done.target / name / "precious").write_text("mine")
    (done.target / "_manifest.json").unlink()
    (done.target / "part-00000.parquet").write_text("another result's")
    with pytest.raises(InputError, match=f"no part of a result.*--fresh.*{re.escape(name)}"):
        prepare_output(done.run, done.output, fresh=True)
    assert (done.target / name / "precious").read_text() == "mine"


def test_a_file_that_is_no_result_is_not_replaced_with_fresh_either(done: Any) -> None:
    done.output = settings(done, path=str(done.root / "mine.jsonl"))
    (done.root / "mine.jsonl").write_text("precious")
    with pytest.raises(InputError, match=r"no part of a result.*mine\.jsonl"):
        done.publish(fresh=True)
    assert (done.root / "mine.jsonl").read_text() == "precious"


def test_a_file_that_comes_to_lie_at_the_path_meanwhile_stays(tmp_path: Path) -> None:
    (tmp_path / ".assembled").write_text("ours")
    (tmp_path / "out.jsonl").write_text("theirs")
    with pytest.raises(RunError, match=r"cannot move the result to .*out\.jsonl: File exists"):
        Target.at(tmp_path / "out.jsonl").place(tmp_path / ".assembled")
    assert (tmp_path / "out.jsonl").read_text() == "theirs"
    assert (tmp_path / ".assembled").read_text() == "ours"


@pytest.fixture
def rivals(tmp_path: Path, new_lab: Callable[..., Any]) -> tuple[Any, Any]:
    """Two runs with one output, both with every answer."""
    output = OutputSettings(path=str(tmp_path / "out"), error_budget=1)
    made = [new_lab(tmp_path / name, ROWS[:50], output=output, identity={name: 1}) for name in ("ours", "theirs")]
    for lab in made:
        lab.compute()
    return made[0], made[1]


def test_a_result_that_another_run_publishes_meanwhile_stays(
    rivals: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = rivals

    def then_theirs(*args: Any, **options: Any) -> Any:
        monkeypatch.undo()
        found = prepare_output(*args, **options)
        theirs.publish()
        return found

    monkeypatch.setattr("data.publish.prepare_output", then_theirs)
    with pytest.raises(RunError, match=r"_manifest\.json was changed by another run; run again"):
        ours.publish()
    assert verify_published(ours.target).run == theirs.run.id


@pytest.mark.parametrize("finished", [True, False], ids=["published", "without a manifest yet"])
def test_so_does_one_that_it_publishes_while_ours_is_assembled(
    rivals: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch, finished: bool
) -> None:
    ours, theirs = rivals

    def then_theirs(*args: Any) -> Any:
        monkeypatch.undo()
        theirs.publish()
        if not finished:
            (theirs.target / "_manifest.json").unlink()
        return assemble(*args)

    monkeypatch.setattr("data.publish.assemble", then_theirs)
    with pytest.raises(RunError, match=r"out was written by another run meanwhile; it stays as it is"):
        ours.publish()
    theirs.publish()
    assert verify_published(ours.target).run == theirs.run.id


class Killed(BaseException):
    """Nothing of the program goes on after it."""


@pytest.mark.parametrize("name", ["out.parquet", "out.jsonl"])
@pytest.mark.parametrize("again", [False, True], ids=["resumed", "fresh again"])
def test_a_file_whose_manifest_alone_was_set_aside_is_replaced_all_the_same(
    tmp_path: Path, new_lab: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, name: str, again: bool
) -> None:
    output = OutputSettings(path=str(tmp_path / name), error_budget=1)
    first = new_lab(tmp_path / "a", ROWS[:50], output=output)
    first.compute()
    old = first.publish()
    second = new_lab(tmp_path / "b", ROWS, output=output, identity={"other": 1})
    prepare_output(second.run, output, fresh=True)
    second.compute()
    moved: list[Path] = []

    def killed_at_second(source: Path, target: Path) -> None:
        if moved:
            raise Killed
        moved.append(source)
        move(source, target)

    with monkeypatch.context() as patch:
        patch.setattr("data.target.move", killed_at_second)
        with pytest.raises(Killed):
            second.publish()
    assert moved == [Target.at(output.path).manifest]
    assert prepare_output(second.run, output, fresh=again) is None
    assert verify_published(output.path) == old, "the old result stays until the new one is complete"
    assert second.publish().complete
    assert second.rows() == expected(ROWS)
    assert sorted(os.listdir(tmp_path)) == sorted(["a", "b", name, f"_{name}.manifest.json"])


def test_another_file_gets_no_manifest_that_was_set_aside(tmp_path: Path, new_lab: Callable[..., Any]) -> None:
    """Somebody who sees the file without its manifest puts another one there."""
    done = new_lab(tmp_path / "a", ROWS[:50], output=OutputSettings(path=str(tmp_path / "out.jsonl"), error_budget=1))
    done.compute()
    done.publish()
    target = Target.at(done.output.path, done.run)
    move(target.manifest, target.hidden("old").with_suffix(".manifest"))
    target.path.write_text("mine")
    with pytest.raises(InputError, match=r"no part of a result.*out\.jsonl"):
        prepare_output(done.run, done.output, fresh=True)
    assert target.path.read_text() == "mine"
    assert not target.manifest.exists()


def test_an_empty_output_folder_is_used(done: Any) -> None:
    done.target.mkdir()
    done.publish()
    assert done.rows() == expected(ROWS)


def test_the_wrong_sort_of_output_is_refused(done: Any) -> None:
    done.target.write_text("a file")
    with pytest.raises(InputError, match="is a file; set it to another name"):
        done.publish()
    done.output = settings(done, path="https://bucket/out")
    with pytest.raises(InputError, match="has the scheme https://"):
        done.publish()
