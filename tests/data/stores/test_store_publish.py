"""Publication on an object store: content-named parts, then the manifest, over real HTTP to an S3 server."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import replace
from typing import Any

import duckdb
import pandas as pd
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import s3fs

from data.audit import audit
from data.errors import InputError, RunError
from data.plan import load_windows
from data.publish import prepare_output, published_base, verify_published
from data.retry import plan_retry
from data.settings import OutputSettings

from .store_bench import ROWS, SECRET, Bench

PART = re.compile(r"part-0000[012]-[0-9a-f]{16}\.parquet")


def parts(bench: Bench) -> list[str]:
    return [name for name in bench.names() if not name.startswith("_")]


def changes(bench: Bench) -> list[str]:
    return [line for line in bench.store.journal if "_lease" not in line and "_probe" not in line]


def other_run(lab: Any, tmp: Any, new_lab: Any) -> Any:
    """Another run that is computed, for the same output."""
    made = new_lab(tmp / "other", ROWS[:150])
    made.identity = {"sampling": {"seed": 1}}
    made.output = lab.output
    made.compute()
    return made


def test_parts_come_first_and_the_manifest_last(bench: Bench, done: Any) -> None:
    manifest = done.publish()
    assert all(PART.fullmatch(name) for name in parts(bench))
    assert bench.names() == sorted([*parts(bench), "_manifest.json"])
    assert [part.name for part in manifest.files] == parts(bench)
    assert changes(bench)[-1].endswith("_manifest.json")
    assert len(changes(bench)) == 4
    assert manifest == verify_published(bench.url)
    assert list((done.run.path / "staged").iterdir()) == []
    assert list(done.run.shards.iterdir()) == []


def test_what_is_published_reads_as_a_dataset(bench: Bench, done: Any) -> None:
    done.publish()
    filesystem = s3fs.S3FileSystem()
    table = ds.dataset(f"{bench.bucket}/team/result", filesystem=filesystem, format="parquet").to_table()
    assert table["id"].to_pylist() == list(range(300))
    assert pd.read_parquet(bench.url)["output"].notna().sum() == 292
    connection = duckdb.connect()
    connection.register_filesystem(filesystem)
    files = [f"{bench.url}/{part['name']}" for part in json.loads(bench.get("_manifest.json"))["files"]]
    found = connection.sql(f"select count(*), min(id), max(id) from read_parquet({files})").fetchall()
    assert found == [(300, 0, 299)]


def test_publishing_again_verifies_and_changes_nothing(bench: Bench, done: Any) -> None:
    manifest = done.publish()
    bench.store.journal.clear()
    assert done.publish() == manifest == prepare_output(done.run, done.output)
    assert bench.store.journal == []
    content = bench.get(parts(bench)[1])
    bench.put(parts(bench)[1], content[:100] + b"x" + content[101:])
    with pytest.raises(RunError, match=r"part-00001-\w+\.parquet is damaged"):
        done.publish()


def test_a_result_is_known_again_without_its_run_folder(done: Any, new_lab: Any, tmp_path: Any) -> None:
    manifest = done.publish()
    again = new_lab(tmp_path / "again", ROWS)
    again.output = done.output
    assert again.run.id == done.run.id
    assert prepare_output(again.run, again.output) == manifest


def test_another_runs_result_is_replaced_only_when_asked_for(
    bench: Bench, done: Any, new_lab: Any, tmp_path: Any
) -> None:
    old = done.publish()
    other = other_run(done, tmp_path, new_lab)
    with pytest.raises(InputError, match=r"s3://.*holds the result of another run"):
        other.publish()
    seen = []
    bench.store.plant("PUT", "_manifest.json", "before", hook=lambda: seen.append(verify_old(bench, old)))
    new = other.publish(fresh=True)
    assert seen == [True]
    assert parts(bench) == [part.name for part in new.files]
    assert verify_published(bench.url).run == other.run.id
    with pytest.raises(RunError, match="are not at s3://"):
        done.publish(fresh=True)


def verify_old(bench: Bench, old: Any) -> bool:
    """Until the new manifest is there, whoever reads by the manifest has the whole old result."""
    there = json.loads(bench.get("_manifest.json"))
    return there["run"] == old.run and {part["name"] for part in there["files"]} <= set(parts(bench))


def test_parts_without_a_manifest_are_somebodys_and_other_objects_are_never_replaced(bench: Bench, done: Any) -> None:
    bench.put("part-00000-0123456789abcdef.parquet", b"?")
    with pytest.raises(InputError, match="not empty and not a result"):
        done.publish()
    bench.put("notes/readme.txt", b"mine")
    with pytest.raises(InputError, match=r"no part of a result, .*: s3://.*notes/"):
        done.publish(fresh=True)
    bench.direct.delete_object(Bucket=bench.bucket, Key="team/result/notes/readme.txt")
    done.publish(fresh=True)
    assert all(PART.fullmatch(name) for name in parts(bench))
    assert len(parts(bench)) == 3


def test_a_partial_result_is_replaced_once_by_the_complete_one(bench: Bench, lab: Any) -> None:
    made = lab(ROWS)
    made.output = OutputSettings(path=bench.url, error_budget=0.1)
    made.work(made.windows()[0].shards)
    partial = made.publish(partial=True)
    assert not partial.complete
    assert partial.errors["deadline"] > 0
    assert made.publish(partial=True) == partial
    made.compute()
    complete = made.publish()
    assert complete.complete
    assert parts(bench) == [part.name for part in complete.files]
    assert made.publish() == made.publish(partial=True) == complete


def test_errors_are_computed_again_from_what_is_published(bench: Bench, done: Any) -> None:
    made = done
    made.output = replace_path(made.output, bench.url + "-retry")
    for shard in made.run.commits.iterdir():
        shard.unlink()
    made.compute(lambda text, _: text == "text 7")
    first = made.publish()
    assert first.errors["nan_logits"] > 0
    windows, base = load_windows(made.run), published_base(made.run, made.output)
    window = plan_retry(made.run, made.dataset, made.prompter, made.run.id, made.options, windows, base)
    assert window is not None
    made.work(window.shards)
    second = made.publish()
    assert (second.retries, second.errors) == (1, {"blank_prompt": 8})
    assert verify_published(made.output.path) == second


def replace_path(output: OutputSettings, path: str) -> OutputSettings:
    return output.model_copy(update={"path": path})


@pytest.mark.parametrize("form", ["parquet", "jsonl"])
def test_the_audit_reads_every_byte(bench: Bench, done: Any, form: Any) -> None:
    done.output = done.output.model_copy(update={"format": form})
    done.publish()
    report = audit(bench.url)
    assert (report.problems, report.rows, report.ok, report.files) == ([], 300, 292, 3)
    name = parts(bench)[2]
    content = bench.get(name)
    told = base64.b64encode(hashlib.sha256(content).digest()).decode()  # of the store, which is wrong about its bytes
    damaged = {"Body": bytes([content[0] ^ 1]) + content[1:], "ChecksumSHA256": told, "ChecksumAlgorithm": "SHA256"}
    bench.direct.put_object(Bucket=bench.bucket, Key=f"team/result/{name}", **damaged)
    assert [problem for problem in audit(bench.url).problems if name in problem and "damaged" in problem]
    bench.direct.delete_object(Bucket=bench.bucket, Key=f"team/result/{name}")
    assert audit(bench.url).problems == [f"{name} is missing from {bench.url}"]
    assert not audit(f"{bench.url}-not-there").valid


def test_no_secret_is_written_anywhere(bench: Bench, done: Any) -> None:
    done.publish()
    files = [path for path in done.root.rglob("*") if path.is_file()]
    written = [path.read_bytes() for path in files] + [bench.get(name) for name in bench.names()]
    assert len(written) > 10
    assert not [content for content in written if SECRET.encode() in content or b"AKIDSENTINEL" in content]


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("gs://bucket/out", "scheme gs://"),
        ("https://bucket/out", "scheme https://"),
        ("s3://key:secret@bucket/out", "names no bucket"),
        ("s3://bucket", "needs a prefix"),
        ("s3://bucket/a//b", "needs a prefix"),
        ("s3://bucket/out*", "needs a prefix"),
        ("s3://bucket/_out", "needs a prefix"),
        ("s3://bucket/_out.parquet", "needs a prefix"),
    ],
)
def test_other_urls_are_refused(done: Any, url: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as found:
        prepare_output(done.run, replace_path(done.output, url))
    assert "secret" not in str(found.value)


def test_the_parts_of_wide_rows_end_before_they_are_too_large(done: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data.parts.PART_ROWS", 1_000_000)
    monkeypatch.setattr("data.parts.PART_BYTES", 1000)
    monkeypatch.setattr("data.parts.ROW_GROUP_ROWS", 70)
    assert [part.rows for part in done.publish().files] == [70, 70, 70, 70, 20]


def test_read_by_the_manifest_after_it_says_which_files(bench: Bench, done: Any) -> None:
    manifest = done.publish()
    rows = sum(pq.read_table(f"{bench.url}/{part.name}").num_rows for part in manifest.files)
    assert rows == manifest.rows
    assert replace(manifest, files=()).digest != manifest.digest
