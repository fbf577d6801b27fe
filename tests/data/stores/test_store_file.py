"""One object as the whole result: put under its own name, then the manifest, each on its condition."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from data.audit import audit
from data.bucket import Refused, StoreError
from data.destination import destination
from data.errors import Held, InputError, RunError
from data.plan import load_windows
from data.publish import prepare_output, published_base, verify_published
from data.retry import plan_retry

from .store_bench import Bench
from .test_store_publish import changes, other_run

NAME, MANIFEST = "answers.parquet", "_answers.parquet.manifest.json"


@pytest.fixture
def single(bench: Bench, done: Any) -> Any:
    """A computed run whose output is one object."""
    return at(done, f"{bench.url}/{NAME}")


def at(lab: Any, url: str) -> Any:
    lab.output = lab.output.model_copy(update={"path": url})
    return lab


def kinds(bench: Bench) -> list[str]:
    """What was changed: method and name."""
    return [f"{line.partition(' ')[0]} {line.rpartition('/')[2]}" for line in changes(bench)]


def test_the_object_comes_first_and_the_manifest_last(bench: Bench, single: Any) -> None:
    manifest = single.publish()
    assert kinds(bench) == [f"PUT {NAME}", f"PUT {MANIFEST}"]
    assert bench.names() == [MANIFEST, NAME]
    assert pd.read_parquet(single.output.path)["id"].tolist() == list(range(300))
    assert verify_published(single.output.path) == manifest
    report = audit(single.output.path)
    assert (report.problems, report.rows, report.ok, report.counted) == ([], 300, 292, 1)
    assert list((single.run.path / "staged").iterdir()) == []
    bench.store.journal.clear()
    assert single.publish() == manifest == prepare_output(single.run, single.output)
    assert bench.store.journal == []


def test_json_lines_at_the_root_of_a_bucket(bench: Bench, done: Any) -> None:
    at(done, f"s3://{bench.bucket}/answers.jsonl").publish()
    assert bench.names() == ["_answers.jsonl.manifest.json", "answers.jsonl"]
    content = bench.direct.get_object(Bucket=bench.bucket, Key="answers.jsonl")["Body"].read()
    assert [json.loads(line)["id"] for line in content.splitlines()] == list(range(300))
    assert audit(done.output.path).valid


def test_another_object_of_that_name_is_never_replaced(bench: Bench, single: Any) -> None:
    bench.put(NAME, b"mine")
    for fresh in (False, True):
        with pytest.raises(InputError, match=r"no part of a result, .*: s3://.*answers\.parquet"):
            single.publish(fresh=fresh)
    assert bench.get(NAME) == b"mine"


def test_another_runs_result_is_replaced_only_when_asked_for(
    bench: Bench, single: Any, new_lab: Any, tmp_path: Path
) -> None:
    single.publish()
    other = other_run(single, tmp_path, new_lab)
    with pytest.raises(InputError, match=r"s3://.*holds the result of another run"):
        other.publish()
    bench.store.journal.clear()
    new = other.publish(fresh=True)
    assert kinds(bench) == [f"DELETE {MANIFEST}", f"PUT {NAME}", f"PUT {MANIFEST}"]
    assert verify_published(single.output.path) == new
    assert new.run == other.run.id


def test_a_partial_result_is_replaced_once_by_the_complete_one(single: Any) -> None:
    for commit in sorted(single.run.commits.iterdir())[1:]:
        commit.unlink()
    partial = single.publish(partial=True)
    assert partial.errors["deadline"] > 0
    assert single.publish(partial=True) == partial
    single.compute()
    complete = single.publish()
    assert complete.complete
    assert single.publish() == single.publish(partial=True) == complete == verify_published(single.output.path)


def test_errors_are_computed_again_from_what_is_published(single: Any) -> None:
    for commit in single.run.commits.iterdir():
        commit.unlink()
    single.compute(lambda text, _: text == "text 7")
    assert single.publish().errors["nan_logits"] > 0
    windows, base = load_windows(single.run), published_base(single.run, single.output)
    window = plan_retry(single.run, single.dataset, single.prompter, single.run.id, single.options, windows, base)
    assert window is not None
    single.work(window.shards)
    second = single.publish()
    assert (second.retries, second.errors) == (1, {"blank_prompt": 8})
    assert verify_published(single.output.path) == second


def test_a_refused_put_leaves_what_somebody_else_wrote(bench: Bench, single: Any) -> None:
    bench.store.plant("PUT", f"/{NAME}", "before", hook=lambda: bench.put(NAME, b"theirs"))
    with pytest.raises(Refused, match=r"answers\.parquet holds other content"):
        single.publish()
    assert bench.names() == [NAME]
    with pytest.raises(InputError, match="no part of a result"):
        single.publish()
    assert bench.get(NAME) == b"theirs"
    bench.direct.delete_object(Bucket=bench.bucket, Key=f"team/result/{NAME}")
    bench.store.plant("PUT", MANIFEST, "before", hook=lambda: bench.put(MANIFEST, b"theirs"))
    with pytest.raises(RunError, match=r"manifest\.json was written by another run"):
        single.publish()
    assert bench.get(MANIFEST) == b"theirs"


@pytest.mark.parametrize("changed", [NAME, MANIFEST])
def test_what_changes_while_it_is_replaced_stays(
    bench: Bench, single: Any, new_lab: Any, tmp_path: Path, changed: str
) -> None:
    single.publish()
    other = other_run(single, tmp_path, new_lab)
    method = "PUT" if changed == NAME else "DELETE"
    bench.store.plant(method, f"/{changed}", "before", hook=lambda: bench.put(changed, b"newer"))
    with pytest.raises(RunError):
        other.publish(fresh=True)
    assert bench.get(changed) == b"newer"


@pytest.mark.parametrize("name", [NAME, MANIFEST])
@pytest.mark.parametrize("replacing", [False, True])
def test_a_put_whose_answer_was_lost_is_recognised(
    bench: Bench, single: Any, new_lab: Any, tmp_path: Path, name: str, replacing: bool
) -> None:
    if replacing:
        single.publish()
        single = other_run(single, tmp_path, new_lab)
    fault = bench.store.plant("PUT", f"/{name}", "late")
    manifest = single.publish(fresh=replacing)
    assert fault.met == 1
    assert verify_published(single.output.path) == manifest


@pytest.mark.parametrize("cut", range(3))
def test_cut_off_after_any_change_it_resumes_to_the_same_bytes(bench: Bench, single: Any, cut: int) -> None:
    bench.store.cut_after = cut
    if cut < 2:
        with pytest.raises(StoreError, match="the store keeps failing"):
            single.publish()
        assert MANIFEST not in bench.names()
    bench.store.cut_after, bench.store.cut = None, False
    manifest = single.publish()
    assert verify_published(single.output.path) == manifest
    assert kinds(bench) == [f"PUT {NAME}", f"PUT {MANIFEST}"]


@pytest.mark.parametrize("cut", range(3))
def test_a_swap_that_is_cut_off_is_finished_by_the_same_run(
    bench: Bench, single: Any, new_lab: Any, tmp_path: Path, cut: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever lies there meanwhile, a manifest beside it is that of the bytes."""
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    old = single.publish()
    other = other_run(single, tmp_path, new_lab)
    bench.store.heal()
    bench.store.cut_after = cut
    with pytest.raises(StoreError, match="the store keeps failing"):
        other.publish(fresh=True)
    bench.store.heal()
    assert (MANIFEST in bench.names()) == (cut == 0)
    if cut == 0:
        assert verify_published(single.output.path) == old
    manifest = other.publish()
    assert verify_published(single.output.path) == manifest
    assert manifest.run == other.run.id


