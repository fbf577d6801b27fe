"""What one real run says, leaves and connects to, looked at from outside while it runs and after it.

The run has rows whose text must not be seen anywhere but in its result: sound ones, every sort of bad one, one at which
the template raises, and several that name a URL. One of its workers is killed. It runs without any network but its own
loopback, where a listener would see what a row makes anybody fetch, and its system calls are traced.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from tests.flows.conftest import MODEL, messages, program, write_rows

TEXT = "zebrafinch"  # in every row
TEMPLATE = "wagtail"  # in the prompt
SECRETS = {"AWS_SECRET_ACCESS_KEY": "kestrel-1", "HF_TOKEN": "hf_kestrel2", "PREFECT_API_KEY": "pnu_kestrel3"}
LISTEN = "0A"
TRACE = "connect,sendto,sendmsg,sendmmsg"
URLS = ("http://127.0.0.1:8/{}", "https://example.com/{}.jsonl", "s3://bucket/{}", "hf://datasets/{}/x", "file:///{}")

without_network = ["unshare", "--map-root-user", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]


def permitted() -> bool:
    """Whether this machine lets us have a network of our own, and trace our children."""
    if not all(map(shutil.which, ("unshare", "strace", "ip"))):
        return False
    return subprocess.run([*without_network, "strace", "-o", "/dev/null", "true"], capture_output=True).returncode == 0


pytestmark = pytest.mark.skipif(not permitted(), reason="needs unshare, ip and strace, and leave to use them")


@dataclass
class Observed:
    """A run that has ended, and what was seen of it."""

    folder: Path
    run: Path
    shown: str
    calls: str
    listening: set[str] = field(default_factory=set)
    command_lines: set[str] = field(default_factory=set)
    killed: bool = False


def bad_rows() -> Iterator[object]:
    yield {"id": 1000, "text": f"boom {TEXT}"}  # the template raises
    yield f'{{"id": 1001, "text": "{TEXT}'  # no JSON
    yield {"id": 1002, "text": f"{TEXT} " * 4000}  # over the context
    yield f'{{"id": 1003, "text": "{TEXT} \\ud800"}}'  # a lone surrogate
    yield f'{{"id": 1004, "text": "{TEXT}", "text": "{TEXT}"}}'
    for number, url in enumerate(URLS):
        yield {"id": 2000 + number, "text": url.format(TEXT), "image": url.format(TEXT)}


@pytest.fixture(scope="module")
def observed(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Observed:
    folder = tmp_path_factory.mktemp("observed")
    rows = [{**row, "text": f"{row['text']} {TEXT} {{{{ 7*7 }}}} <|im_end|>"} for row in messages(300)]
    write_rows(folder / "in.jsonl", [*rows, *bad_rows()])
    template = f"{TEMPLATE} {{{{ text if 'boom' not in text else 1 // (text|length - text|length) }}}}"
    (folder / "config.toml").write_text(
        f"[job]\nprompt = [{{ role = 'user', content = {json.dumps(template)} }}]\n[output]\nerror_budget = 0.5\n"
        f"[model]\npath = {json.dumps(str(MODEL))}\n[sampling]\nmax_tokens = 8\n[workers]\ndp_degree = 2\n"
    )
    trace = ["strace", "--follow-forks", "--seccomp-bpf", "-qq", "-e", f"trace={TRACE}", "-o", str(folder / "calls")]
    words = program("infer", "--input", "in.jsonl", "--output", "out")
    seen = Observed(folder, folder, "", "")
    with (folder / "shown").open("wb") as shown:
        offline = {name: value for name, value in environment.items() if name != "HF_HUB_OFFLINE"}
        driver = psutil.Popen(
            [*without_network, *trace, *words],
            env={**offline, **SECRETS, "XDG_CACHE_HOME": str(folder / "cache"), "PREFECT_HOME": str(folder / "home")},
            cwd=folder,
            stdout=shown,
            stderr=subprocess.STDOUT,
        )
        deadline = time.monotonic() + 400
        while driver.poll() is None:
            assert time.monotonic() < deadline
            look(driver, seen)
            time.sleep(0.1)
    seen.shown, seen.calls = (folder / "shown").read_text(), (folder / "calls").read_text(errors="replace")
    print(seen.shown)
    assert driver.returncode == 0
    (seen.run,) = folder.glob(".overnight/*")
    return seen


def look(driver: psutil.Process, seen: Observed) -> None:
    """Note the command lines and listening sockets of a process and its children; kill a worker that is at work."""
    for process in [driver, *driver.children(recursive=True)]:
        try:
            words = " ".join(process.cmdline())
            network = os.readlink(f"/proc/{process.pid}/ns/net")
            sockets = (
                Path(f"/proc/{process.pid}/net/tcp").read_text() + Path(f"/proc/{process.pid}/net/tcp6").read_text()
            )
        except (psutil.Error, OSError):
            continue
        seen.command_lines.add(words)
        if network != os.readlink("/proc/self/ns/net"):  # the first processes begin in that of this test
            lines = [line.split() for line in sockets.splitlines()]
            seen.listening |= {line[1] for line in lines if len(line) > 3 and line[3] == LISTEN}
        commits = list(seen.folder.glob(".overnight/*/commits/*.json"))
        if "engine.child tasks.worker" in words and "strace" not in words and commits and not seen.killed:
            process.kill()
            seen.killed = True


def everything(folder: Path) -> Iterator[tuple[Path, bytes]]:
    """Every file below a folder; Parquet as the text of its values."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            content = path.read_bytes()
            yield path, repr(pq.read_table(path).to_pydict()).encode() if content[:4] == b"PAR1" else content


