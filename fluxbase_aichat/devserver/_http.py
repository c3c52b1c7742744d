"""The HTTP side: one port for REST calls and for the upgrade. It decides no answer of the chat."""

from __future__ import annotations

import contextlib
import http
import socket
import socketserver
import sys
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast
from urllib.parse import parse_qs, urlsplit

from ._auth import BadTokenError, Identity
from ._faults import Faults
from ._gojson import dumps
from ._rest import RATE_LIMITED, Answer
from ._runtime import Runtime, StoppedError
from ._session import Session
from ._websocket import Peer, accept_token, write

__all__ = ["Listener"]

_SOCKET_PATHS = ("/ai/ws", "/ai/ws/")
_DISABLED: Mapping[str, Answer] = {
    "off-2026.1": Answer(404, {"code": "FEATURE_DISABLED", "error": "Feature not available"}),
    "off-2026.3": Answer(
        503,
        {
            "code": "FEATURE_DISABLED",
            "error": "Feature is not enabled",
            "feature_key": "app.ai.enabled",
        },
    ),
}
_UNAUTHORIZED = Answer(401, {"error": "Invalid or expired Bearer token"})


class Listener(ThreadingHTTPServer):
    """Accepts connections, each with a thread of its own."""

    daemon_threads = True
    block_on_close = False  # the dev server joins them, after it has closed their sockets

    def __init__(self, address: tuple[str, int], runtime: Runtime) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.runtime = runtime
        self.timeout = 0  # handle_request() is called when somebody is waiting
        super().__init__(address, Handler)

    def server_bind(self) -> None:
        """Bind without asking DNS for the host's name, as http.server does."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a connection in a thread that the dev server knows."""
        thread = threading.Thread(
            target=self.process_request_thread,
            args=(request, client_address),
            name="devserver-connection",
            daemon=True,
        )
        self.runtime.track(thread, request)
        try:
            thread.start()
        except RuntimeError:
            if threading.main_thread().is_alive():
                raise
            # The script has ended, and this server with it: nobody is to be told.
            self.shutdown_request(request)

    def shutdown_request(self, request: Any) -> None:
        """End the stream in both directions and forget the connection."""
        _drain(request)
        super().shutdown_request(request)
        self.runtime.untrack(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Report what is a mistake of the dev server's; a lost connection is none."""
        if not isinstance(sys.exception(), (OSError, StoppedError)):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """Answers the requests of one connection, until one of them is upgraded."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    connection: socket.socket

    @property
    def _runtime(self) -> Runtime:
        return cast("Listener", self.server).runtime

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Say nothing: a request may carry a token."""

    def _answer(self) -> None:
        runtime = self._runtime
        length = self.headers.get("Content-Length", "0")
        body = self.rfile.read(int(length)) if length.isdigit() else b""
        runtime.asked(self.command, self.path, dict(self.headers.items()))
        runtime.stall("handshake")
        found = _faulty(runtime.faults) or self._refused()
        if isinstance(found, Answer):
            self._write(found)
        elif urlsplit(self.path).path not in _SOCKET_PATHS:
            self._write(runtime.rest.answer(self.command, self.path, found, body))
        elif self.headers.get("Upgrade", "").lower() != "websocket":
            self._write(Answer(426, {"code": 426, "error": "Upgrade Required"}))
        else:
            self._upgrade(found)

    # What http.server calls for each method.
    do_GET = do_POST = do_PATCH = do_PUT = do_DELETE = do_OPTIONS = _answer  # noqa: N815

    def _refused(self) -> Answer | Identity:
        """Return what is wrong with the request before anything is done, or who sent it."""
        runtime = self._runtime
        url = urlsplit(self.path)
        if not url.path.startswith("/api/v1/") and url.path not in _SOCKET_PATHS:
            return Answer(404, {"error": "Not Found", "path": url.path})
        if runtime.feature in _DISABLED and not url.path.startswith("/api/v1/auth/"):
            return _DISABLED[runtime.feature]
        try:
            return runtime.auth.identify(
                self.headers.get("Authorization", ""),
                self.headers.get("X-Service-Key"),
                parse_qs(url.query).get("token", [""])[-1],
            )
        except BadTokenError as error:
            return Answer(401, {"error": str(error)})

    def _upgrade(self, identity: Identity) -> None:
        """Turn the connection into a websocket and serve it to its end."""
        self.close_connection = True
        runtime = self._runtime
        number = runtime.opened()
        try:
            head = {
                "Upgrade": "websocket",
                "Connection": "Upgrade",
                "Sec-WebSocket-Accept": accept_token(self.headers.get("Sec-WebSocket-Key", "")),
            }
            write(self.connection, _head("101 Switching Protocols", head), runtime.faults)
            peer = Peer(self.connection, cast("Any", self.rfile), runtime.faults)
            session = Session(runtime, peer, identity)
            for text in peer.texts():
                runtime.got(number, text)
                if not session.handle(text):
                    break
        finally:
            runtime.closed()

    def _write(self, answer: Answer) -> None:
        body = dumps(answer.body).encode()
        headers = {
            "Date": self.date_time_string(),
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            **answer.headers,
        }
        status = f"{answer.status} {_phrase(answer.status)}"
        write(self.connection, _head(status, headers) + body, self._runtime.faults)


def _faulty(faults: Faults) -> Answer | None:
    if faults.strikes("unauthorized"):
        return _UNAUTHORIZED
    after = faults.retry_after  # before a fault that strikes for the last time clears it
    status = faults.strikes("status")
    if not status:
        return None
    headers = {} if after is None else {"Retry-After": str(after)}
    body = RATE_LIMITED.body if status == RATE_LIMITED.status else {"error": _phrase(status)}
    return Answer(status, body, headers)


def _head(status: str, headers: Mapping[str, str]) -> bytes:
    lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in headers.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def _phrase(status: int) -> str:
    try:
        return http.HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"


def _drain(sock: socket.socket) -> None:
    """Read what the client sent and nobody wanted: closing over it would reset the connection."""
    with contextlib.suppress(OSError):  # nothing there, or gone
        sock.shutdown(socket.SHUT_WR)
        sock.setblocking(False)
        while sock.recv(256 * 1024):
            pass
