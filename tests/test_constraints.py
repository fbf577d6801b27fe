"""The two sets of pinned versions: each can be installed, and stays within what pyproject.toml asks for."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from tasks.cuda_versions import check_cuda

ROOT = Path(__file__).parent.parent
EVERYWHERE = ROOT / "constraints.txt"
ON_GPU = ROOT / "deploy" / "constraints-cuda.txt"

# The one Triton that each CUDA build of torch on PyPI asks for; a CPU build asks for none.
TRITON_OF_TORCH = {"2.11.0": "3.6.0", "2.13.0": "3.7.1"}


def pins(file: Path, python: str) -> dict[str, Version]:
    """The pinned version of each package for one version of Python."""
    lines = [line.partition("#")[0].strip() for line in file.read_text(encoding="utf-8").splitlines()]
    found: dict[str, Version] = {}
    for requirement in (Requirement(line) for line in lines if line):
        (specifier,) = requirement.specifier
        assert specifier.operator == "==", f"{requirement} is no exact version"
        if requirement.marker is None or requirement.marker.evaluate({"python_version": python}):
            name = canonicalize_name(requirement.name)
            assert name not in found, f"{name} is pinned twice"
            found[name] = Version(specifier.version)
    return found


def required(*extras: str) -> list[Requirement]:
    """What pyproject.toml asks for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    optional = [line for extra in extras for line in project["optional-dependencies"][extra]]
    return [Requirement(line) for line in project["dependencies"] + optional]


@pytest.mark.parametrize("python", ["3.11", "3.12"])
@pytest.mark.parametrize("file", [EVERYWHERE, ON_GPU], ids=lambda file: file.name)
def test_pins_are_within_the_ranges(file: Path, python: str) -> None:
    pinned = pins(file, python)
    ranges: dict[str, SpecifierSet] = {
        canonicalize_name(requirement.name): requirement.specifier for requirement in required("cuda", "dev")
    }
    wrong = {name: str(found) for name, found in pinned.items() if name in ranges and found not in ranges[name]}
    assert wrong == {}


@pytest.mark.parametrize("python", ["3.11", "3.12"])
@pytest.mark.parametrize("file", [EVERYWHERE, ON_GPU], ids=lambda file: file.name)
def test_triton_is_the_one_that_torch_brings(file: Path, python: str) -> None:
    pinned = pins(file, python)
    assert str(pinned["triton"]) == TRITON_OF_TORCH[str(pinned["torch"])]


def test_an_installation_is_pinned_whole() -> None:
    pinned = pins(EVERYWHERE, "3.11")
    assert [asked.name for asked in required("dev") if canonicalize_name(asked.name) not in pinned] == []


def test_on_a_gpu_what_computes_is_pinned() -> None:
    assert {"torch", "triton", "transformers", "tokenizers", "safetensors", "numpy"} <= pins(ON_GPU, "3.12").keys()


def test_the_doctor_names_a_file_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch, "version", SimpleNamespace(cuda=None))
    (check,) = check_cuda(1, 13000)
    named = re.search(r"\S+\.txt", check.advice)
    assert named is not None
    assert (ROOT / named[0]) == ON_GPU
