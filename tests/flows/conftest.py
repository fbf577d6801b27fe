"""The real program as a child process, on a small real model."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent
MODEL = next(path.parent for path in sorted((ROOT / "data" / "models").glob("*/config.json")))
PROMPT = '[{ role = "user", content = "{{ text }}" }]'

Overnight = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Variables of a user without a Prefect server; Prefect's own home stays out of the real one."""
    home = tmp_path_factory.mktemp("prefect-home")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "OVERNIGHT_"))}
    ours = {"PREFECT_HOME": str(home), "XDG_CACHE_HOME": str(home / "cache"), "HF_HUB_OFFLINE": "1"}
    return {**clean, **ours, "NO_COLOR": "1", "COLUMNS": "120"}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A configuration that answers the column `text` with at most eight tokens on two workers."""
    path = tmp_path / "config.toml"
    path.write_text(
        f"[job]\nprompt = {PROMPT}\n[model]\npath = {json.dumps(str(MODEL))}\n"
        "[sampling]\nmax_tokens = 8\n[workers]\ndp_degree = 2\n",
        encoding="utf-8",
    )
    return path


def program(*arguments: str | Path) -> list[str]:
    """The command line of the installed program."""
    return [str(Path(sys.executable).parent / "overnight"), *map(str, arguments)]


@pytest.fixture
def overnight(environment: dict[str, str], config: Path, tmp_path: Path) -> Overnight:
    """Run `overnight` in an empty folder until it ends."""

    def run(*arguments: str | Path, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        words = program(*arguments)
        if arguments[0] == "infer" and "--config" not in arguments:
            words += ["--config", str(config)]
        done = subprocess.run(words, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=timeout)
        print(shlex.join(words), done.returncode, done.stdout, done.stderr, sep="\n")
        return done

    return run


def write_rows(path: Path, rows: Sequence[Any]) -> Path:
    """A JSONL file; a str is written as it is, anything else as JSON."""
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def messages(count: int) -> Iterator[dict[str, Any]]:
    """Rows with a text of their own each."""
    for number in range(count):
        yield {
            "id": number,
            "text": f"Order {number} has not arrived, where is my {'very ' * (number % 7)}late parcel?",
        }
