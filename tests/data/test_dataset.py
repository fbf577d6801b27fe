"""The input as one stream of rows: Parquet and JSONL, in order, from any row, and proof that it did not change."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data import streams
from data.dataset import Dataset
from data.errors import InputError, RunError
from data.rows import BadRow
from data.settings import InputSettings
from data.sources import list_sources


def opened(path: Path | str, **settings: Any) -> Dataset:
    return Dataset.open(InputSettings(path=str(path), **settings))


def rows(dataset: Dataset, first_row: int = 0, columns: list[str] | None = None) -> list[Any]:
    found: list[Any] = []
    for chunk in dataset.chunks(first_row, columns):
        assert chunk.first_row == first_row + len(found)
        assert len(chunk.records) == len(chunk)
        found.extend(chunk.records)
    return found


def zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


def jsonl(start: int, stop: int) -> bytes:
    return "".join(f'{{"n": {n}, "t": "row {n}"}}\n' for n in range(start, stop)).encode()


@pytest.fixture
def jsonl_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.jsonl").write_bytes(jsonl(0, 10_000))
    (folder / "b.jsonl").write_bytes(b"")
    (folder / "c.jsonl.gz").write_bytes(gzip.compress(jsonl(10_000, 11_000)) + gzip.compress(jsonl(11_000, 20_000)))
    (folder / "d.jsonl.zst").write_bytes(zstd(jsonl(20_000, 30_000)))
    return folder


@pytest.fixture
def parquet_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    for name, start in (("a", 0), ("b", 10_000), ("c", 20_000)):
        numbers = range(start, start + 10_000)
        table = pa.table({"n": numbers, "t": [f"row {n}" for n in numbers]})
        pq.write_table(table, folder / f"{name}.parquet", row_group_size=3_000)
    return folder


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_rows_in_order_from_any_row_and_up_to_the_limit(kind: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(f"{kind}_folder")
    expected = [{"n": n, "t": f"row {n}"} for n in range(30_000)]
    dataset = opened(folder)
    assert dataset.format == kind
    assert rows(dataset, 19_990) == expected[19_990:]  # before any pass has counted rows
    assert rows(dataset) == expected
    for first in (0, 1, 8_191, 8_192, 9_999, 10_000, 12_345, 29_999, 30_000, 40_000):
        assert rows(dataset, first) == expected[first:]
    for limit in (0, 1, 10_000, 10_001, 30_000, 50_000):
        assert rows(opened(folder, limit=limit)) == expected[:limit]
    assert rows(opened(folder, limit=15_000), 9_999) == expected[9_999:15_000]
    assert rows(dataset, 29_000, ["t"]) == [{"t": row["t"]} for row in expected[29_000:]]
    assert [chunk.bytes_read for chunk in dataset.chunks()][-1] == dataset.size


def test_bytes_read_grows(jsonl_folder: Path) -> None:
    read = [chunk.bytes_read for chunk in opened(jsonl_folder).chunks()]
    assert read == sorted(read)


def test_columns_of_parquet_are_checked_selected_and_ordered(parquet_folder: Path) -> None:
    dataset = opened(parquet_folder, columns=("t", "n"))
    assert dataset.columns == ("t", "n")
    assert dataset.schema is not None
    chunk = next(dataset.chunks())
    assert chunk.arrow(dataset.schema).schema == dataset.schema
    assert list(rows(dataset)[0]) == ["t", "n"]
    with pytest.raises(InputError, match="no column 'x' in the input, which has n, t"):
        opened(parquet_folder, columns=("x",))
    with pytest.raises(InputError, match="twice"):
        opened(parquet_folder, columns=("t", "t"))


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_partition_folders_become_columns(tmp_path: Path, kind: str) -> None:
    for day in ("1", "2", "__HIVE_DEFAULT_PARTITION__"):
        folder = tmp_path / f"day={day}"
        folder.mkdir()
        if kind == "jsonl":
            (folder / "x.jsonl").write_bytes(b'{"a": 1}\n')
        else:
            pq.write_table(pa.table({"a": [1]}), folder / "x.parquet")
    dataset = opened(tmp_path)
    expected = [{"a": 1, "day": "1"}, {"a": 1, "day": "2"}, {"a": 1, "day": None}]
    assert rows(dataset) == expected
    schema = dataset.schema or pa.schema([("a", pa.int64()), ("day", pa.string())])
    assert [row for chunk in dataset.chunks() for row in chunk.arrow(schema).to_pylist()] == expected
    assert rows(dataset, 0, ["day"]) == [{"day": "1"}, {"day": "2"}, {"day": None}]


def test_a_remote_input_reads_as_a_local_one(jsonl_folder: Path) -> None:
    disk = fsspec.filesystem("memory")
    for path in jsonl_folder.iterdir():
        disk.pipe(f"/remote/in/{path.name}", path.read_bytes())
    remote, local = opened("memory://remote/in"), opened(jsonl_folder)
    assert rows(remote) == rows(local)
    assert [f.sha256 for f in remote.fingerprint()] == [f.sha256 for f in local.fingerprint()]
    remote.verify(remote.files)


def test_an_empty_jsonl_and_a_parquet_without_rows_have_zero_rows(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").touch()
    assert rows(opened(tmp_path / "x.jsonl")) == []
    pq.write_table(pa.table({"a": pa.array([], pa.int64())}), tmp_path / "x.parquet")
    assert rows(opened(tmp_path / "x.parquet")) == []


def refused(path: Path | str, match: str) -> None:
    with pytest.raises(InputError, match=match) as caught:
        rows(opened(path))
    assert "\n" not in str(caught.value)


def test_inputs_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    good = tmp_path / "a.parquet"
    pq.write_table(pa.table({"a": [1], "b": ["x"]}), good)
    content = good.read_bytes()
    bad = tmp_path / "b.parquet"
    bad.write_bytes(content[:-20])
    refused(bad, r"b\.parquet is not a whole Parquet file")
    bad.write_bytes(content[:4] + b"\0" * 40 + content[44:])
    refused(bad, r"b\.parquet")
    pq.write_table(pa.table({"a": ["x"], "b": ["x"]}), bad)
    refused(tmp_path, r"b\.parquet: column 'a' is string but int64 in .*a\.parquet")
    pq.write_table(pa.table({"a": [1]}), bad)
    refused(tmp_path, r"b\.parquet lacks column 'b'")
    pq.write_table(pa.table({"a": [1], "b": ["x"], "c": [1]}), bad)
    refused(tmp_path, r"b\.parquet has column 'c'")
    pq.write_table(pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"]), bad)
    refused(bad, r"b\.parquet has two columns named 'a'")
    bad.unlink()
    (tmp_path / "c.jsonl").write_bytes(b"{}\n")
    refused(tmp_path, r"c\.jsonl is jsonl but .*a\.parquet is parquet")


def test_columns_in_another_order_are_one_schema(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1], "b": ["x"]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"b": ["y"], "a": [2]}), tmp_path / "b.parquet")
    dataset = opened(tmp_path)
    assert dataset.schema is not None
    found = [row for chunk in dataset.chunks() for row in chunk.arrow(dataset.schema).to_pylist()]
    assert found == [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}]


def test_other_partition_folders_and_a_column_of_the_same_name(tmp_path: Path) -> None:
    (tmp_path / "day=1").mkdir()
    pq.write_table(pa.table({"day": [1]}), tmp_path / "day=1" / "x.parquet")
    refused(tmp_path, "'day' is in the file and in its folder's name")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "day=1" / "x.parquet")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "x.parquet")
    refused(tmp_path, "other k=v folders")


@pytest.mark.parametrize("plaintext_footer", [True, False])
def test_encrypted_parquet_is_named(tmp_path: Path, plaintext_footer: bool) -> None:
    encryption = pytest.importorskip("pyarrow.parquet.encryption")

    class Kms(encryption.KmsClient):  # type: ignore[misc,name-defined]
        def __init__(self, _config: Any) -> None:
            super().__init__()

        def wrap_key(self, key: bytes, _name: str) -> bytes:
            return key

        def unwrap_key(self, key: bytes, _name: str) -> bytes:
            return key

    factory = encryption.CryptoFactory(Kms)
    config = encryption.EncryptionConfiguration(
        footer_key="f", column_keys={"c": ["a"]}, plaintext_footer=plaintext_footer, internal_key_material=True
    )
    import base64

    class Base64Kms(Kms):
        def wrap_key(self, key: bytes, _name: str) -> bytes:
            return base64.b64encode(key)

    factory = encryption.CryptoFactory(Base64Kms)
    properties = factory.file_encryption_properties(encryption.KmsConnectionConfig(), config)
    with pq.ParquetWriter(
        tmp_path / "x.parquet", pa.schema([("a", pa.int64())]), encryption_properties=properties
    ) as writer:
        writer.write_table(pa.table({"a": [1, 2]}))
    refused(tmp_path / "x.parquet", r"x\.parquet is encrypted Parquet")


def test_damaged_compression_is_named(tmp_path: Path) -> None:
    content = jsonl(0, 50_000)
    for name, data in (("x.gz", gzip.compress(content)), ("x.zst", zstd(content))):
        (tmp_path / name).write_bytes(data[:-100])
        refused(tmp_path / name, name)
    data = gzip.compress(content)
    (tmp_path / "x.gz").write_bytes(data[:-10_000] + bytes([data[-10_000] ^ 1]) + data[-9_999:])
    refused(tmp_path / "x.gz", r"x\.gz is damaged")


@pytest.mark.parametrize("pack", [gzip.compress, zstd])
def test_decompression_bombs_are_refused(tmp_path: Path, pack: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "RATIO_FROM", 1 << 20)
    monkeypatch.setattr(streams, "MAX_RATIO", 100)
    (tmp_path / "x").write_bytes(pack(b'{"a": "b"}\n' * 1_000_000))
    refused(tmp_path / "x", "decompression bomb")


def test_a_compressed_file_has_a_largest_size_and_comes_in_small_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.gz"
    path.write_bytes(gzip.compress(b'{"a": "' + b"x" * (64 << 20) + b'"}\n') + b"\0" * 512)  # padded, as tar does
    (source,) = list_sources(str(path))
    assert max(len(block) for block in streams.blocks(streams.HashedStream(source), "gzip")) <= streams.BLOCK
    monkeypatch.setattr(streams, "MAX_BYTES", 1 << 20)
    refused(path, r"x\.gz decompresses to more than .* bomb")


def test_a_parquet_bomb_is_refused_by_its_footer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data.parquet.RATIO_FROM", 1 << 16)
    monkeypatch.setattr("data.parquet.MAX_RATIO", 100)
    table = pa.table({"a": ["x" * 1_000_000] * 10})
    pq.write_table(table, tmp_path / "x.parquet", compression="zstd", use_dictionary=False)
    with pytest.raises(InputError, match=r"claims to hold .* decompression bomb"):
        opened(tmp_path / "x.parquet")


def test_parquet_rows_that_memory_does_not_hold_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data.parquet.MAX_BATCH_BYTES", 1 << 20)
    pq.write_table(pa.table({"a": ["x" * 100_000] * 20}), tmp_path / "x.parquet")
    refused(tmp_path / "x.parquet", r"x\.parquet: 20 rows take more than 2 GiB in memory")


def test_long_parquet_rows_come_in_small_batches(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [os.urandom(50_000).hex() for _ in range(1000)]}), tmp_path / "x.parquet")
    assert max(len(chunk) for chunk in opened(tmp_path / "x.parquet").chunks()) <= 200
    numbers = np.random.default_rng(0).random((500, 10_000))
    pq.write_table(pa.table({"a": list(numbers)}), tmp_path / "x.parquet")
    assert max(len(chunk) for chunk in opened(tmp_path / "x.parquet").chunks()) <= 250


def test_invalid_utf8_in_parquet_costs_its_row_only(tmp_path: Path) -> None:
    bad = pa.Array.from_buffers(pa.string(), 3, pa.array([b"ok", b"x\xff", b"fine"], pa.binary()).buffers())
    pq.write_table(pa.table({"a": bad}), tmp_path / "x.parquet")
    first, second, third = rows(opened(tmp_path / "x.parquet"))
    assert (first, third) == ({"a": "ok"}, {"a": "fine"})
    assert isinstance(second, BadRow)
    assert second.code == "invalid_utf8"
    assert "byte 1" in second.message


def test_bad_lines_are_rows_with_places(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(b'{"a": 1}\n\nnot json\n{"a": "\xff"}\n{"a": 2}')
    found = rows(opened(tmp_path / "x.jsonl"))
    assert found[0] == {"a": 1}
    assert [getattr(row, "code", None) for row in found] == [None, "invalid_json", "invalid_utf8", None]
    assert found[1].message.startswith("line 3 of x.jsonl")
    assert next(opened(tmp_path / "x.jsonl").chunks()).lines() == ['{"a": 1}', None, None, '{"a": 2}']


def test_fingerprint_is_of_the_bytes(jsonl_folder: Path) -> None:
    dataset = opened(jsonl_folder)
    assert {file.sha256 for file in dataset.files} == {""}
    files = dataset.fingerprint()
    assert files == dataset.files
    for file in files:
        assert file.sha256 == hashlib.sha256(Path(file.path).read_bytes()).hexdigest()
        assert file.size == Path(file.path).stat().st_size
    assert [(file.relative, file.compression) for file in files] == [
        ("a.jsonl", None), ("b.jsonl", None), ("c.jsonl.gz", "gzip"), ("d.jsonl.zst", "zstd"),
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize("read", [True, False])
def test_verify_sees_every_change(kind: str, read: bool, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(f"{kind}_folder")
    dataset = opened(folder)
    expected = dataset.fingerprint()
    if read:
        rows(dataset)
    dataset.verify(expected)
    target = Path(expected[0].path)
    status, content = target.stat(), bytearray(target.read_bytes())
    content[len(content) // 2] ^= 1
    target.write_bytes(content)
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(RunError, match="changed during the run") as caught:
        opened(folder).verify(expected)  # a resumed run: size, time and inode tell nothing
    assert str(target) in str(caught.value)
    os.utime(target)
    with pytest.raises(RunError, match="changed during the run"):
        dataset.verify(expected)
    with pytest.raises(RunError, match="changed during the run"):
        rows(dataset)
    (folder / f"z.{kind}").write_bytes(target.read_bytes())
    with pytest.raises(RunError, match="added or removed"):
        opened(folder).verify(expected)


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_change_while_reading_is_noticed(kind: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(f"{kind}_folder")
    dataset = opened(folder)
    dataset.fingerprint()
    chunks = dataset.chunks()
    next(chunks)
    with (folder / f"a.{kind}").open("ab") as stream:
        stream.write(b'{"n": -1}\n')
    with pytest.raises(RunError, match=rf"a\.{kind} changed"):
        list(chunks)


def test_bytes_that_change_without_a_trace_are_noticed_when_they_are_read(jsonl_folder: Path) -> None:
    dataset = opened(jsonl_folder)
    dataset.fingerprint()
    path = jsonl_folder / "a.jsonl"
    status, content = path.stat(), path.read_bytes()
    path.write_bytes(content.replace(b"row 5000", b"row 5001"))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(RunError, match=r"a\.jsonl changed during the run"):
        rows(dataset)


def test_a_change_before_reading_is_noticed_though_little_is_read(jsonl_folder: Path) -> None:
    dataset = opened(jsonl_folder, limit=5)
    dataset.fingerprint()
    with (jsonl_folder / "a.jsonl").open("ab") as stream:
        stream.write(b'{"n": -1}\n')
    with pytest.raises(RunError, match=r"a\.jsonl changed"):
        rows(dataset)


def test_sample_columns(jsonl_folder: Path, tmp_path: Path) -> None:
    assert opened(jsonl_folder).sample_columns() == ("n", "t")
    (tmp_path / "x.jsonl").write_text("".join(json.dumps({f"k{n}": 1}) + "\n" for n in range(5)))
    assert opened(tmp_path / "x.jsonl").sample_columns(rows=2) == ("k0", "k1")
