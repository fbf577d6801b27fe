"""Proxies of the environment: this machine is reached without them, all others through them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from urllib.request import getproxies, proxy_bypass

import httpx
import pytest

from tasks.proxies import pass_proxies_by


@pytest.fixture(autouse=True)
def variables() -> Iterator[None]:
    before = dict(os.environ)
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        del os.environ[name]
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.mark.parametrize("spared", [{}, {"NO_PROXY": "inside.example"}, {"no_proxy": "inside.example", "NO_PROXY": ""}])
def test_this_machine_is_added_to_what_is_spared(spared: dict[str, str]) -> None:
    os.environ.update({"HTTPS_PROXY": "http://proxy.example:3128", **spared})
    pass_proxies_by()
    assert proxy_bypass("127.0.0.1")
    assert proxy_bypass("localhost")
    assert bool(proxy_bypass("inside.example")) == bool(spared)
    assert not proxy_bypass("hub.example")
    assert getproxies()["https"] == "http://proxy.example:3128"


def test_everything_stays_spared() -> None:
    os.environ.update({"HTTP_PROXY": "http://proxy.example:3128", "NO_PROXY": "*"})
    pass_proxies_by()
    assert proxy_bypass("hub.example")


@pytest.mark.parametrize("url", ["socks://127.0.0.1:9", "socks4://127.0.0.1:9", "http://proxy.example:port"])
def test_a_proxy_that_no_client_can_use_hinders_none(url: str) -> None:
    os.environ.update({"ALL_PROXY": url, "http_proxy": "proxy.example:3128"})
    pass_proxies_by()
    httpx.Client().close()
    assert getproxies()["http"] == "proxy.example:3128"
