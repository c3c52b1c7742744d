"""One HTTP request and its answer over the transport's own connector, bounded and by one deadline.

http.client writes the request and reads the body; the head of the answer is read and checked by
the same reader as a handshake's. Each request has a connection of its own, so there is nothing to
share between threads, to keep alive, or to close after a fork. No redirect is followed. What a call
means, and whether it is made again, is `_api`'s.
"""

from __future__ import annotations

import email.utils
import http.client
import io
import socket
import ssl
from typing import Final

import attrs

from . import _handshake
from ._deadline import Clock, Deadline
from ._net import Waker, tls_error
from ._transport import dial
from ._value import Value
from .config import Settings
from .errors import (
    ChatTimeoutError,
    ConnectionLostError,
    FluxbaseChatError,
    HandshakeError,
    NotConnectedError,
    RemoteProtocolError,
)

__all__ = ["Answer", "exchange"]

_CHUNK: Final = 64 * 1024
# Of an error's body so much is read, and for so many seconds: it only explains the status.
_ERROR_BYTES: Final = 8 * 1024
_ERROR_SECONDS: Final = 1.0
# Interim answers (100, 103) that may come before the final one; nobody asked for any.
_MAX_INTERIM: Final = 8


@attrs.frozen(eq=False, repr=False)
class Answer(Value):
    """What the server answered."""

    status: int
    body: bytes = attrs.field(repr=False)
    """All of it when the status is 200 to 299, else the start."""
    retry_after: str | None
    date: float | None
    """The server's clock, in whole seconds since the epoch."""
    asked_at: float
    """Before the request was written, by our clock."""
    answered_at: float
    """Behind the head of the answer."""


