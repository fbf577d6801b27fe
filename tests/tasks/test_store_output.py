"""A job whose output is on an object store: what is refused before the store is asked, and where its run lies."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import pytest

from data.errors import InputError
from tasks.configuration import load_settings
from tasks.job import Job, RunOptions, prepare
from tasks.job_paths import check_places
from tasks.settings import Settings

MODEL = Path(__file__).parents[2] / "data" / "models" / "messages-4m"
SAMPLE = Path(__file__).parents[2] / "data" / "sample" / "messages.jsonl"


def settings(source: str, output: str) -> Settings:
    given = {
        "input": {"path": source, "limit": 3},
        "output": {"path": output},
        "model": {"path": str(MODEL)},
        "job": {"prompt": "{{ text }}"},
    }
    return load_settings(None, given, ())


def prepared(output: str, run_dir: Path | None = None) -> Job:
    return prepare(settings(str(SAMPLE), output), RunOptions(run_dir), datetime(2026, 11, 26), "overnight infer")


def test_the_run_lies_on_the_local_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    job = prepared("s3://bucket/results/{date}/{run}")
    assert job.output_path == f"s3://bucket/results/2026-11-26/{job.run_id}"
    assert job.run_path == tmp_path / ".overnight" / job.run_id
    assert prepared("s3://bucket/{date}.jsonl").output_path == "s3://bucket/2026-11-26.jsonl"
    assert prepared("s3://bucket/results", tmp_path / "elsewhere").run_path == tmp_path / "elsewhere"


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("gs://bucket/out", "has the scheme gs://; a result is published to a local path or s3://"),
        ("https://bucket/out", "has the scheme https://"),
        ("file:///tmp/out", "has the scheme file://"),
        ("s4://bucket/out", "has the scheme s4://"),
        ("s3://bucket/.out.jsonl", ""),
        ("s3://key:secret@bucket/out", "must not hold a password"),
    ],
)
def test_a_url_that_cannot_be_written_is_refused_without_asking_it(output: str, words: str) -> None:
    with pytest.raises(InputError, match=rf"output\.path.*{words}") as found:
        prepared(output)
    assert "secret" not in str(found.value)


@pytest.mark.parametrize(
    ("source", "output", "message"),
    [
        ("s3://bucket/in", "s3://bucket/in/out", "lies inside"),
        ("s3://bucket/in", "s3a://bucket/in/", "lies inside"),
        ("s3://bucket/all/in", "s3://bucket/all", "holds input"),
    ],
)
def test_the_output_is_not_read_as_input(source: str, output: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_places(settings(source, output))
    check_places(settings("s3://bucket/in", "s3://bucket/input"))
    check_places(settings("in", "s3://bucket/in"))
