"""`overnight promote` as a user meets it, and runs that follow a pointer."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from data.checkpoint import Checkpoint
from data.lock import locked
from data.pointer import promote
from tests.flows.conftest import MODEL, ROOT, Overnight, program
from tests.flows.test_infer import wait_for


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A folder with the checkpoint `old`, and one of the same shape whose weights are all zero, `new`."""
    folder = tmp_path / "models"
    shutil.copytree(MODEL, folder / "old")
    shutil.copytree(MODEL, folder / "new")
    with (folder / "new" / "model.safetensors").open("r+b") as weights:
        weights.seek(int.from_bytes(weights.read(8), "little"), os.SEEK_CUR)
        weights.write(bytes(os.path.getsize(weights.name) - weights.tell()))
    return folder


def test_a_promotion_does_not_change_a_run_that_has_begun(
    overnight: Overnight, environment: dict[str, str], tmp_path: Path, models: Path
) -> None:
    sample, pointer = ROOT / "data" / "sample", models / "current"
    promote(pointer, models / "old")
    words = [
        "infer",
        "--config",
        sample / "config.toml",
        "--input",
        sample / "messages.jsonl",
        "--output",
        "out.parquet",
    ]
    words += ["--model", "models/current", "--set", "workers.dp_degree=1"]
    driver = subprocess.Popen(program(*words), env=environment, cwd=tmp_path)
    wait_for(lambda: list(tmp_path.glob(".overnight/*/commits/*.json")))
    promote(pointer, models / "new")
    children = psutil.Process(driver.pid).children(recursive=True)
    (worker,) = [child for child in children if "tasks.worker:main" in child.cmdline()]
    worker.kill()
    assert driver.wait(timeout=200) == 0

    rows = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert sum(row["output"] == row["expected"] for row in rows) > 0.9 * len(rows)
    manifest = json.loads((tmp_path / "_out.parquet.manifest.json").read_text())
    assert manifest["settings"]["model"]["path"] == os.path.realpath(models / "old")
    assert manifest["digests"] == Checkpoint.open(str(models / "old")).digests()
    assert manifest["pointer"] == "models/current"

    other = overnight(*words)
    assert other.returncode == 2, "another checkpoint is another run"
    assert "out.parquet holds the result of another run, with another model; " in other.stderr
    shutil.copytree(models / "old", models / "copy")
    promote(pointer, models / "copy")
    same = overnight(*words)
    assert same.returncode == 0, "the same bytes are the same run"
    assert "verified" in same.stdout


def test_the_pointer_is_moved_shown_and_moved_back(overnight: Overnight, models: Path) -> None:
    for name in ("old", "new"):
        done = overnight("promote", "models/current", f"models/{name}")
        assert done.returncode == 0
        assert f"models/current leads to {name}, digest " in done.stdout
    shutil.rmtree(models / "old")
    gone = overnight("promote", "models/current", "--rollback")
    assert gone.returncode == 2
    assert f"{models}/old, is gone" in gone.stderr
    shutil.copytree(MODEL, models / "old")
    assert overnight("promote", "models/current", "--rollback").returncode == 0
    assert os.readlink(models / "current") == "old"
    with (models / "old" / "config.json").open("a") as file:
        file.write("\n")
    shown = overnight("promote", "models/current")
    assert shown.returncode == 0
    lines = [line.split()[2:] for line in shown.stdout.splitlines() if line.startswith("20")]
    digests = [Checkpoint.open(str(folder)).digests()["model"][:12] for folder in (MODEL, models / "new")]
    assert lines == [
        ["promotion", "old", digests[0]], ["promotion", "new", digests[1]], ["rollback", "old", digests[0]]
    ]  # fmt: skip
    assert "its digest has changed" in shown.stdout


def test_what_cannot_be_moved_says_so_by_its_exit_status(overnight: Overnight, models: Path) -> None:
    refused = overnight("promote", "models/old", "models/new")
    assert refused.returncode == 2
    assert "models/old is a folder" in refused.stderr
    assert overnight("promote", "models/current").returncode == 2
    with locked(models / ".current.lock", "the pointer"):
        assert overnight("promote", "models/current", "models/new").returncode == 4