def test_the_rows_are_answered_but_for_the_bad_ones(observed: Observed) -> None:
    manifest = json.loads((observed.folder / "out" / "_manifest.json").read_text())
    assert manifest["rows"] == 300 + len(list(bad_rows()))
    assert manifest["ok"] >= 300
    assert "template_failed" in manifest["errors"] or "template_error" in manifest["errors"], manifest["errors"]
    assert observed.killed


def test_no_text_of_a_row_is_left_anywhere_but_in_the_result(observed: Observed) -> None:
    places = [observed.run, observed.folder / "cache", observed.folder / "home"]
    found = [path for place in places for path, content in everything(place) if TEXT.encode() in content]
    assert found == []
    assert TEXT not in observed.shown
    assert TEXT in (observed.folder / "in.jsonl").read_text(), "the search would find nothing in any case"


def test_no_text_of_the_template_is_in_logs_events_or_prefect(observed: Observed) -> None:
    found = [path for path, content in everything(observed.run) if TEMPLATE.encode() in content]
    # The run's identity, and the manifest that was published: both are there to say what was asked.
    assert {path for path in found if path.parent.name != "publications"} <= {observed.run / "run.json"}
    assert TEMPLATE not in observed.shown


def test_no_error_message_in_the_result_holds_a_rows_text(observed: Observed) -> None:
    (part,) = (observed.folder / "out").glob("part-*.parquet")
    messages_ = [error["message"] for error in pq.read_table(part)["error"].to_pylist() if error]
    assert messages_
    assert not any(TEXT in message for message in messages_)


def test_no_secret_is_left_or_shown(observed: Observed) -> None:
    for secret in SECRETS.values():
        found = [path for path, content in everything(observed.folder) if secret.encode() in content]
        assert found == []
        assert not any(secret in words for words in observed.command_lines)


def test_the_run_folder_is_private(observed: Observed) -> None:
    assert stat.S_IMODE(observed.run.stat().st_mode) == 0o700
    for path in observed.run.rglob("*"):
        if path.is_dir() and path.parent == observed.run:
            assert stat.S_IMODE(path.stat().st_mode) == 0o700, path


def test_sockets_listen_on_loopback_alone(observed: Observed) -> None:
    assert observed.listening, "Prefect's own server was not seen"
    loopback = re.compile(r"(0100007F|00000000000000000000000001000000|0000000000000000FFFF00000100007F):")
    assert [address for address in observed.listening if not loopback.match(address)] == []


def test_nothing_is_fetched_or_reported(observed: Observed) -> None:
    """Neither by the program nor for a row: no process tries to reach more than its own server on loopback."""
    lines = [line for line in observed.calls.splitlines() if "sa_family=AF_INET" in line]
    assert lines, "the trace saw nothing"
    ports = {int(address.partition(":")[2], 16) for address in observed.listening}
    wrong = []
    for line in lines:
        port = re.search(r"sin6?_port=htons\((\d+)\)", line)
        local = 'inet_addr("127.0.0.1")' in line or '"::1"' in line
        if not local or port is None or int(port[1]) not in ports:
            wrong.append(line)
    assert wrong == []