class _Guard(io.RawIOBase):
    """What http.client takes for its socket, and for the file in which the answer stands."""

    def __init__(self, sock: socket.socket, deadline: Deadline, waker: Waker) -> None:
        self._sock = sock
        self._waker = waker
        self._head: bytes | None = None
        self.deadline = deadline
        self.sent: bool | None = False
        """Whether the request was written; `None` while it is."""

    def sendall(self, data: bytes) -> None:
        """Write all of it."""
        self.sent = None
        _handshake.send_all(self._sock, data, self.deadline, self._waker)

    def makefile(self, _mode: str) -> io.BufferedReader:
        """Give the file to read the answer from."""
        return io.BufferedReader(self)

    def close(self) -> None:
        """Leave the socket to its owner: http.client closes its own before the body is read."""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Read the head when it was checked, then what follows."""
        if self._head is None:
            self._head = self._read_head()
        data = self._head[: len(buffer)]
        self._head = self._head[len(buffer) :]
        if not data:
            data = _handshake.recv(self._sock, len(buffer), self.deadline, self._waker)
        buffer[: len(data)] = data
        return len(data)

    def _read_head(self) -> bytes:
        begun = b""
        for _ in range(_MAX_INTERIM):
            head = _handshake.read_head(self._sock, self.deadline, self._waker, begun)
            if head.status >= 200 or head.status == 101:  # noqa: PLR2004 - the final ones
                return "\r\n".join([*head.lines, "", ""]).encode() + head.rest
            begun = head.rest
        raise HandshakeError("the answer does not come to an end")


def exchange(
    settings: Settings,
    token: str | None,
    method: str,
    target: str,
    body: bytes | None,
    deadline: Deadline,
    waker: Waker,
    clock: Clock,
) -> Answer:
    """Make one request on a connection of its own and return the answer, whatever its status.

    Raises `ConnectError` and its kinds (nothing was sent), `ConnectionLostError`,
    `ChatTimeoutError`, `RemoteProtocolError`, or `NotConnectedError` when the waker was stopped.
    """
    sock = dial(settings, deadline.sooner(settings.timeouts.connect), waker)
    guard = _Guard(sock, deadline, waker)
    try:
        connection = http.client.HTTPConnection(settings.endpoint.host)
        connection.sock = guard
        return _talk(connection, guard, settings, token, method, target, body, clock)
    except HandshakeError as error:
        # A head that has ended may come whole the next time; one that is none will not.
        kind = ConnectionLostError if error.retryable else RemoteProtocolError
        raise kind(error.args[0], sent=True) from None
    except FluxbaseChatError:
        raise
    except OSError as error:
        raise _broken(settings, guard, error) from error
    except http.client.IncompleteRead:
        raise _torn(sock) from None
    except (http.client.HTTPException, ValueError) as error:
        # Their texts quote what came.
        reason = f"the answer is no valid HTTP ({type(error).__name__})"
        raise RemoteProtocolError(reason, sent=True) from None
    finally:
        sock.close()


def _talk(
    connection: http.client.HTTPConnection,
    guard: _Guard,
    settings: Settings,
    token: str | None,
    method: str,
    target: str,
    body: bytes | None,
    clock: Clock,
) -> Answer:
    connection.putrequest(method, target, skip_host=True)
    for line in _headers(settings, token, body):
        connection.putheader(*line.split(": ", 1))
    asked_at = clock()
    connection.endheaders(body)
    guard.sent = True
    response = connection.getresponse()
    with response:
        answered_at = clock()
        return Answer(
            response.status,
            _body(response, guard, settings.limits.message_bytes),
            response.headers.get("Retry-After"),
            _seconds(response.headers.get("Date")),
            asked_at,
            answered_at,
        )


def _headers(settings: Settings, token: str | None, body: bytes | None) -> list[str]:
    lines = [
        f"Host: {settings.endpoint.authority}",
        "Connection: close",
        "Accept: application/json",
        *_handshake.request_headers(settings, token),
    ]
    if body is not None:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return lines


def _body(response: http.client.HTTPResponse, guard: _Guard, limit: int) -> bytes:
    good = 200 <= response.status < 300  # noqa: PLR2004 - HTTP's numbers are their own names
    parts: list[bytes] = []
    size = 0
    try:
        if not good:
            limit = _ERROR_BYTES
            guard.deadline = guard.deadline.sooner(_ERROR_SECONDS)
        while size <= limit and (part := response.read(min(_CHUNK, limit + 1 - size))):
            parts.append(part)
            size += len(part)
    except (OSError, ValueError, http.client.HTTPException) as error:
        if good or isinstance(error, NotConnectedError):
            raise
    if good and size > limit:
        raise RemoteProtocolError(f"the answer is larger than {limit:,} bytes", sent=True)
    if good and response.length:
        raise ConnectionLostError("the connection ended in the middle of the answer", sent=True)
    return b"".join(parts)[:limit]


def _seconds(date: str | None) -> float | None:
    """Return the seconds since the epoch of a `Date` field."""
    try:
        return email.utils.parsedate_to_datetime(date or "").timestamp()
    except (ValueError, OverflowError):
        return None


def _torn(sock: socket.socket) -> FluxbaseChatError:
    """Return the exception for a body that is not whole: http.client says so of bad chunks too."""
    try:
        ended = not sock.recv(1)
    except OSError:
        ended = False
    if ended:
        return ConnectionLostError("the connection ended in the middle of the answer", sent=True)
    return RemoteProtocolError("the answer has bad chunks", sent=True)


def _broken(settings: Settings, guard: _Guard, error: OSError) -> FluxbaseChatError:
    """Return the exception for a connection that broke; a part of the request may be written."""
    if isinstance(error, TimeoutError) and error.errno is None:
        return ChatTimeoutError("the server did not answer in time", phase="wait", sent=guard.sent)
    if isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError):
        # In TLS 1.3 a server's alert comes when the client has done its part.
        return tls_error(settings.endpoint, error)
    why = error.strerror or type(error).__name__
    return ConnectionLostError(f"the connection broke: {why}", sent=guard.sent)
