"""The REST calls: what each asks and reads, made again where that is safe, told as errors of ours.

They keep nothing, so they may be made from any thread. `rest` gives them to the user; `turn` and
`_recover` read conversations with them.
"""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any, Final, Generic, Literal, TypeVar
from urllib.parse import quote, urlencode

import attrs

from . import stored
from ._deadline import Clock, Deadline
from ._handshake import refusal, token_of
from ._net import Waker, pause
from ._reconnect import Backoff
from ._value import Value
from ._wire import read_object, write_object
from .config import Endpoint, Settings, parse_endpoint
from .errors import (
    ApiError,
    AuthenticationError,
    ConfigurationError,
    ConnectError,
    ConnectionLostError,
    FluxbaseChatError,
    NotFoundError,
    RateLimitError,
)

__all__ = ["Call", "Said", "chat_of", "endpoint_of", "perform", "read_conversation"]

T = TypeVar("T")

_CHAT: Final = "/ai/ws"
_API: Final = "/api/v1"
_CONVERSATION: Final = "/ai/conversations/{}"
# A server that is restarted is back in a second or two.
_RETRIES: Final = 2
_RETRY_DELAY: Final = 0.5


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Call(Value, Generic[T]):
    """A REST call."""

    name: str
    """What the user calls it, for error messages. Ids are secrets, so paths are in none."""
    method: Literal["GET", "POST", "PATCH", "DELETE"]
    path: str = attrs.field(repr=False)
    """Behind `/api/v1`; `{}` stands for the id."""
    id: str | None = attrs.field(default=None, repr=False)
    """The id of a conversation or a chatbot, or a chatbot's name."""
    read: Callable[[Any], T]
    """Makes the value of the answer's JSON object, see `stored.read`."""
    query: Mapping[str, object] = attrs.field(factory=dict)
    """What is `None` is left out."""
    body: Mapping[str, Any] | None = attrs.field(default=None, repr=False)
    again: bool = False
    """Whether it may be made again after a failure: it changes nothing, or nothing more."""
    secret: str | None = attrs.field(default=None, repr=False)
    """What it shows instead of a token, to be taken out of what the server says."""


@attrs.frozen(eq=False, repr=False)
class Said(Value, Generic[T]):
    """The value of an answer, and when it was given."""

    value: T
    date: float | None
    """By the server's clock, in whole seconds since the epoch; `None` when it does not say."""
    asked_at: float
    answered_at: float
    """By our clock: it was given between the two."""


def read_conversation(conversation_id: str) -> Call[stored.StoredConversation]:
    """Return the call that reads a conversation with its messages."""
    return Call(
        name="get_conversation",
        method="GET",
        path=_CONVERSATION,
        id=conversation_id,
        read=stored.read_conversation,
        again=True,
    )


def _segment(text: str) -> str:
    """Return a name or an id as one segment of a path, percent-encoded.

    Dots would be a way out of it, which servers take even when they are percent-encoded.
    """
    if not {".", ".."}.isdisjoint(text.split("/")):
        raise ConfigurationError("a name or an id must not be a path")
    return quote(text, safe="")


def _is_uuid(text: str | None) -> bool:
    try:
        return text is None or bool(uuid.UUID(text))
    except ValueError:
        return False


def endpoint_of(url: object) -> Endpoint:
    """Read the `url` of a server, or of its chat or its API, and return where its API is.

    Raises `ConfigurationError`.
    """
    endpoint = parse_endpoint(url, "url")
    before = endpoint.path.rstrip("/")
    for known in (_CHAT, f"{_API}/ai", _API):
        before = before.removesuffix(known)
    return attrs.evolve(endpoint, scheme="http", path=before + _API)


def chat_of(endpoint: Endpoint) -> Endpoint:
    """Return where the chat is that belongs to an API."""
    return attrs.evolve(endpoint, scheme="ws", path=_before(endpoint) + _CHAT)


