"""The Prefect server of a run's own, as a real process."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tasks.local_server import LocalServer, local_server


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalServer]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with local_server(tmp_path / "home") as started:
        yield started


def test_answers_do_not_wait_for_acknowledgements(server: LocalServer) -> None:
    with httpx.Client(base_url=server.wait()) as client:
        seconds = []
        for _ in range(12):
            started = time.perf_counter()
            assert client.post("/artifacts/filter", json={"limit": 1}).json() == []
            seconds.append(time.perf_counter() - started)
    assert min(seconds[2:]) < 0.035, "each answer waits 40 ms; the first ones after a pause do not"


def test_it_serves_where_nothing_can_be_kept_for_the_next_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file" / "cache"))
    with local_server(tmp_path / "home") as started, httpx.Client(base_url=started.wait()) as client:
        assert client.get("/health").json() is True
