"""`overnight quantize` as a user meets it: killed and gone on with, held, refused, and judged."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from data.checkpoint import Checkpoint
from engine.quantizer_process import quantize_in_children
from engine.quantizer_report import REPORT_NAME
from tasks.calibration_rows import calibration_rows
from tasks.configuration import load_settings
from tasks.quantization_place import report_of
from tasks.settings import Settings
from tests.flows.conftest import MODEL, ROOT, Overnight, program

SAMPLE = ROOT / "data" / "sample" / "messages.jsonl"
CONFIG = f"""\
[input]
path = "{SAMPLE}"
[job]
prompt = [
    {{ role = "system", content = "Give the intent and the sentiment of the message as JSON." }},
    {{ role = "user", content = "{{{{ text }}}}" }},
]
expected = "expected"
[model]
path = "{MODEL}"
[sampling]
max_tokens = 32
[workers]
dp_degree = 1
[quantize]
rows = 8
max_tokens = 48
group_size = 128
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A configuration that quantizes the bundled model with few rows."""
    path = tmp_path / "config.toml"
    path.write_text(CONFIG, encoding="utf-8")
    return path


@pytest.fixture
def environment(environment: dict[str, str]) -> dict[str, str]:
    """One thread, so that two runs sum in one order wherever they run."""
    return {**environment, "OMP_NUM_THREADS": "1"}


@contextmanager
def running(words: list[str], environment: dict[str, str], folder: Path) -> Iterator[subprocess.Popen[str]]:
    """The program, which is gone when the block ends."""
    with subprocess.Popen(
        words, env=environment, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_for(condition: Callable[[], Any], process: subprocess.Popen[str], seconds: float = 240) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert process.poll() is None, process.stdout.read() if process.stdout else ""
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)
    return found


def quantizers(driver: int) -> list[psutil.Process]:
    """The processes of a driver in which layers are quantized."""
    children = psutil.Process(driver).children(recursive=True)
    return [child for child in children if "engine.quantizer_child:serve" in child.cmdline()]


def undisturbed(settings: Settings, output: Path) -> None:
    """The checkpoint of the settings, without the program around it."""
    checkpoint = Checkpoint.open(settings.model.path)
    rows = calibration_rows(settings, checkpoint)
    quantize_in_children(checkpoint.folder, output, settings.quantize.quantizer(), rows.ids, lambda *_: None)


def test_kills_of_child_and_driver_cost_no_layer_and_change_no_byte(
    overnight: Overnight, environment: dict[str, str], config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "small"
    work = tmp_path / ".overnight" / "quantize-small"
    shards = work / ".small.quantizing"
    words = program("quantize", "--output", "small", "--set", "quantize.gate=false")
    with running(words, environment, tmp_path) as first:
        (child,) = wait_for(lambda: (shards / "shard-00000.json").exists() and quantizers(first.pid), first)
        os.kill(child.pid, signal.SIGKILL)
        said, _ = first.communicate(timeout=60)
        assert first.returncode == 1, said
        assert "killed by SIGKILL" in said
        assert "the same command goes on behind the finished layers" in said
    written = (shards / "shard-00000.json").stat().st_mtime_ns
    with running(words, environment, tmp_path) as second:
        (child,) = wait_for(lambda: (shards / "shard-00001.json").exists() and quantizers(second.pid), second)
        child.suspend()  # or it may be done before it is killed
        held = overnight("quantize", "--output", "small", "--set", "quantize.gate=false")
        assert held.returncode == 4
        assert re.search(r"quantize.output \S+/small is in use by process \d+", held.stderr)
        second.kill()
        psutil.wait_procs([child], timeout=30)
        assert not child.is_running()
    other = overnight(
        "quantize", "--output", "small", "--set", "quantize.gate=false", "--set", "quantize.symmetric=true"
    )
    assert other.returncode == 2
    assert "was begun with another settings" in other.stderr
    assert "--fresh" in other.stderr
    assert (shards / "shard-00000.json").stat().st_mtime_ns == written
    assert not output.exists()
    last = overnight("quantize", "--output", "small", "--set", "quantize.gate=false")
    assert last.returncode == 0
    assert str(output) in last.stdout
    assert not work.exists()
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    undisturbed(load_settings(config), tmp_path / "whole")
    names = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert names == sorted(path.name for path in output.iterdir())
    names.remove(REPORT_NAME)  # it tells how long it took, and more than the engine knows
    assert all((output / name).read_bytes() == (tmp_path / "whole" / name).read_bytes() for name in names)
    report = report_of(output)
    assert report is not None
    assert (report["model"], report["calibration"]["rows"]) == (str(MODEL), 8)
    before = (output / REPORT_NAME).read_bytes()
    again = overnight("quantize", "--output", "small", "--set", "quantize.gate=false")
    assert again.returncode == 0
    assert "published before" in again.stdout
    assert (output / REPORT_NAME).read_bytes() == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--set", "quantize.bits=8"], "quantize.bits = 8 is not supported by quantize.method = 'awq': use 4"),
        (["--set", "quantize.group_size=48"], "quantize.group_size = 48 is not supported: use 128, 64 or 32"),
        (["--model", "nowhere/at/all"], "nowhere/at/all does not exist"),
        (["--set", "input.path="], "is calibrated with rows: name the job's with --input"),
        (
            ["--set", "input.path=", "--set", "quantize.method=fp8"],
            "the gate compares both models on rows: name them with --input",
        ),
        (["--output", str(MODEL / "small")], "lie in each other: name another --output"),
    ],
)
def test_what_is_wrong_is_status_two_and_starts_nothing(
    words: list[str], message: str, overnight: Overnight, tmp_path: Path
) -> None:
    done = overnight("quantize", *words)
    assert done.returncode == 2
    assert message in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["config.toml"]
