"""A run raises its limit of open files as far as it may, and refuses to start with too few."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.flows.conftest import ROOT

TRY = """
import resource
from tasks.open_files import raise_open_files
resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))
try:
    raise_open_files()
    print(*resource.getrlimit(resource.RLIMIT_NOFILE))
except ValueError as error:
    print(type(error).__name__, error)
"""


@pytest.mark.parametrize(
    ("soft", "hard", "said"),
    [
        (64, 1024, "1024 1024"),
        (64, 256, "256 256"),
        (64, 255, "InputError only 255 files may be open at once, a run needs 256; raise the limit (ulimit -n)"),
    ],
)
def test_the_limit(soft: int, hard: int, said: str) -> None:
    words = [sys.executable, "-c", TRY.format(soft=soft, hard=hard)]
    assert subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip() == said
