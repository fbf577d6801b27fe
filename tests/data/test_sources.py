"""Which files are input, in which order, and which are refused."""

from __future__ import annotations

import os
from pathlib import Path

import fsspec
import pytest

from data.errors import InputError
from data.sources import list_sources, partition_of


def write(path: Path, content: bytes = b"{}\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_folder_in_bytewise_order_without_hidden_and_marker_names(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a/z.jsonl", "a.jsonl", "Z.jsonl", "é.jsonl", "_tmp/x.jsonl", ".git/x.jsonl", "_SUCCESS"):
        write(tmp_path / name)
    assert [s.relative for s in list_sources(str(tmp_path))] == [
        "Z.jsonl", "a.jsonl", "a/z.jsonl", "b.jsonl", "é.jsonl",
    ]  # fmt: skip


def test_hidden_parent_of_the_input_does_not_hide_it(tmp_path: Path) -> None:
    write(tmp_path / ".data" / "_in" / "x.jsonl")
    assert [s.relative for s in list_sources(str(tmp_path / ".data" / "_in"))] == ["x.jsonl"]


def test_partition_folders(tmp_path: Path) -> None:
    write(tmp_path / "day=2024-01-01" / "city=S%C3%A3o" / "x.jsonl")
    (source,) = list_sources(str(tmp_path))
    assert source.partition == (("day", "2024-01-01"), ("city", "São"))
    assert partition_of("a=__HIVE_DEFAULT_PARTITION__/x") == (("a", None),)
    with pytest.raises(InputError, match="twice"):
        partition_of("a=1/a=2/x")


def test_glob_lists_matches_and_their_partitions(tmp_path: Path) -> None:
    write(tmp_path / "day=1" / "x.jsonl")
    write(tmp_path / "day=2" / "x.jsonl")
    write(tmp_path / "day=2" / "_x.jsonl")
    found = list_sources(str(tmp_path / "day=*" / "*.jsonl"))
    assert [s.partition for s in found] == [(("day", "1"),), (("day", "2"),)]
    assert [s.relative for s in list_sources(str(tmp_path / "day=*"))] == ["day=1/x.jsonl", "day=2/x.jsonl"]


def test_a_file_whose_name_looks_like_a_glob(tmp_path: Path) -> None:
    path = write(tmp_path / "x[1].jsonl")
    assert [s.path for s in list_sources(str(path))] == [str(path)]


def test_remote_folder_file_and_glob_agree() -> None:
    disk = fsspec.filesystem("memory")
    for name in ("/bucket/in/a=1/x.jsonl", "/bucket/in/_skip.jsonl", "/bucket/in/b.jsonl"):
        disk.pipe(name, b'{"t": 1}\n')
    assert [s.relative for s in list_sources("memory://bucket/in")] == ["a=1/x.jsonl", "b.jsonl"]
    assert list_sources("memory://bucket/in")[0].partition == (("a", "1"),)
    assert [s.relative for s in list_sources("memory://bucket/in/b.jsonl")] == ["b.jsonl"]
    assert [s.relative for s in list_sources("memory://bucket/in/*.jsonl")] == ["b.jsonl"]
    with pytest.raises(InputError, match="does not exist"):
        list_sources("memory://bucket/none")


@pytest.mark.parametrize(
    "url", ["http://host/x.jsonl", "simplecache::memory://x", "file://x::http://host/x.jsonl", "ftp://host/x"]
)
def test_urls_of_other_schemes_are_refused(url: str) -> None:
    with pytest.raises(InputError, match=r"only file, .* URLs are read"):
        list_sources(url)


def test_a_path_that_is_not_set_is_refused() -> None:
    with pytest.raises(InputError, match=r"input\.path is not set"):
        list_sources("")


def test_what_is_no_input_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"missing\.jsonl does not exist"):
        list_sources(str(tmp_path / "missing.jsonl"))
    with pytest.raises(InputError, match="no input file"):
        list_sources(str(tmp_path))
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(InputError, match=r"pipe\.jsonl is not a regular file"):
        list_sources(str(tmp_path))
    for path in (str(tmp_path / "pipe.jsonl"), "/dev/zero"):
        with pytest.raises(InputError, match=f"{path} is not a regular file"):
            list_sources(path)


def test_folder_links_are_refused_so_that_no_loop_is_walked(tmp_path: Path) -> None:
    write(tmp_path / "x.jsonl")
    (tmp_path / "loop").symlink_to(tmp_path)
    with pytest.raises(InputError, match="symbolic link"):
        list_sources(str(tmp_path))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_no_permission(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl")
    path.chmod(0)
    with pytest.raises(InputError, match=r"no permission to read .*x\.jsonl"):
        list_sources(str(path))[0].open()
