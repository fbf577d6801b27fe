"""A machine whose programs are told to go through proxies."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.flows.conftest import messages, program, write_rows


def test_proxies_do_not_stand_between_a_run_and_its_own_server(
    environment: dict[str, str], config: Path, tmp_path: Path
) -> None:
    proxies = dict.fromkeys(("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy"), "http://127.0.0.1:9")
    proxies |= {"ALL_PROXY": "socks5://127.0.0.1:9", "NO_PROXY": "", "no_proxy": "inside.example"}
    source = write_rows(tmp_path / "rows.jsonl", messages(3))
    words = program("infer", "--input", source, "--output", "out.jsonl", "--config", config)
    done = subprocess.run(
        words, env={**environment, **proxies}, cwd=tmp_path, text=True, capture_output=True, timeout=200
    )
    print(done.stdout, done.stderr)
    assert done.returncode == 0
    assert "Prefect failed" not in done.stdout
    assert len((tmp_path / "out.jsonl").read_text("utf-8").splitlines()) == 3
