"""Who is asking, and the HTTP head of the answer, read under one deadline and bounded.

For the opening handshake and for REST calls. In the handshake websocket-client writes the request
and checks the answer (`_transport`); this module stands between it and the socket, because on its
own it would read one byte at a time without any limit, follow redirects with all credentials, and
share one cookie jar in the whole process.
"""

from __future__ import annotations

import base64
import json
import math
import re
import selectors
import socket
import ssl
import time
from collections.abc import Callable
from urllib.parse import quote, unquote

import attrs

from . import errors
from ._deadline import Deadline
from ._net import Waker, call, wait_for
from ._value import Value
from .config import RenewableToken, Settings, check_secret
from .errors import (
    AuthenticationError,
    ConfigurationError,
    ConnectTimeoutError,
    FluxbaseChatError,
    HandshakeError,
)

__all__ = [
    "Head",
    "Redactor",
    "read_body",
    "read_head",
    "recv",
    "refusal",
    "request_headers",
    "send_all",
    "token_of",
]

# Python's http.client takes 64 KiB a line and 100 lines, the websockets library 8 KiB and 128.
_HEAD_BYTES = 64 * 1024
_HEAD_LINES = 128
_BODY_BYTES = 8 * 1024
# An error's body is only read to explain it: no one waits long for that.
_BODY_SECONDS = 1.0

_STATUS_LINE = re.compile(r"HTTP/1\.[01] ([1-5][0-9]{2})(?: .*)?")
# websocket-client ends a line at a bare line feed, where we see one line: what stands behind it
# would get past our checks (RFC 9112, 2.2 lets a recipient refuse it).
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")


@attrs.frozen(eq=False, repr=False)
class Head(Value):
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


def token_of(
    settings: Settings, deadline: Deadline, waker: Waker, refused: str | None = None
) -> str | None:
    """Return the token to show, from its source if it has one; `refused` was no good.

    Raises `AuthenticationError`, `ConnectTimeoutError` at the deadline, and what the source raises
    of our own errors.
    """
    source = settings.token
    if source is None or isinstance(source, str):
        return source
    if refused is not None and isinstance(source, RenewableToken):
        source.refused(refused)
    try:
        value = call(lambda: _asked(source), deadline, waker, "token")
        return check_secret("the value of token()", value)
    except ConfigurationError as error:
        raise AuthenticationError(str(error), sent=False) from None
    except FluxbaseChatError:
        raise
    except Exception as error:
        if isinstance(error, TimeoutError) and deadline.expired:
            raise ConnectTimeoutError("no connection in time: waiting for token()") from None
        raise AuthenticationError(f"token() raised {type(error).__name__}", sent=False) from error


def _asked(source: Callable[[], str]) -> str:
    """Return what a source gives: on its thread, where Ctrl-C is the source's own."""
    try:
        return source()
    except BaseException as error:
        if isinstance(error, Exception):
            raise
        # sys.exit() too: it ends no thread of ours, and no call.
        raise AuthenticationError(f"token() raised {type(error).__name__}", sent=False) from error


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
            event = selectors.EVENT_READ
        except ssl.SSLWantWriteError:
            event = selectors.EVENT_WRITE
        # Behind the handlers: what ends the wait has nothing to do with what they caught.
        wait_for(sock, event, deadline, waker)


def send_all(sock: socket.socket, data: bytes, deadline: Deadline, waker: Waker) -> None:
    """Write all of it."""
    view = memoryview(data)
    while view:
        try:
            view = view[sock.send(view) :]
        except (BlockingIOError, ssl.SSLWantWriteError):
            event = selectors.EVENT_WRITE
        except ssl.SSLWantReadError:
            event = selectors.EVENT_READ
        else:
            continue
        wait_for(sock, event, deadline, waker)


def read_head(sock: socket.socket, deadline: Deadline, waker: Waker, begun: bytes = b"") -> Head:
    """Read an answer's head, of which `begun` was read before.

    Raises `HandshakeError` for what is none.
    """
    data = begun
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
                else "the connection was closed without an answer",
                retryable=True,  # as a server does that is being restarted
            )
        data += more
    try:
        lines = data[:end].decode("utf-8").split("\r\n")
    except UnicodeDecodeError:
        raise HandshakeError("the answer's head is not text") from None
    if any(map(_CONTROL.search, lines)):
        raise HandshakeError("the answer's head is not text")
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
        import email.utils  # noqa: PLC0415 - 4 ms of every import, and only a refusal needs it

        try:
            moment = email.utils.parsedate_to_datetime(value or "").timestamp()
        except (ValueError, TypeError, OverflowError):
            return None
        return max(0.0, moment - time.time())
    return seconds if math.isfinite(seconds) and seconds >= 0 else None


_HINTS = {
    404: "is it a Fluxbase server? Its chat is at /ai/ws, unless a proxy moved it: check the URL",
    426: "a proxy dropped the Upgrade header on the way",
}
_RETRYABLE = frozenset({500, 502, 503, 504})


