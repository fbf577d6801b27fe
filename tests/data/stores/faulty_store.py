"""An S3 server on loopback, and a proxy before it that fails as networks and stores do: real HTTP on both sides.

The server is moto's. The proxy passes every request on unless a fault is planted for it, and keeps a journal of the
requests that would change something.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from moto.server import ThreadedMotoServer

CONDITIONS = ("if-none-match", "if-match")


@dataclass
class Fault:
    """What happens to the next `times` requests of a method whose path contains `part`."""

    method: str
    part: str
    act: str
    """refuse: answer `status`. late: do it, and drop the connection. flip: change a byte of the body.
    deaf: drop the conditions. before: call `hook`, then go on."""
    times: int = 1
    status: int = 503
    code: str = "SlowDown"
    hook: Callable[[], Any] = lambda: None
    met: int = 0


@dataclass
class FaultyStore:
    """The proxy and what it does. `changes` counts requests that change something and were passed on."""

    server: int
    faults: list[Fault] = field(default_factory=list)
    journal: list[str] = field(default_factory=list)
    cut_after: int | None = None
    """From the change after so many, nothing is answered but 500: as if the driver had been cut off there."""
    cut: bool = False
    mute: bool = False
    """Computes and tells no checksums. Else a put whose bytes are not those of its checksum is refused, as on S3."""

    def __post_init__(self) -> None:
        store = self

        class Handler(_Handler):
            owner = store

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_port}"

    def plant(self, method: str, part: str, act: str, **options: Any) -> Fault:
        fault = Fault(method, part, act, **options)
        self.faults.append(fault)
        return fault

    def heal(self) -> None:
        self.faults.clear()
        self.journal.clear()
        self.cut_after, self.cut = None, False

    def fault_of(self, method: str, path: str) -> Fault | None:
        for fault in self.faults:
            if fault.method == method and fault.part in path and fault.met < fault.times:
                fault.met += 1
                return fault
        return None

    def stop(self) -> None:
        self._http.shutdown()
        self._http.server_close()


class _Handler(BaseHTTPRequestHandler):
    owner: FaultyStore
    protocol_version = "HTTP/1.1"

    def _serve(self) -> None:
        store = self.owner
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = {name.lower(): value for name, value in self.headers.items() if name.lower() != "expect"}
        changes = self.command in ("PUT", "DELETE", "POST")
        store.cut = store.cut or (changes and store.cut_after is not None and len(store.journal) >= store.cut_after)
        if store.cut:
            self._answer(500, {}, _error("InternalError"))
            return
        fault = store.fault_of(self.command, self.path)
        if fault is not None:
            if fault.act == "refuse":
                self._answer(fault.status, {}, _error(fault.code))
                return
            if fault.act == "deaf":
                headers = {name: value for name, value in headers.items() if name not in CONDITIONS}
            if fault.act == "flip":
                body = body[:-1] + bytes([body[-1] ^ 1])
            if fault.act == "before":
                fault.hook()
        checksum = headers.get("x-amz-checksum-sha256")
        if store.mute:
            headers = {name: value for name, value in headers.items() if "checksum" not in name}
        elif checksum and checksum != base64.b64encode(hashlib.sha256(body).digest()).decode():
            self._answer(400, {}, _error("BadDigest"))
            return
        if changes:
            store.journal.append(f"{self.command} {self.path.partition('?')[0]}")
        status, answer_headers, content = self._pass_on(headers, body)
        if fault is not None and fault.act == "late":
            self.close_connection = True
            return
        self._answer(status, answer_headers, content)

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = _serve  # noqa: N815 - http.server's names

    def _pass_on(self, headers: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.owner.server, timeout=30)
        try:
            connection.request(self.command, self.path, body, headers)
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            connection.close()

    def _answer(self, status: int, headers: dict[str, str], content: bytes) -> None:
        self.send_response_only(status)
        length = headers.pop("content-length", headers.pop("Content-Length", str(len(content))))
        for name, value in headers.items():
            if name.lower() not in ("connection", "transfer-encoding"):
                self.send_header(name, value)
        self.send_header("Content-Length", length if self.command == "HEAD" else str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


def _error(code: str) -> bytes:
    return f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>planted</Message></Error>".encode()


def start_server() -> tuple[ThreadedMotoServer, int]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    return server, int(server.get_host_and_port()[1])
