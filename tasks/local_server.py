"""A Prefect server of the run's own, for when none is configured.

Prefect's built-in temporary server outlives a driver that is killed. This one is a supervised child: it listens on a
free loopback port, keeps its database in the run's folder, and ends with its parent. It says every second that it
serves; one that falls silent is killed, for a request to a server that is gone fails at once, where one to a server
that hangs would be waited for, and tried again, for minutes. A migrated, empty database is kept in the user's cache,
since the migrations are most of the first start.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import sqlite3
import tempfile
import threading
from collections.abc import Iterator
from multiprocessing.connection import wait
from pathlib import Path

from data.errors import RunError
from engine.child import BEAT, BEAT_SECONDS, Mailbox
from engine.importing import without_collections
from engine.supervisor import Child

START_SECONDS = 120.0
SILENT_BEATS = 30
TICKS_PER_BEAT = 10  # uvicorn's ticks are a tenth of a second
END_SECONDS = 10.0
# Of the services only the one that records task runs: nothing here is scheduled, late, paused, automated or pooled.
IDLE_SERVICES = (
    "SCHEDULER",
    "LATE_RUNS",
    "FOREMAN",
    "TRIGGERS",
    "REPOSSESSOR",
    "PAUSE_EXPIRATIONS",
    "CANCELLATION_CLEANUP",
    "CLEANUP_RECONCILER",
)
ENVIRONMENT = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    **{f"PREFECT_SERVER_SERVICES_{name}_ENABLED": "false" for name in IDLE_SERVICES},
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "200",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_READ_BATCH_SIZE": "200",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
    "PREFECT_LOGGING_SERVER_LEVEL": "ERROR",
}
# The template has been through both.
FROM_TEMPLATE = {"PREFECT_API_DATABASE_MIGRATE_ON_START": "false", "PREFECT_API_BLOCKS_REGISTER_ON_START": "false"}


class LocalServer:
    """A server that boots while its caller does something else."""

    def __init__(self, child: Child, database: Path, template: Path) -> None:
        self._child, self._database, self._template = child, database, template
        self._watcher = threading.Thread(target=self._watch, daemon=True, name="local server")

    def wait(self) -> str:
        """The API's URL, once requests are answered. Raises RunError if that takes more than two minutes."""
        child = self._child
        message = child.receive() if wait([child.connection], START_SECONDS) else None
        if message is None:
            raise RunError(f"the local Prefect server did not start, its log is {child.log}: {child.last_words()}")
        if not self._template.exists():
            with contextlib.suppress(OSError, sqlite3.Error):  # the next start then takes the seconds that it saves
                _keep(self._database, self._template)
        self._watcher.start()
        return f"http://127.0.0.1:{message['port']}/api"

    def end(self) -> None:
        """End the server; its database stays."""
        self._child.kill()
        if self._watcher.ident is not None:  # it reads from the connection that is closed next
            self._watcher.join(END_SECONDS)
        self._child.end()

    def _watch(self) -> None:
        """Kill the server once it is silent; a pause of this process counts as one beat."""
        silent = 0
        while silent < SILENT_BEATS:
            if not wait([self._child.connection], BEAT_SECONDS):
                silent += 1
            elif self._child.receive() is None:
                return
            else:
                silent = 0
        self._child.kill()


@contextlib.contextmanager
def local_server(home: Path) -> Iterator[LocalServer]:
    """Start a server whose state is in `home`, and end it with the block."""
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    template = _template()
    database = home / "prefect.db"
    for leftover in home.glob("prefect.db*"):  # of a server that was killed; the ledger is the truth, not this
        leftover.unlink()
    url = f"sqlite+aiosqlite:///{database}"
    environment = {**ENVIRONMENT, "PREFECT_HOME": str(home), "PREFECT_API_DATABASE_CONNECTION_URL": url}
    if template.exists():
        shutil.copyfile(template, database)
        environment |= FROM_TEMPLATE
    environment["PREFECT_API_URL"] = ""
    child = Child("tasks.local_server:serve", environment=environment, log=home / "server.log")
    server = LocalServer(child, database, template)
    try:
        yield server
    finally:
        server.end()


def serve(mailbox: Mailbox) -> None:
    """The server process: tell the port once requests are answered, then serve until the parent is gone."""
    with without_collections():
        import uvicorn
        from prefect.server.api.server import create_app

    class Server(uvicorn.Server):
        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield  # the driver decides when this process ends, not a Ctrl-C meant for the driver

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            mailbox.send({"event": "listening", "port": port})

        async def on_tick(self, counter: int) -> bool:
            if counter % TICKS_PER_BEAT == 0:
                mailbox.send({"event": BEAT})
            return await super().on_tick(counter)

    # By its name, or asyncio does not know it for TCP and lets each answer wait 40 ms for the client's acknowledgement.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    config = uvicorn.Config(create_app(), log_level="error", lifespan="on", access_log=False)
    asyncio.run(Server(config).serve([listener]))


def _template() -> Path:
    from importlib.metadata import version

    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "overnight" / f"prefect-{version('prefect')}.db"


def _keep(database: Path, template: Path) -> None:
    """Copy the migrated database, which is in use, to the cache; two runs doing so at once both succeed."""
    template.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=template.parent) as folder:
        copy = Path(folder) / "copy.db"
        with (
            contextlib.closing(sqlite3.connect(database)) as source,
            contextlib.closing(sqlite3.connect(copy)) as target,
        ):
            source.backup(target)
        copy.replace(template)
