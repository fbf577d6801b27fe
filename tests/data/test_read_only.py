"""A run folder on a disk that is mounted read-only: a real one, in a namespace of the test's own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.flows.conftest import ROOT

NAMESPACE = ["unshare", "--map-root-user", "--mount"]
MOUNT = 'mount -t tmpfs none "$1" && mkdir "$1/out" && {before} mount -o remount,ro "$1" && exec "$2" -c "$3" "$1"'
CREATE = "from data.run_folder import RunFolder; RunFolder.create(sys.argv[1] + '/.overnight/r', {'a': 1})"
SET_ASIDE = "from data.run_folder import set_aside; set_aside(sys.argv[1] + '/.overnight/r')"


def refused(disk: Path, script: str, before: str = "") -> str:
    """What InputError says where `script` is run on a read-only disk; `before` was run while it could be written."""
    try:
        subprocess.run([*NAMESPACE, "true"], check=True, capture_output=True, timeout=30)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no namespaces here")
    disk.mkdir()
    told = "import sys\nfrom data.errors import InputError\ntry:\n    {}\nexcept InputError as error:\n    print(error)"
    mount = MOUNT.format(before=f'"$2" -c "import sys; {before}" "$1" &&' if before else "")
    words = ["sh", "-c", mount, "sh", str(disk), sys.executable, told.format(script)]
    done = subprocess.run([*NAMESPACE, *words], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("there", [False, True], ids=["a new run", "a run that goes on"])
def test_the_path_the_cause_and_the_remedy_are_named(tmp_path: Path, there: bool) -> None:
    said = refused(tmp_path / "disk", CREATE, CREATE if there else "")
    assert said.startswith(f"the run folder {tmp_path}/disk/.overnight/r cannot be written: {tmp_path}/disk/.overnight")
    assert "Read-only file system" in said
    assert "--run-dir" in said
    assert "--output" in said


def test_so_they_are_where_a_run_is_set_aside(tmp_path: Path) -> None:
    said = refused(tmp_path / "disk", SET_ASIDE, CREATE)
    assert said.startswith(f"the run folder {tmp_path}/disk/.overnight/r cannot be written: {tmp_path}/disk/.overnight")
    assert "Read-only file system" in said
