"""The import directions, proved from the source: flows -> tasks -> {data, engine}."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

FORBIDDEN = {
    "data": {"engine", "tasks", "flows", "torch", "prefect", "transformers"},
    "engine": {"data", "tasks", "flows", "prefect"},
    "tasks": {"flows"},
    "flows": set(),
}


def imported(path: Path) -> set[str]:
    """Top-level names of everything a file imports, also inside functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute, so that this test can read them"
            names.add((node.module or "").split(".")[0])
    return names


@pytest.mark.parametrize("package", sorted(FORBIDDEN))
def test_no_import_against_the_arrows(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    wrong = {str(path.relative_to(ROOT)): imported(path) & FORBIDDEN[package] for path in files}
    assert {path: names for path, names in wrong.items() if names} == {}


def test_a_worker_never_imports_prefect() -> None:
    seen: set[Path] = set()
    waiting = [ROOT / "tasks" / "worker.py"]
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(module.split(".")[0] == "prefect" for module in modules), path
            found = (ROOT / f"{module.replace('.', '/')}.py" for module in modules)
            waiting += [file for file in found if file.exists()]
    assert len(seen) > 10


def test_the_top_level_is_the_fixed_one() -> None:
    folders = {path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")}
    built = {"build", "dist", "out", "overnight.egg-info", "__pycache__"}
    assert folders - built <= {"flows", "tasks", "engine", "tests", "data", "docs", "deploy"}
