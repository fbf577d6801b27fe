"""Formats are told by content; what is neither Parquet nor JSONL is named."""

from __future__ import annotations

import bz2
import gzip
import lzma
import pickle
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.errors import InputError
from data.formats import sniff
from data.sources import list_sources


def sniffed(path: Path) -> tuple[str, str | None]:
    return sniff(list_sources(str(path))[0])


def zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


def test_by_content_not_by_name(tmp_path: Path) -> None:
    path = tmp_path / "x.dat"
    pq.write_table(pa.table({"a": [1]}), path)
    assert sniffed(path) == ("parquet", None)
    for content, compression in (
        (b'{"a": 1}\n', None),
        (gzip.compress(b'{"a": 1}\n'), "gzip"),
        (zstd(b'{"a":1}'), "zstd"),
    ):
        path.write_bytes(content)
        assert sniffed(path) == ("jsonl", compression)


def test_large_compressed_files_are_sniffed_by_their_beginning(tmp_path: Path) -> None:
    import random

    lines = "".join(f'{{"a": {random.Random(i).random()}}}\n' for i in range(50_000)).encode()
    for name, content in (("x.gz", gzip.compress(lines)), ("x.zst", zstd(lines))):
        (tmp_path / name).write_bytes(content)
        assert sniffed(tmp_path / name)[0] == "jsonl"


def test_zero_bytes_are_told_by_name(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").touch()
    assert sniffed(tmp_path / "x.jsonl") == ("jsonl", None)
    (tmp_path / "x.parquet").touch()
    with pytest.raises(InputError, match=r"x\.parquet is empty"):
        sniffed(tmp_path / "x.parquet")
    for name in ("x.jsonl.gz", "x.jsonl.zst"):  # what a failed upload leaves: no compressed file has so few
        (tmp_path / name).touch()
        with pytest.raises(InputError, match=f"{name} is empty"):
            sniffed(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        *((pickle.dumps([1], protocol), "a Python pickle") for protocol in (2, 3, 4, 5)),
        ('{"a": 1}'.encode("utf-16"), "UTF-16"),
        ('{"a": 1}'.encode("utf-16-be"), "UTF-16 text or binary"),
        (b"\0\1\2", "binary data"),
        (bz2.compress(b"{}"), "bzip2-compressed"),
        (lzma.compress(b"{}"), "xz-compressed"),
        (b"\x04\x22\x4d\x18\x64\x40", "lz4-compressed"),
        (b"ARROW1\0\0\xff\xff", "an Arrow IPC file"),
        (b"ORC\x12\x0b", "an ORC file"),
        (b"Obj\x01\x04", "an Avro file"),
        (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
        (b"SQLite format 3\0", "an SQLite database"),
        (b"%PDF-1.7\n", "a PDF file"),
        (b"a,b\n1,2\n", "neither Parquet nor JSON lines"),
        (b'[{"a": 1},\n{"a": 2}]', "one JSON array"),
        (b'[\n{"a": 1}\n]', "one JSON array"),
        (b'[{"a": 1}, {"a": 2}]\n', "one JSON array"),
        (b"\x1f\x8bnot gzip at all", "damaged"),
        (b"\x28\xb5\x2f\xfdnot zstd at all", "damaged"),
    ],
)
def test_other_content_is_named(tmp_path: Path, content: bytes, what: str) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(InputError, match=what):
        sniffed(tmp_path / "x")


def test_a_zip_and_a_misnamed_parquet(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.jsonl", "w") as archive:
        archive.writestr("a", "b")
    with pytest.raises(InputError, match="zip"):
        sniffed(tmp_path / "x.jsonl")
    (tmp_path / "y.parquet").write_bytes(b'{"a": 1}\n')
    with pytest.raises(InputError, match=r"y\.parquet is named Parquet"):
        sniffed(tmp_path / "y.parquet")


def test_a_jsonl_name_is_believed_so_that_bad_lines_become_rows(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(b"not json\n")
    assert sniffed(tmp_path / "x.jsonl") == ("jsonl", None)


def test_a_json_array_is_told_though_it_is_long_or_compressed(tmp_path: Path) -> None:
    for content in (b'[{"a": "' + b"x" * (1 << 17) + b'"}]', gzip.compress(b'[{"a": 1}]')):
        (tmp_path / "x").write_bytes(content)
        with pytest.raises(InputError, match="one JSON array"):
            sniffed(tmp_path / "x")


def test_arrays_as_lines_become_rows(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(b'["a"]\n[{"a": 1}]\n')
    assert sniffed(tmp_path / "x.jsonl") == ("jsonl", None)
