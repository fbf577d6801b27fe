"""A flow in this process, on the configured Prefect server or on one that is started for it.

Nothing here imports Prefect before it is asked for: the server boots while its caller goes on.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tasks.local_server import LocalServer


def start_server(stack: ExitStack, home: Path) -> LocalServer | None:
    """Start a Prefect server of the run's own, whose state is in `home`; None where the environment names one.

    It boots while its caller goes on, since that takes seconds. Prefect's log lines are kept off the display: what goes
    wrong is told once, by the report.
    """
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "CRITICAL")
    os.environ.setdefault("PREFECT_LOGGING_INTERNAL_LEVEL", "CRITICAL")
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")  # nothing is reported from a run
    os.environ.setdefault("DO_NOT_TRACK", "1")
    if os.environ.get("PREFECT_API_URL"):
        return None
    from tasks.local_server import local_server
    from tasks.proxies import pass_proxies_by

    pass_proxies_by()
    return stack.enter_context(local_server(home))


def load_flow(name: str, stack: ExitStack, server: LocalServer | None) -> Any:
    """A flow of `flows`, on `server` or, where Prefect turns out to know another one, on that.

    Raises:
        InputError: a setting of Prefect is wrong.
        RunError: the server that is configured cannot be used, or `server` did not start.
    """
    from engine.importing import without_collections
    from tasks.prefect_server import api_url, check_reachable

    with without_collections():
        configured = api_url()
        flow = getattr(import_module(f"flows.{name}"), name)
        from prefect.context import refresh_global_settings_context
        from prefect.events.clients import PrefectEventsClient
        from prefect.events.worker import EventsWorker
        from prefect.settings import (
            PREFECT_CLIENT_MAX_RETRIES,
            PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
            temporary_settings,
        )

    if configured is not None:
        if server is not None:
            server.end()
        check_reachable(configured)
    elif server is not None:
        os.environ["PREFECT_API_URL"] = server.wait()
        os.environ["PREFECT_LOGGING_TO_API_ENABLED"] = "false"  # a server that ends with the run keeps no logs
        refresh_global_settings_context()
        # It would miss no heartbeat either, and a flow waits up to a second for the thread that sends them. And where
        # it is gone it stays so: each request would be tried for a minute, each event for seven seconds. Once more is
        # enough: it may just have closed an idle connection.
        own = {PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None, PREFECT_CLIENT_MAX_RETRIES: 1}
        stack.enter_context(temporary_settings(own))
        EventsWorker.set_client_override(PrefectEventsClient, reconnection_attempts=1)
    return flow


def run_flow(name: str, *arguments: Any, advice: str = "") -> Any:
    """What a flow of `flows` returns, run on the configured Prefect server or on one that lasts as long as it does.

    RunError, with `advice`, where it is Prefect that failed; what the flow's own tasks raise passes.
    """
    with ExitStack() as stack:
        server = start_server(stack, Path(stack.enter_context(TemporaryDirectory(prefix=f"overnight-{name}-"))))
        flow = load_flow(name, stack, server)
        from httpx import HTTPError
        from prefect.exceptions import PrefectException

        from data.errors import RunError

        try:
            return flow(*arguments)
        except (PrefectException, HTTPError) as error:
            raise RunError(f"Prefect failed: {error}{advice and '; '}{advice}") from error