def test_the_places_beside_it_are_its_own(bench: Bench, single: Any, new_lab: Any, tmp_path: Path) -> None:
    other = other_run(single, tmp_path, new_lab)
    mine, theirs = (destination(single.output.path, run) for run in (single.run, other.run))
    mine.preflight()
    with mine.lock():
        assert bench.names() == ["_answers.parquet.lease.json"]
        with pytest.raises(Held, match=r"the output s3://.*answers\.parquet is in use"), theirs.lock():
            pass
        with destination(f"{bench.url}/others.parquet", other.run).lock():
            pass
    assert bench.names() == []


def test_a_file_that_no_store_takes_in_one_put_is_refused(
    bench: Bench, single: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data.store_file.LARGEST_BYTES", 100)
    with pytest.raises(RunError, match=r"5 GiB at most: set output\.path to a prefix"):
        single.publish()
    assert bench.names() == []
    assert at(single, bench.url).publish().complete


def test_what_somebody_put_in_the_place_of_a_swap_that_was_cut_off_stays(
    bench: Bench, single: Any, new_lab: Any, tmp_path: Path
) -> None:
    single.publish()
    other = other_run(single, tmp_path, new_lab)
    bench.store.heal()
    bench.store.cut_after = 1
    with pytest.raises(StoreError):
        other.publish(fresh=True)
    bench.store.heal()
    bench.put(NAME, b"mine")
    with pytest.raises(InputError, match="no part of a result"):
        other.publish()
    assert bench.get(NAME) == b"mine"
