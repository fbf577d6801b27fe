"""Inputs that cannot be read, each written by a function into a folder; it returns the path for `input.path`."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

LINE = b'{"text": "hello"}\n'
NUMBERS = b"".join(b'{"text": "%d"}\n' % (row * row) for row in range(20_000))
Bad = Callable[[Path], str]


def zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return bytes(sink.getvalue().to_pybytes())


def flipped(data: bytes) -> bytes:
    return data[:-2000] + bytes([data[-2000] ^ 1]) + data[-1999:]


def content(name: str, data: bytes) -> Bad:
    """A file of that name with that content."""

    def write(folder: Path) -> str:
        (folder / name).write_bytes(data)
        return str(folder / name)

    return write


def parquet(*tables: pa.Table) -> Bad:
    """A folder of Parquet files."""

    def write(folder: Path) -> str:
        (folder / "in").mkdir()
        for number, table in enumerate(tables):
            pq.write_table(table, folder / "in" / f"{number}.parquet")
        return str(folder / "in")

    return write


def text_column(values: pa.Array) -> Bad:
    """One Parquet file whose column `text` is of another type than text."""
    return parquet(pa.table({"text": values}))


def parquet_content(change: Callable[[bytes], bytes]) -> Bad:
    """A good Parquet file with other bytes."""

    def write(folder: Path) -> str:
        path = folder / "x.parquet"
        pq.write_table(pa.table({"text": ["hello"]}), path)
        path.write_bytes(change(path.read_bytes()))
        return str(path)

    return write


def empty_folder(folder: Path) -> str:
    (folder / "in").mkdir()
    (folder / "in" / "_SUCCESS").touch()
    return str(folder / "in")


def fifo(folder: Path) -> str:
    os.mkfifo(folder / "x.jsonl")
    return str(folder / "x.jsonl")


def folder_named_as_file(folder: Path) -> str:
    (folder / "x.jsonl").mkdir()
    return str(folder / "x.jsonl")


def link_to_itself(folder: Path) -> str:
    (folder / "x.jsonl").symlink_to("x.jsonl")
    return str(folder / "x.jsonl")


def broken_link(folder: Path) -> str:
    (folder / "in").mkdir()
    (folder / "in" / "x.jsonl").symlink_to("absent.jsonl")
    return str(folder / "in")


def loop_of_folders(folder: Path) -> str:
    (folder / "in").mkdir()
    (folder / "in" / "loop").symlink_to(folder / "in")
    return str(folder / "in")


def name_not_utf8(folder: Path) -> str:
    (folder / "in").mkdir()
    (folder / "in" / "\udcff.jsonl").write_bytes(LINE)
    return str(folder / "in")


def parquet_and_jsonl(folder: Path) -> str:
    (folder / "in").mkdir()
    pq.write_table(pa.table({"text": ["hello"]}), folder / "in" / "a.parquet")
    (folder / "in" / "b.jsonl").write_bytes(LINE)
    return str(folder / "in")


def one_text_repeated(folder: Path) -> str:
    """Five kilobytes that decode to two gigabytes: every row repeats the one value of the dictionary."""
    values = pa.DictionaryArray.from_arrays(pa.array([0] * 20_000, pa.int32()), pa.array(["x" * 100_000]))
    pq.write_table(pa.table({"text": values}), folder / "x.parquet", store_schema=False)
    return str(folder / "x.parquet")


FILES: dict[str, tuple[Bad, tuple[str, ...]]] = {
    "missing": (lambda folder: str(folder / "x.jsonl"), ("x.jsonl does not exist",)),
    "a glob without a match": (lambda folder: str(folder / "*.jsonl"), ("*.jsonl holds no input file",)),
    "an empty folder": (empty_folder, ("holds no input file",)),
    "a folder where a file belongs": (folder_named_as_file, ("x.jsonl holds no input file",)),
    "a FIFO": (fifo, ("x.jsonl is not a regular file",)),
    "a link to itself": (link_to_itself, ("x.jsonl", "symbolic links")),
    "a broken link": (broken_link, ("x.jsonl does not exist",)),
    "a loop of folders": (loop_of_folders, ("loop is a symbolic link to a folder",)),
    "a name that is not UTF-8": (name_not_utf8, ("the name is not UTF-8",)),
    "a device": (lambda _: "/dev/zero", ("/dev/zero is not a regular file",)),
    "another scheme": (lambda _: "http://example.com/x.jsonl", ("only", "URLs are read")),
    "truncated Parquet": (parquet_content(lambda data: data[:-20]), ("x.parquet is not a whole Parquet file",)),
    "Parquet cut to its magic": (parquet_content(lambda data: data[:4]), ("x.parquet is not a whole Parquet file",)),
    "zero-byte Parquet": (content("x.parquet", b""), ("x.parquet is empty: not a Parquet file",)),
    "not Parquet by content": (content("x.parquet", LINE), ("x.parquet is named Parquet but its content is not",)),
    "Parquet compressed again": (
        lambda folder: content("x.gz", gzip.compress(Path(parquet_content(bytes)(folder)).read_bytes()))(folder),
        ("x.gz is a compressed Parquet file",),
    ),
    "two formats": (parquet_and_jsonl, ("b.jsonl is jsonl but", "a.parquet is parquet")),
    "another type in the second file": (
        parquet(pa.table({"text": ["a"]}), pa.table({"text": [1]})),
        ("1.parquet: column 'text' is int64 but string in", "0.parquet"),
    ),
    "a column less in the second file": (
        parquet(pa.table({"text": ["a"], "b": [1]}), pa.table({"text": ["a"]})),
        ("1.parquet lacks column 'b', which", "0.parquet"),
    ),
    "a missing column": (parquet(pa.table({"txt": ["a"], "id": [1]})), ("'text'", "the input lacks: it has txt, id")),
    "a missing key": (content("x.jsonl", b'{"txt": "a", "id": 1}\n'), ("'text'", "the input lacks: it has txt, id")),
    "a column in other case": (parquet(pa.table({"Text": ["a"]})), ("'text'", "the input lacks: it has Text")),
    "no columns at all": (parquet(pa.table({})), ("'text'", "the input lacks")),
    "bytes as text": (text_column(pa.array([b"a"])), ("'text', which is binary: store text as a string column",)),
    "two columns of one name": (
        parquet(pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])),
        ("0.parquet has two columns named 'text'",),
    ),
    "gzip cut short": (
        content("x.jsonl.gz", gzip.compress(LINE * 50_000)[:-9]),
        ("x.jsonl.gz is truncated", "write or copy it again"),
    ),
    "gzip with a flipped byte": (
        content("x.gz", flipped(gzip.compress(NUMBERS))),
        ("x.gz is damaged", "write or copy it again"),
    ),
    "gzip with garbage behind it": (content("x.gz", gzip.compress(LINE) + b"garbage"), ("x.gz is damaged",)),
    "zstd cut short": (
        content("x.zst", zstd(LINE * 50_000)[:-9]),
        ("x.zst is damaged or truncated", "write or copy it again"),
    ),
    "zstd with garbage behind it": (content("x.zst", zstd(LINE) + b"garbage"), ("x.zst is damaged",)),
    "a gzip bomb": (
        content("x.gz", gzip.compress((b'{"text": "' + b"x" * 100_000 + b'"}\n') * 300)),
        ("x.gz decompresses to more than 100 times", "decompression bomb"),
    ),
    "a zstd bomb": (
        content("x.zst", zstd((b'{"text": "' + b"x" * 100_000 + b'"}\n') * 300)),
        ("x.zst decompresses to more than 100 times", "decompression bomb"),
    ),
    "UTF-16": (content("x.jsonl", LINE.decode().encode("utf-16")), ("x.jsonl is UTF-16 text",)),
    "UTF-16, big-endian": (content("x.jsonl", b"\xfe\xff" + LINE.decode().encode("utf-16-be")), ("is UTF-16 text",)),
    "UTF-16 without a mark": (content("x.jsonl", LINE.decode().encode("utf-16-le")), ("x.jsonl is UTF-16 text",)),
    "UTF-32": (content("x.jsonl", LINE.decode().encode("utf-32")), ("x.jsonl is UTF-16 text",)),
    "CSV": (content("x.csv", b"a,b\n1,2\n"), ("x.csv is neither Parquet nor JSON lines",)),
    "CSV named JSON lines": (content("x.jsonl", b"a,b\n" * 20), ("x.jsonl", "none of its first 20 lines is an object")),
    "scalars as lines": (content("x.jsonl", b"1\n" * 20), ("x.jsonl", "none of its first 20 lines is an object")),
    "one JSON array": (
        content("x.json", b'[\n{"text": "a"}\n]\n'),
        ("x.json is one JSON array, not JSON lines", "jq -c '.[]'"),
    ),
    "a JSON array on one line": (
        content("x.jsonl", b'[{"text": "a"}, {"text": "b"}]\n'),
        ("x.jsonl is one JSON array, not JSON lines", "jq -c '.[]'"),
    ),
    "a JSON array of nothing": (content("x.json", b"[]"), ("x.json is one JSON array",)),
    "pretty-printed JSON": (
        content("x.json", b'{\n  "text": "a"\n}\n'),
        ("x.json has JSON objects over several lines, not JSON lines: write one object a line",),
    ),
    "a Git LFS pointer": (
        content("x.parquet", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"),
        ("x.parquet is a Git LFS pointer", "git lfs pull"),
    ),
}
"""By name: how to write it, and words of the message."""
