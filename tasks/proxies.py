"""Proxies of the environment, which requests to this machine must not go to.

Companies set HTTP_PROXY and its like for all programs. What reaches them through it (a hub, a store) still does.
"""

from __future__ import annotations

import os

_OWN = "127.0.0.1,localhost"
_PROXIES = ("http_proxy", "https_proxy", "all_proxy")


def pass_proxies_by() -> None:
    """Have this process, and those that it starts from now on, reach servers on this machine without a proxy.

    httpx prepares for every proxy that is named, also where none is to be used, and fails at one that it cannot use,
    such as SOCKS without socksio. Such a variable is removed: Prefect's client has no setting to ignore it.
    """
    named = [name for name in os.environ if name.lower() in _PROXIES and os.environ[name]]
    if not named:
        return
    lower, upper = os.environ.get("no_proxy"), os.environ.get("NO_PROXY")
    for name, spared in (("no_proxy", lower or upper), ("NO_PROXY", upper or lower)):
        if spared != "*":
            os.environ[name] = f"{spared},{_OWN}" if spared else _OWN
    from httpx import Client, InvalidURL

    for name in named:
        url = os.environ[name]
        try:
            Client(proxy=url if "://" in url else f"http://{url}", verify=False).close()
        except (ImportError, ValueError, InvalidURL):
            del os.environ[name]
