"""Versions of what is installed, against what this program was tested with and what Prefect can work with.

Read from package metadata, so that nothing is imported. constraints.txt lies at the root of the checkout; without it
only the limits that are known to matter are checked.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from tasks.check import Check

CONSTRAINTS = Path(__file__).resolve().parent.parent / "constraints.txt"
PACKAGES = ("overnight", "torch", "transformers", "tokenizers", "prefect", "fastapi", "sqlalchemy", "pyarrow", "duckdb")
PYTHONS = SpecifierSet(">=3.11,<3.13")
# Outside these the embedded Prefect server does not import, or silently creates no schedules.
LIMITS = {
    "fastapi": SpecifierSet(">=0.139,<0.151"),
    "sqlalchemy": SpecifierSet("<2.1"),
    "torch": SpecifierSet(">=2.11"),
}


def check_python() -> Check:
    """The interpreter and the platform."""
    found = f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"
    if sys.platform != "linux":
        return Check(
            "python", "warn", found, "runs are tested on Linux; file locks and process control differ elsewhere"
        )
    if Version(platform.python_version()) not in PYTHONS:
        return Check("python", "fail", found, f"install Python {PYTHONS} and make .venv again")
    return Check("python", "ok", found)


def check_packages(constraints: Path = CONSTRAINTS) -> Iterator[Check]:
    """The packages that a run rests on."""
    pins = read_pins(constraints)
    for name in PACKAGES:
        yield check_package(name, pins.get(name))


def check_package(name: str, pin: SpecifierSet | None) -> Check:
    """One package against its limit and its pin."""
    try:
        found = Version(version(name))
    except PackageNotFoundError:
        return Check(name, "fail", "not installed", f"install it: pip install {name} -c constraints.txt")
    limit = LIMITS.get(name)
    if limit is not None and not limit.contains(found, prereleases=True):
        return Check(name, "fail", str(found), f'pip install "{name}{limit}": other versions are known not to work')
    if pin is not None and not pin.contains(found.public, prereleases=True):
        advice = f"tested with {pin}: pip install -c constraints.txt {name} if something misbehaves"
        return Check(name, "warn", str(found), advice)
    return Check(name, "ok", str(found))


def read_pins(constraints: Path) -> dict[str, SpecifierSet]:
    """The pins of a constraints file by lower-case name; empty if there is no such file."""
    if not constraints.is_file():
        return {}
    lines = (line.partition("#")[0].strip() for line in constraints.read_text(encoding="utf-8").splitlines())
    pins = [Requirement(line) for line in lines if line and not line.startswith("-")]
    return {pin.name.lower(): pin.specifier for pin in pins if pin.marker is None or pin.marker.evaluate()}
