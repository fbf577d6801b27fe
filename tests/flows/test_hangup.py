"""A terminal that is closed while a run goes on: SIGHUP, and nobody left to write to."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from tests.flows.conftest import ROOT, Overnight, messages, program, write_rows


def test_a_closed_terminal_ends_a_run_as_an_interrupt_does(
    overnight: Overnight, environment: dict[str, str], config: Path, tmp_path: Path
) -> None:
    source = write_rows(tmp_path / "in.jsonl", list(messages(5000)))
    words = program("infer", "--input", source, "--output", "out", "--config", config)
    words += ["--set", "sampling.max_tokens=200", "--set", "sampling.temperature=1"]
    driver, terminal = pty.fork()
    if driver == 0:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        os.chdir(tmp_path)
        os.execve(words[0], words, environment)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob(".overnight/*/attempts/*.json")):
        assert time.monotonic() < deadline, "waited too long"
        os.set_blocking(terminal, False)
        try:
            os.read(terminal, 1 << 16)
        except BlockingIOError:
            time.sleep(0.02)
    children = psutil.Process(driver).children(recursive=True)
    os.close(terminal)
    _, status = os.waitpid(driver, 0)
    assert os.waitstatus_to_exitcode(status) == 130
    assert psutil.wait_procs(children, timeout=10)[1] == []
    (run,) = tmp_path.glob(".overnight/*")
    attempts = {path.name.split(".")[0] for path in run.glob("attempts/*")}
    ended = {path.name.split(".")[0] for path in [*run.glob("commits/*"), *run.glob("attempts/*.end.json")]}
    assert attempts == ended, "what the workers held is finished, or given up on the record"
    last = json.loads((run / "events.jsonl").read_text().splitlines()[-1])
    assert (last["event"], last["state"], last["message"]) == ("finished", "interrupted", "by SIGHUP")
    shown = overnight("status", run).stdout
    assert "interrupted" in shown
    assert f"overnight infer --input {source} --output out" in shown


def test_under_nohup_it_stays_ignored() -> None:
    script = (
        "import os, signal; from flows.interrupts import take_signals; take_signals();"
        "os.kill(os.getpid(), signal.SIGHUP); print('goes on')"
    )
    done = subprocess.run(
        ["nohup", sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (0, "goes on\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("how", ["before a command listens", "inside a library that makes another error of it"])
def test_a_signal_at_any_time_is_an_interrupt(number: int, how: str) -> None:
    wrapped = "try:\n    kill()\nexcept KeyboardInterrupt as error:\n    raise RunError('no serializer') from error\n"
    body = "kill()\n" if how.startswith("before") else "with exit_status():\n" + textwrap.indent(wrapped, "    ")
    script = (
        "import os, signal, sys, flows.cli\nfrom data.errors import RunError\nfrom flows.exits import exit_status\n"
        "signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"  # this suite may run under nohup, or in a script's background
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"kill = lambda: os.kill(os.getpid(), {int(number)})\n"
        f"@flows.cli.app.command()\ndef work():\n{textwrap.indent(body, '    ')}"
        "sys.argv = ['overnight', 'work']\nflows.cli.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 130, done.stderr
    assert "Traceback" not in done.stderr
