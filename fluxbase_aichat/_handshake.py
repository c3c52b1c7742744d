"""The HTTP head of an opening handshake, read under one deadline and bounded.

websocket-client writes the request and checks the answer (`_transport`); this module stands
between it and the socket, because on its own it would read one byte at a time without any
limit, follow redirects with all credentials, and share one cookie jar in the whole process.
"""

from __future__ import annotations

import email.utils
import json
import math
import re
import selectors
import socket
import ssl
import time

import attrs

from . import errors
from ._deadline import Deadline
from ._net import Waker, wait_for
from .config import Settings
from .errors import FluxbaseChatError, HandshakeError

__all__ = [
    "Head",
    "read_body",
    "read_head",
    "recv",
    "redacted",
    "refusal",
    "request_headers",
    "send_all",
]

# Python's http.client takes 64 KiB a line and 100 lines, the websockets library 8 KiB and 128.
_HEAD_BYTES = 64 * 1024
_HEAD_LINES = 128
_BODY_BYTES = 8 * 1024
# An error's body is only read to explain it: no one waits long for that.
_BODY_SECONDS = 1.0

_STATUS_LINE = re.compile(r"HTTP/1\.[01] ([1-5][0-9]{2})(?: .*)?")


@attrs.frozen
class Head:
    """The head of an answer."""

    status: int
    lines: list[str]
    rest: bytes
    """What came behind the head in the same read."""

    def get(self, name: str) -> str | None:
        """Return the value of the first field of that name."""
        for line in self.lines[1:]:
            field, _, value = line.partition(":")
            if field.strip().lower() == name:
                return value.strip()
        return None


def request_headers(settings: Settings, token: str | None) -> list[str]:
    """Return the header lines that say who is asking, and the caller's own."""
    lines = [f"{name}: {value}" for name, value in settings.headers]
    if token is not None and not settings.token_in_query:
        lines.append(f"Authorization: Bearer {token}")
    if settings.service_key is not None:
        lines.append(f"X-Service-Key: {settings.service_key}")
    return lines


def recv(sock: socket.socket, size: int, deadline: Deadline, waker: Waker) -> bytes:
    """Wait for bytes; `b""` is the end of the stream."""
    while True:
        try:
            return sock.recv(size)
        except (BlockingIOError, ssl.SSLWantReadError):
            wait_for(sock, selectors.EVENT_READ, deadline, waker)
        except ssl.SSLWantWriteError:
            wait_for(sock, selectors.EVENT_WRITE, deadline, waker)


def send_all(sock: socket.socket, data: bytes, deadline: Deadline, waker: Waker) -> None:
    """Write all of it."""
    view = memoryview(data)
    while view:
        try:
            view = view[sock.send(view) :]
        except (BlockingIOError, ssl.SSLWantWriteError):
            wait_for(sock, selectors.EVENT_WRITE, deadline, waker)
        except ssl.SSLWantReadError:
            wait_for(sock, selectors.EVENT_READ, deadline, waker)


def read_head(sock: socket.socket, deadline: Deadline, waker: Waker) -> Head:
    """Read an answer's head; raise `HandshakeError` for what is none."""
    data = b""
    while (end := data.find(b"\r\n\r\n")) < 0:
        if len(data) >= _HEAD_BYTES:
            raise HandshakeError("the answer's head is larger than 64 KiB")
        if not b"HTTP/1.".startswith(data[:7]):
            raise HandshakeError("what answers there does not speak HTTP")
        if data.count(b"\n") > _HEAD_LINES:
            raise HandshakeError(f"the answer's head has more than {_HEAD_LINES} lines")
        more = recv(sock, min(4096, _HEAD_BYTES - len(data)), deadline, waker)
        if not more:
            raise HandshakeError(
                "the connection was closed in the middle of the answer's head"
                if data
                else "the connection was closed without an answer"
            )
        data += more
    try:
        lines = data[:end].decode("utf-8").split("\r\n")
    except UnicodeDecodeError:
        raise HandshakeError("the answer's head is not text") from None
    if len(lines) > _HEAD_LINES:
        raise HandshakeError(f"the answer's head has more than {_HEAD_LINES} lines")
    match = _STATUS_LINE.fullmatch(lines[0])
    if match is None:
        raise HandshakeError("what answers there does not speak HTTP")
    return Head(int(match[1]), lines, data[end + 4 :])


def read_body(sock: socket.socket, head: Head, deadline: Deadline, waker: Waker) -> str:
    """Return the start of the body of an answer that is an error."""
    length = head.get("content-length") or ""
    wanted = min(int(length), _BODY_BYTES) if re.fullmatch("[0-9]{1,9}", length) else _BODY_BYTES
    data = head.rest
    deadline = deadline.sooner(_BODY_SECONDS)
    try:
        while len(data) < wanted:
            more = recv(sock, wanted - len(data), deadline, waker)
            if not more:
                break
            data += more
    except (TimeoutError, OSError) as error:
        if isinstance(error, errors.NotConnectedError):
            raise
    return data[:wanted].decode("utf-8", "replace")


def _retry_after(value: str | None, body: object) -> float | None:
    """Seconds to wait: from the header, a number or a date, else from the body's field."""
    if value is None and isinstance(body, dict):
        value = str(body.get("retry_after", ""))
    try:
        seconds = float(value or "")
    except ValueError:
        try:
            moment = email.utils.parsedate_to_datetime(value or "").timestamp()
        except (ValueError, TypeError, OverflowError):
            return None
        return max(0.0, moment - time.time())
    return seconds if math.isfinite(seconds) and seconds >= 0 else None


_HINTS = {
    404: "the chat is at /ai/ws unless a proxy moved it: check the URL's path",
    426: "a proxy dropped the Upgrade header on the way",
}
_RETRYABLE = frozenset({500, 502, 503, 504})


def refusal(
    status: int, retry_after: str | None, body: str, settings: Settings, token: str | None
) -> FluxbaseChatError:
    """Return the exception for an upgrade that was answered with another status than 101."""
    body = redacted(body, settings, token)
    try:
        values = json.loads(body)
    except (ValueError, RecursionError):
        values = None
    said = values.get("error") if isinstance(values, dict) else None
    said = said[:200] if isinstance(said, str) else ""
    message = f"the server refused the connection: {status}" + (f" {said}" if said else "")
    after = _retry_after(retry_after, values)
    if status == 401:  # noqa: PLR2004 - HTTP's numbers are their own names
        return errors.AuthenticationError(
            message, sent=False, hint="is the token right, of this server, and not expired?"
        )
    if status == 403:  # noqa: PLR2004
        return errors.PermissionDeniedError(message, sent=False)
    if status == 429:  # noqa: PLR2004
        return errors.RateLimitError(message, sent=False, retry_after=after)
    details = {"status": status, "body": body, "retry_after": after}
    if isinstance(values, dict) and values.get("code") == "FEATURE_DISABLED":
        return errors.FeatureDisabledError(
            message, **details, hint="AI chat is switched off on this server"
        )
    hint = _HINTS.get(status, "")
    if 300 <= status < 400:  # noqa: PLR2004
        hint = "redirects are not followed: they would carry the credentials along"
    return HandshakeError(message, **details, retryable=status in _RETRYABLE, hint=hint)


def redacted(text: str, settings: Settings, token: str | None) -> str:
    """Take the secrets out of what a server echoes."""
    secrets = [settings.service_key, token, *(value for _, value in settings.headers)]
    # The longest first: one may be a part of another.
    for secret in sorted(filter(None, secrets), key=len, reverse=True):
        text = text.replace(secret, "***")
    return text
