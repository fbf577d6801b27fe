"""The command line itself: quick to answer, and complete in its help."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.settings import reference
from tests.flows.conftest import Overnight, messages, program, write_rows

HEAVY = ("torch", "transformers", "prefect", "pyarrow", "duckdb", "pandas", "pydantic")


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys, contextlib, flows.cli\n"
        "with contextlib.suppress(SystemExit): flows.cli.app(['--help'])\n"
        f"print('heavy:', [name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "infer" in done.stdout
    assert done.stdout.splitlines()[-1] == "heavy: []"


def test_the_help_of_infer_lists_every_setting(overnight: Overnight) -> None:
    done = overnight("infer", "--help")
    assert done.returncode == 0
    text = " ".join(done.stdout.split())
    assert [s.name for s in reference() if s.name not in text] == []
    assert [s.name for s in reference() if s.description not in text] == []


def test_an_unknown_command_or_option_is_status_two(overnight: Overnight) -> None:
    assert overnight("infre").returncode == 2
    assert overnight("audit").returncode == 2


@pytest.mark.parametrize("command", ["unforeseen", "bench --choose", "thread"])
def test_a_traceback_of_the_program_quotes_no_row(command: str) -> None:
    script = (
        "import sys, flows.cli, flows.choose_command\n"
        "def unforeseen(*args, **options):\n"
        "    int('a private ' + 'text')\n"
        "flows.cli.app.command('unforeseen')(lambda: unforeseen())\n"
        "flows.choose_command.given_settings = unforeseen\n"
        "@flows.cli.app.command()\n"
        "def thread():\n"
        "    import threading, time\n"
        "    threading.Thread(target=unforeseen).start()\n"
        "    time.sleep(1)\n"
        "    sys.exit(1)\n"
        f"sys.argv = ['overnight', *{command.split()!r}]\n"
        "flows.cli.main()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "ValueError" in done.stderr
    assert "in unforeseen" in done.stderr
    assert "a private text" not in done.stdout + done.stderr


def test_what_a_terminal_cannot_show_decides_nothing(environment: dict[str, str], config: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "in.jsonl", list(messages(6)))
    (tmp_path / "link").symlink_to("answers")
    poor = {**environment, "PYTHONIOENCODING": "latin-1"}
    words = program("infer", "--input", "in.jsonl", "--output", "link", "--config", config)
    done = subprocess.run(words, env=poor, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "Answered" in done.stdout
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "answers" / "_manifest.json").exists()

    script = f"exec {shlex.join(program('audit', 'link'))} <&- >&-"
    closed = subprocess.run(script, shell=True, env=environment, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    assert (closed.returncode, closed.stderr) == (0, "")
