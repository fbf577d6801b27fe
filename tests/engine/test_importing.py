"""What the start of a process imports, compiles and searches for garbage, told by what is there afterwards."""

from __future__ import annotations

import gc
import json
import os
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