def refusal(
    status: int,
    retry_after: str | None,
    body: str,
    settings: Settings,
    token: str | None,
    name: str = "",
) -> FluxbaseChatError:
    """Return the exception for an upgrade that was answered with another status than 101.

    With a `name`, for the REST call of that name that was answered with another one than 200.
    """
    redact = Redactor(settings, token)
    try:
        values = json.loads(body)
    except (ValueError, RecursionError):
        values = None
    values = values if isinstance(values, dict) else {}
    said, code = (
        redact(value)[:200] if isinstance(value := values.get(field), str) else ""
        for field in ("error", "code")
    )
    message = f"{name} failed: {status}" if name else f"the server refused the connection: {status}"
    message += f" {said}" if said else ""
    after = _retry_after(retry_after, values)
    sent = bool(name)
    if status == 401:  # noqa: PLR2004 - HTTP's numbers are their own names
        return AuthenticationError(message, sent=sent, hint=_doubt(settings, token))
    if status == 403:  # noqa: PLR2004
        return errors.PermissionDeniedError(message, sent=sent)
    if status == 429:  # noqa: PLR2004
        return errors.RateLimitError(message, sent=sent, retry_after=after, hint=come_back(after))
    details = {"status": status, "body": redact(body), "retry_after": after, "sent": sent}
    if code == "FEATURE_DISABLED":
        return errors.FeatureDisabledError(
            message, **details, hint="AI chat is switched off on this server"
        )
    hint = "" if name else _HINTS.get(status, "")
    if 300 <= status < 400:  # noqa: PLR2004
        hint = "redirects are not followed: they would carry the credentials along"
    details |= {"retryable": status in _RETRYABLE, "hint": hint}
    if not name:
        return HandshakeError(message, **details)
    kind = errors.NotFoundError if status == 404 else errors.ApiError  # noqa: PLR2004
    return kind(message, **details, code=code)


def come_back(seconds: float | None) -> str:
    """Say when to try again, as the hint of an error; `""` where the server has not said it."""
    if not seconds:
        return ""
    whole = math.ceil(seconds)
    return f"come back in {whole} s" if whole < 120 else f"come back in {-(-whole // 60)} minutes"  # noqa: PLR2004


def _doubt(settings: Settings, token: str | None) -> str:
    """Say what may be wrong with credentials that were refused."""
    if settings.service_key is not None:
        return "is the service key right, and of this server?"
    if token is None:
        return (
            "this server wants to know who is asking: pass token=, or set FLUXBASE_TOKEN for "
            "from_env()"
        )
    expired = _expired_at(token)
    if expired is not None:
        return f"the token expired at {time.strftime('%Y-%m-%d %H:%M:%S', expired)} UTC"
    return "is the token right, of this server, and not expired?"


def _expired_at(token: str) -> time.struct_time | None:
    """Return when a JWT has expired, as it says itself; `None` if it has not, or is none.

    Nothing is verified: this only explains what the server has decided.
    """
    try:
        claims = token.split(".")[1]
        moment = json.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))["exp"]
        return time.gmtime(moment) if moment <= time.time() else None
    except (ArithmeticError, LookupError, OSError, RecursionError, TypeError, ValueError):
        return None


# A start of a token or key that is long enough to be recognized as one.
_PREFIX = 8
# Shorter header values and parameters (a version, a flag) are no secrets, and replacing them
# would blot out half of what the server says.
_SHORTEST = 4


class Redactor:
    """Takes what was said of the caller in the head out of texts in which a server echoes it.

    Of a token or service key a part that begins like it is taken out too: whoever shortened it.
    """

    def __init__(self, settings: Settings, token: str | None) -> None:
        found: dict[str, int] = {}
        for value in _shown(settings):
            if len(value) >= _SHORTEST:
                found |= dict.fromkeys(_spellings(value), len(value))
        for secret in filter(None, (settings.service_key, token)):
            found |= dict.fromkeys(_spellings(secret), _PREFIX)
        # The longest first: one may be a part of another.
        self._secrets = sorted(found.items(), key=lambda item: len(item[0]), reverse=True)

    def __repr__(self) -> str:
        return f"<Redactor of {len(self._secrets)}>"

    def __call__(self, text: str) -> str:
        """Return the text without the secrets."""
        for secret, prefix in self._secrets:
            start = secret[:prefix]
            parts, done = [], 0
            while (at := text.find(start, done)) >= 0:
                parts += [text[done:at], "***"]
                same = len(start)
                while text[at + same : at + same + 1] == secret[same : same + 1] != "":
                    same += 1
                done = at + same
            text = "".join([*parts, text[done:]])
        return text


def _shown(settings: Settings) -> list[str]:
    """Return what the caller's own headers and the URL's query show that may be secret."""
    values = [value for _, value in settings.headers]
    for name, value in settings.headers:
        if name.lower() in {"authorization", "proxy-authorization"}:
            values.append(value.partition(" ")[2].strip())
        elif name.lower() == "cookie":
            values += [pair.partition("=")[2].strip() for pair in value.split(";")]
    for pair in settings.endpoint.query.split("&"):
        values.append(pair.partition("=")[2] or pair)
        values.append(unquote(values[-1]))
    return values


def _spellings(secret: str) -> set[str]:
    """Return how a secret looks as it is, in a URL and in JSON (Go escapes three more signs)."""
    escaped = json.dumps(secret)[1:-1]
    go = escaped
    for sign in "<>&":
        go = go.replace(sign, f"\\u{ord(sign):04x}")
    return {secret, quote(secret, safe=""), escaped, go}