def _before(endpoint: Endpoint) -> str:
    """Return what stands before the chat or the API in the path; unknown where a proxy moved it."""
    path = endpoint.path.rstrip("/")
    known = next((known for known in (_CHAT, _API) if path.endswith(known)), None)
    return "" if known is None else path.removesuffix(known)


def perform(
    settings: Settings,
    call: Call[T],
    deadline: Deadline,
    waker: Waker,
    clock: Clock = time.monotonic,
) -> Said[T]:
    """Make a call and return the value of its answer.

    Where that is safe it is made up to three times, after a connection that failed or a status that
    may pass.

    Raises `ApiError` and its kinds for what the server answers, `AuthenticationError`,
    `PermissionDeniedError`, `RateLimitError`, `FeatureDisabledError`, `RemoteProtocolError` for
    what cannot be read, `ConnectError` and its kinds, `ConnectionLostError`, `ChatTimeoutError`.
    """
    backoff = Backoff(_RETRIES if call.again else 0, _RETRY_DELAY, random.random)
    perhaps_done = False
    while True:
        try:
            return _once(settings, call, deadline, waker, clock)
        except FluxbaseChatError as error:
            if call.method == "DELETE" and perhaps_done and isinstance(error, NotFoundError):
                return Said(call.read({}), None, clock(), clock())  # an attempt before this one did
            if error.sent is not False and not isinstance(error, RateLimitError):
                perhaps_done = True
            if isinstance(error, ConnectError):
                error.attempts = backoff.attempt + 1
            passing = error.retryable or isinstance(error, ConnectionLostError)
            delay = backoff.next(error) if passing else None
            left = deadline.remaining()
            if delay is None or (left is not None and left <= delay):
                raise
        pause(delay, clock, waker)


def _once(
    settings: Settings, call: Call[T], deadline: Deadline, waker: Waker, clock: Clock
) -> Said[T]:
    token = token_of(settings, deadline, waker)
    try:
        return _exchange(settings, call, token, deadline, waker, clock)
    except AuthenticationError:
        if token is None or not callable(settings.token):
            raise
    # It may have expired on its way here; a source of tokens gets a second chance.
    token = token_of(settings, deadline, waker, refused=token)
    return _exchange(settings, call, token, deadline, waker, clock)


def _exchange(
    settings: Settings,
    call: Call[T],
    token: str | None,
    deadline: Deadline,
    waker: Waker,
    clock: Clock,
) -> Said[T]:
    from . import _http  # noqa: PLC0415 - few make REST calls, and http.client is large

    body = None if call.body is None else write_object(dict(call.body))
    target = _target(settings.endpoint, call, token if settings.token_in_query else None)
    answer = _http.exchange(settings, token, call.method, target, body, deadline, waker, clock)
    if not 200 <= answer.status < 300:  # noqa: PLR2004 - HTTP's numbers are their own names
        text = answer.body.decode("utf-8", "replace")
        shown = call.secret or token
        error = refusal(answer.status, answer.retry_after, text, settings, shown, call.name)
        # Of conversations only: a chatbot's name is no UUID, and its 500 is a server that failed.
        odd = call.path.startswith(_CONVERSATION) and not _is_uuid(call.id)
        if isinstance(error, ApiError) and error.status == 500 and odd:  # noqa: PLR2004
            hint = "its id is no UUID; the server answers that as if it had failed"
            error = NotFoundError(*error.args, status=500, body=error.body, sent=True, hint=hint)
        raise error
    values = read_object(answer.body, exact_numbers=settings.exact_numbers)
    value = stored.read(call.read, values)
    return Said(value, answer.date, answer.asked_at, answer.answered_at)


def _target(endpoint: Endpoint, call: Call[Any], token: str | None) -> str:
    """Return the request's path and query: beside the chat's, with what else its URL has."""
    path = call.path if call.id is None else call.path.format(_segment(call.id))
    own = urlencode({name: value for name, value in call.query.items() if value is not None})
    query = "&".join(part for part in (own, endpoint.query) if part)
    return attrs.evolve(endpoint, path=_before(endpoint) + _API + path, query=query).target(token)
