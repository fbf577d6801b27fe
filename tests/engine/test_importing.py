"""What the start of a process imports, compiles and searches for garbage, told by what is there afterwards."""

from __future__ import annotations

import gc
import json
import os
import py_compile
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from engine.importing import without_collections

ROOT = Path(__file__).parent.parent.parent
# Installed with transformers' or this program's extras, but no part of running a model.
NEEDLESS = {"prefect", "datasets", "duckdb", "fastapi", "peft", "ray", "sentence_transformers", "tensorboard", "timm"}


def python(code: str, *path: Path, **environment: str) -> Any:
    """The JSON that `code` prints in a new interpreter, which finds modules in `path` first."""
    search = os.pathsep.join(map(str, [*path, ROOT]))
    ours = {name: text for name, text in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=ours | {"PYTHONPATH": search} | environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def imported(statement: str) -> set[str]:
    """Top-level packages that are loaded behind the statement."""
    code = f"{statement}\nimport json, sys\nprint(json.dumps(sorted({{name.split('.')[0] for name in sys.modules}})))"
    return set(python(code))


def test_the_order_is_read_before_anything_large_is_imported() -> None:
    modules = imported("import engine.bench, engine.child, tasks.worker")
    assert not modules & {"torch", "transformers", "triton", "prefect"}


def test_weights_are_read_before_transformers_is_imported() -> None:
    modules = imported("import tasks.worker, engine.weights")
    assert "torch" in modules
    assert "transformers" not in modules


@pytest.mark.parametrize("module", ["tasks.engines", "engine.bench_subject"])
def test_an_engine_imports_nothing_that_it_does_not_need(module: str) -> None:
    modules = imported(f"import {module}")
    assert "transformers" in modules
    assert not modules & NEEDLESS


def interrupted_import() -> None:
    with without_collections():
        assert not gc.isenabled()
        raise ImportError


def test_collections_are_off_in_the_block_alone() -> None:
    before = gc.get_freeze_count()
    with pytest.raises(ImportError):
        interrupted_import()
    assert gc.isenabled()
    assert gc.get_freeze_count() > before
    gc.unfreeze()


BYTECODE = """
import json, sys
from engine.importing import keep_bytecode
keep_bytecode()
import torch
print(json.dumps([torch.__cached__, sys.dont_write_bytecode]))
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package that stands in for torch, never compiled."""
    package = tmp_path / "site" / "torch"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("answer = 42\n")
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
