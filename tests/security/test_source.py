"""What the program's own source never does: nothing is unpickled, evaluated, run by a shell or served to others."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
FILES = sorted(path for package in ("data", "engine", "tasks", "flows") for path in (ROOT / package).rglob("*.py"))

PICKLING = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib", "yaml"}
CALLS = {"eval", "exec", "compile", "__import__"}
METHODS = {
    "recv",  # of a multiprocessing.Connection: it unpickles what the other side sent; recv_bytes does not
    "recv_into",
    "load_state_dict_from_url",
    "popen",
}


def faults(path: Path) -> list[str]:
    """What a file does that it must not, with the line."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        line = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            found += [f"{line} imports {name}" for name in names if name.split(".")[0] in PICKLING]
        elif isinstance(node, ast.Call):
            called = node.func
            if isinstance(called, ast.Name) and called.id in CALLS:
                found.append(f"{line} calls {called.id}")
            if isinstance(called, ast.Attribute):
                owner = called.value.id if isinstance(called.value, ast.Name) else ""
                if called.attr in METHODS or (owner, called.attr) in {
                    ("torch", "load"),
                    ("np", "load"),
                    ("os", "system"),
                }:
                    found.append(f"{line} calls {owner}.{called.attr}")
            for word in node.keywords:
                if word.arg in ("shell", "allow_pickle") and not _is(word.value, False):
                    found.append(f"{line} passes {word.arg}")
        elif isinstance(node, ast.Tuple) and node.elts and _is_any_host(node.elts[0]):
            found.append(f"{line} names every interface")
    return found


def _is_any_host(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value in ("0.0.0.0", "::")


def _is(node: ast.expr, value: object) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


def test_the_source_unpickles_evaluates_and_exposes_nothing() -> None:
    assert len(FILES) > 100
    assert [fault for path in FILES for fault in faults(path)] == []


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from cloudpickle import loads",
        "connection.recv()",
        "torch.load(path)",
        "np.load(path, allow_pickle=True)",
        "eval(text)",
        "subprocess.run(text, shell=True)",
        "listener.bind(('0.0.0.0', 80))",
    ],
)
def test_each_of_these_would_be_found(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.security.test_source.ROOT", tmp_path)
    (tmp_path / "module.py").write_text(line + "\n")
    assert faults(tmp_path / "module.py")
