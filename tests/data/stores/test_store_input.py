"""Input on an object store: listed with size and version, and compared when it is read again."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.dataset import Dataset
from data.errors import InputError, RunError
from data.settings import InputSettings

from .store_bench import Bench

LINES = b"".join(b'{"t": "%06d"}\n' % number for number in range(1000))


def opened(bench: Bench) -> Dataset:
    return Dataset.open(InputSettings(path=bench.url))


def rows(dataset: Dataset) -> int:
    return sum(len(chunk) for chunk in dataset.chunks())


def test_files_are_named_by_their_version_and_read_whole(bench: Bench) -> None:
    for name in ("b.jsonl", "c/a.jsonl", "_skipped.jsonl"):
        bench.put(name, LINES)
    dataset = opened(bench)
    first, second = dataset.fingerprint()
    assert (first.relative, second.relative) == ("b.jsonl", "c/a.jsonl")
    assert first.size == len(LINES)
    assert first.sha256 == second.sha256  # equal content, and no version ids: equal ETags
    assert first.sha256.startswith("etag:")
    assert rows(dataset) == 2000
    dataset.verify(dataset.files)


def test_parquet_is_read_in_ranges(bench: Bench) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"t": ["x"] * 1000}), sink)
    bench.put("a.parquet", sink.getvalue().to_pybytes())
    dataset = opened(bench)
    dataset.fingerprint()
    assert rows(dataset) == 1000


def test_a_version_id_names_a_file_in_a_bucket_that_has_them(bench: Bench) -> None:
    bench.direct.put_bucket_versioning(Bucket=bench.bucket, VersioningConfiguration={"Status": "Enabled"})
    bench.put("a.jsonl", LINES)
    dataset = opened(bench)
    before = dataset.fingerprint()[0].sha256
    assert before.startswith("versionid:")
    bench.put("a.jsonl", LINES)  # the same bytes, written again
    with pytest.raises(RunError, match=r"a\.jsonl changed during the run"):
        dataset.verify(dataset.files)


def test_a_file_that_was_replaced_is_named_when_it_is_read_and_when_it_is_verified(bench: Bench) -> None:
    bench.put("a.jsonl", LINES)
    dataset = opened(bench)
    files = dataset.fingerprint()
    bench.put("a.jsonl", LINES.replace(b"000500", b"999999"))
    with pytest.raises(RunError, match=r"a\.jsonl changed during the run"):
        rows(dataset)
    with pytest.raises(RunError, match=r"a\.jsonl changed during the run"):
        dataset.verify(files)


def test_a_file_that_is_replaced_while_it_is_read_is_named(bench: Bench) -> None:
    content = b"".join(b'{"t": "%06d", "pad": "%s"}\n' % (number, b"x" * 2000) for number in range(40_000))
    bench.put("a.jsonl", content)
    dataset = opened(bench)
    dataset.fingerprint()
    chunks = dataset.chunks()
    next(chunks)
    bench.put("a.jsonl", content.replace(b"x", b"y"))
    with pytest.raises((RunError, InputError), match=r"a\.jsonl"):
        for _ in chunks:
            pass


def test_a_storm_is_waited_out(bench: Bench) -> None:
    bench.put("a.jsonl", LINES)
    dataset = opened(bench)
    dataset.fingerprint()
    fault = bench.store.plant("GET", "a.jsonl", "refuse", times=2)
    assert rows(dataset) == 1000
    assert fault.met == 2


@pytest.mark.parametrize(("status", "code"), [(400, "ExpiredToken"), (403, "AccessDenied")])
def test_what_may_not_be_read_is_named(bench: Bench, status: int, code: str) -> None:
    bench.put("a.jsonl", LINES)
    dataset = opened(bench)
    dataset.fingerprint()
    bench.store.plant("GET", "a.jsonl", "refuse", times=1000, status=status, code=code)
    with pytest.raises(InputError, match=r"no permission to read .*a\.jsonl|a\.jsonl cannot be read"):
        rows(dataset)


def test_without_credentials_or_a_store_the_input_is_refused(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    with pytest.raises(InputError, match=r"s3://.*cannot be read|no permission"):
        opened(bench)
