"""Where Python keeps and finds the bytecode of large packages, told by a new interpreter."""

from __future__ import annotations

import os
import py_compile
from pathlib import Path

import pytest

from tests.engine.test_importing import python

BYTECODE = """
import json, sys
from engine.bytecode import keep_bytecode
keep_bytecode()
import torch
print(json.dumps([torch.__cached__, sys.dont_write_bytecode]))
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """Packages that stand in for the large ones; the one for torch was never compiled."""
    for name in ("transformers", "prefect", "torch"):
        package = tmp_path / "site" / name
        package.mkdir(parents=True)
        source = package / "__init__.py"
        source.write_text("answer = 42\n")
        if name != "torch":
            py_compile.compile(str(source), doraise=True)
    return package


def test_bytecode_that_python_would_not_keep_is_kept(package: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    for _ in range(2):
        compiled, forbidden = python(BYTECODE, package.parent, PYTHONDONTWRITEBYTECODE="1", XDG_CACHE_HOME=str(cache))
        assert not forbidden
        assert Path(compiled).is_relative_to(cache / "overnight" / "bytecode")
        assert Path(compiled).exists()
    assert not (package / "__pycache__").exists()


def test_stale_bytecode_does_not_count(package: Path, tmp_path: Path) -> None:
    source = package / "__init__.py"
    stale = Path(py_compile.compile(str(source), doraise=True) or "")
    os.utime(source, (1, 1))  # as in an image whose files were given another time
    compiled, _ = python(BYTECODE, package.parent, PYTHONDONTWRITEBYTECODE="1", XDG_CACHE_HOME=str(tmp_path / "cache"))
    assert Path(compiled) != stale


@pytest.mark.parametrize("mode", list(py_compile.PycInvalidationMode))
def test_bytecode_in_place_is_used(package: Path, tmp_path: Path, mode: py_compile.PycInvalidationMode) -> None:
    source = package / "__init__.py"
    in_place = py_compile.compile(str(source), doraise=True, invalidation_mode=mode)
    found = python(BYTECODE, package.parent, PYTHONDONTWRITEBYTECODE="1", XDG_CACHE_HOME=str(tmp_path / "cache"))
    assert found == [in_place, True]


def test_python_keeps_bytecode_where_it_may(package: Path, tmp_path: Path) -> None:
    compiled, _ = python(BYTECODE, package.parent, XDG_CACHE_HOME=str(tmp_path / "cache"))
    assert Path(compiled).is_relative_to(package / "__pycache__")
    assert Path(compiled).exists()


def test_another_set_of_packages_has_another_cache(package: Path, tmp_path: Path) -> None:
    """Files of equal size and time, as images have them, are told apart by the versions installed."""
    answers = []
    for version in ("1.0.0", "1.0.1"):
        source = package / "__init__.py"
        source.write_text(f"answer = {version!r}\n")
        os.utime(source, (1, 1))
        (package.parent / f"torch-{version}.dist-info").mkdir()
        code = BYTECODE.replace("torch.__cached__, sys.dont_write_bytecode", "torch.answer, sys.pycache_prefix")
        answers.append(python(code, package.parent, PYTHONDONTWRITEBYTECODE="1", XDG_CACHE_HOME=str(tmp_path / "c")))
        (package.parent / f"torch-{version}.dist-info").rmdir()
    assert [answer for answer, _ in answers] == ["1.0.0", "1.0.1"]
    assert answers[0][1] != answers[1][1]


def test_a_cache_that_others_may_write_is_not_used(package: Path, tmp_path: Path) -> None:
    shared = tmp_path / "cache" / "overnight"
    shared.mkdir(parents=True)
    shared.chmod(0o777)
    _, forbidden = python(BYTECODE, package.parent, PYTHONDONTWRITEBYTECODE="1", XDG_CACHE_HOME=str(tmp_path / "cache"))
    assert forbidden
    assert not list(shared.rglob("*.pyc"))


def test_a_link_in_place_of_the_cache_is_not_followed(package: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (tmp_path / "cache" / "overnight").symlink_to(tmp_path / "elsewhere")
    _, forbidden = python(BYTECODE, package.parent, PYTHONDONTWRITEBYTECODE="1", XDG_CACHE_HOME=str(tmp_path / "cache"))
    assert forbidden


def test_a_cache_is_the_users_own_whatever_the_umask(package: Path, tmp_path: Path) -> None:
    code = "import os\nos.umask(0)\n" + BYTECODE
    python(code, package.parent, PYTHONDONTWRITEBYTECODE="1", XDG_CACHE_HOME=str(tmp_path / "cache"))
    assert (tmp_path / "cache" / "overnight").stat().st_mode & 0o077 == 0
