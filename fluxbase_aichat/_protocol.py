"""The rules of one connection as a state machine; no I/O, no clock, no lock.

Everything that decides whose answer a message is stands here. The server reads the next frame
of a connection only when it has finished the one before, and answers in request order
(PROTOCOL 4.1), so a queue of unanswered requests says it all (`ChatProtocol.RULES`):

    what arrives                 whose it is                                        ends it
    chat_started                 the oldest unanswered request, if it is a start    yes
    done, cancelled              the running turn of the conversation it names      yes
    error that names a           that conversation's running turn, else the start   yes
      conversation                 that asked for it
    error that names none        the oldest unanswered request                      yes
    anything else                the running turn of the conversation it names      no
    what cannot be read          the oldest unanswered request; the connection      yes
                                   is over

What is nobody's is handed on without a request. A request is silenced when nobody waits for it
any more: its answer still moves the state, and is handed on only to say that it has ended.

    open ──cancel()──> cancelling ──receive_end()──> over
      └───────────────receive_end(), Malformed──────────┘
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import attrs

from . import errors, events
from ._value import Value
from ._wire import Item, Malformed, encode_cancel, encode_message, encode_start
from .errors import FluxbaseChatError, IdentityConflictError, LocalProtocolError

__all__ = ["ChatProtocol", "Delivery", "Message", "Request", "Rule", "Start", "error_of"]


@attrs.define(eq=False, kw_only=True)
class Start:
    """A `start_chat`; with a `conversation_id` it asks to resume that conversation."""

    chatbot: str
    namespace: str = "default"
    conversation_id: str | None = None
    impersonate_user_id: str | None = None
    limit: float | None = None
    """Seconds from its writing to its answer; kept here for whoever has the clock."""
    owner: Any = attrs.field(default=None, repr=False)
    """Whose request it is; handed back with everything that answers it."""
    silenced: bool = False
    """Nobody waits for the answer any more."""
    stuck: bool = False
    """The peer does not read: how much of it went out is not known."""


@attrs.define(eq=False, kw_only=True)
class Message:
    """A `message`: one turn."""

    conversation_id: str
    content: str = attrs.field(repr=False)
    page_context: Any = attrs.field(default=None, repr=False)
    idle: float | None = None
    """Seconds of silence that end it; kept here for whoever has the clock."""
    limit: float | None = None
    """Seconds from its writing to its end."""
    owner: Any = attrs.field(default=None, repr=False)
    silenced: bool = False
    stuck: bool = False


Request = Start | Message


@attrs.frozen(eq=False, repr=False)
class Delivery(Value):
    """One thing that arrived, and whose it is."""

    item: Item
    request: Request | None
    """`None`: nobody's."""
    final: bool
    """Whether it ends the request."""


@attrs.frozen(eq=False, repr=False)
class Rule(Value):
    """Whose answer a kind of message is, whether it ends the request, and the connection."""

    whose: Callable[[Any, Any], Request | None]
    ends: bool = False
    breaks: bool = False


class ChatProtocol:
    """One connection. Not thread-safe: its owner holds a lock round every call.

    `depth` is how many requests may be unanswered at once. It is 1 (promise 1: what is written
    cannot be taken back, so nothing is written ahead); recordings are replayed with more.
    """

    def __init__(self, *, depth: int = 1) -> None:
        self._depth = depth
        self._unanswered: deque[Request] = deque()
        self._cancelling = False
        self._over = False
        self._started: set[str] = set()
        self._chatbot: tuple[str, str] | None = None
        # A tuple, because None stands for "nobody is impersonated", which is an identity too.
        self._identity: tuple[str | None] | None = None

    @property
    def unanswered(self) -> Request | None:
        """The oldest unanswered request."""
        return self._unanswered[0] if self._unanswered else None

    @property
    def ready(self) -> bool:
        """Whether a request can be sent now."""
        return not self._over and not self._cancelling and len(self._unanswered) < self._depth

    @property
    def cancelling(self) -> bool:
        """Whether a `cancel` was written: the server will end the connection (PROTOCOL 4.6)."""
        return self._cancelling

    @property
    def over(self) -> bool:
        """Whether the stream has ended, or what came on it cannot be read."""
        return self._over

    def needs_start(self, conversation_id: str, chatbot: str, namespace: str) -> bool:
        """Whether the conversation must be started (again) before its next message.

        A new connection has no conversations (PROTOCOL 4.7), and the chatbot that was started
        last on a connection answers every message on it (PROTOCOL 4.4).
        """
        return conversation_id not in self._started or self._chatbot != (chatbot, namespace)

    def forget(self) -> None:
        """Have every conversation started again before its next message."""
        self._started.clear()

    def send(self, request: Request) -> bytes:
        """Register a request and return its payload. What is not allowed changes nothing.

        Raises `LocalProtocolError` or `IdentityConflictError`.
        """
        if not self.ready:
            raise LocalProtocolError(
                "the connection is closing"
                if self._over or self._cancelling
                else "one request at a time: the one before is unanswered"
            )
        if isinstance(request, Start):
            payload = self._encode_start(request)
        else:
            if request.conversation_id not in self._started:
                raise LocalProtocolError(
                    "the conversation was not started on this connection; start it first"
                )
            payload = encode_message(request.conversation_id, request.content, request.page_context)
        self._unanswered.append(request)
        return payload

    def _encode_start(self, request: Start) -> bytes:
        identity = (request.impersonate_user_id,)
        if self._identity is not None and self._identity != identity:
            raise IdentityConflictError(
                "this connection already acts as another user; use a client of its own for each"
            )
        # It sticks to the connection, and the server refuses to hear it twice (PROTOCOL 4.5).
        said = request.impersonate_user_id if self._identity is None else None
        return encode_start(request.chatbot, request.namespace, request.conversation_id, said)

    def cancel(self, request: Message) -> bytes | None:
        """Silence a turn and return the payload of its `cancel`; `None` when there is none.

        After it the server answers nothing more on this connection, so nothing can be sent.
        """
        request.silenced = True
        if request not in self._unanswered or self._cancelling or self._over:
            return None
        self._cancelling = True
        return encode_cancel(request.conversation_id)

    def receive(self, items: Iterable[Item]) -> list[Delivery]:
        """Take what arrived; return it with its requests, in the order of the wire."""
        deliveries = []
        for item in items:
            request, ends = self._whose(item)
            final = ends and request is not None
            if request is not None and final:
                self._unanswered.remove(request)
                self._learn(request, item)
            elif request is None and self._cancelling and isinstance(item, events.Cancelled):
                continue  # the answer to our cancel, of a turn that has ended for everybody
            if request is None or final or not request.silenced:
                deliveries.append(Delivery(item, request, final))
        return deliveries

    def receive_end(self) -> list[Request]:
        """Take the end of the stream; return the requests that will have no answer."""
        self._over = True
        lost = [request for request in self._unanswered if not request.silenced]
        self._unanswered.clear()
        return lost

    def _whose(self, item: Item) -> tuple[Request | None, bool]:
        rule = self.RULES.get(type(item), self.OTHERS)
        if rule.breaks:
            self._over = True
        return rule.whose(self, item), rule.ends

    def _oldest(self, _: Item) -> Request | None:
        return self.unanswered

    def _oldest_start(self, _: Item) -> Request | None:
        oldest = self.unanswered
        return oldest if isinstance(oldest, Start) else None

    def _named(self, item: Any) -> Request | None:
        return self._turn(item.conversation_id)

    def _failed(self, item: Any) -> Request | None:
        if not item.conversation_id:
            return self.unanswered
        return self._turn(item.conversation_id) or self._resuming(item.conversation_id)

    # The table above. docs/make_protocol_svg.py draws the machine from it.
    RULES: ClassVar[dict[type, Rule]] = {
        events.ChatStarted: Rule(_oldest_start, ends=True),
        events.Done: Rule(_named, ends=True),
        events.Cancelled: Rule(_named, ends=True),
        events.ErrorEvent: Rule(_failed, ends=True),
        Malformed: Rule(_oldest, ends=True, breaks=True),
    }
    OTHERS: ClassVar[Rule] = Rule(_named)

    def _turn(self, conversation_id: str) -> Message | None:
        for request in self._unanswered:
            if isinstance(request, Message) and request.conversation_id == conversation_id:
                return request
        return None

    def _resuming(self, conversation_id: str) -> Start | None:
        for request in self._unanswered:
            if isinstance(request, Start) and request.conversation_id == conversation_id:
                return request
        return None

    def _learn(self, request: Request, item: Item) -> None:
        """What an answered request says about the connection, also when nobody waited for it."""
        if isinstance(request, Start) and isinstance(item, events.ChatStarted):
            self._started.add(item.conversation_id)
            self._chatbot = (request.chatbot, request.namespace)
            self._identity = (request.impersonate_user_id,)
        elif isinstance(item, events.ErrorEvent) and item.code == "NO_SESSION":
            self._started.discard(request.conversation_id or "")


# The class for each code of the server; every other code is a plain ServerError.
_ERRORS: dict[str, type[FluxbaseChatError]] = {
    "AUTH_REQUIRED": errors.AuthenticationError,
    "CHATBOT_NOT_FOUND": errors.ChatbotNotFoundError,
    "DAILY_LIMIT": errors.QuotaError,
    "FORBIDDEN": errors.PermissionDeniedError,
    "NO_SESSION": errors.NoSessionError,
    "PROMPT_ERROR": errors.ProviderError,
    "PROVIDER_ERROR": errors.ProviderError,
    "RATE_LIMITED": errors.RateLimitError,
    "STREAM_ERROR": errors.ProviderError,
    "TOKEN_BUDGET": errors.QuotaError,
    "TURN_LIMIT": errors.TurnLimitError,
}

_HINTS: dict[str, str] = {
    "AUTH_REQUIRED": (
        "this chatbot needs a signed-in user: pass token=, or set FLUXBASE_TOKEN for from_env()"
    ),
    "CHATBOT_NOT_FOUND": "check the chatbot's name and namespace",
    "TURN_LIMIT": "start a new conversation",
    "USER_NOT_FOUND": "check impersonate_user_id",
    "USER_ERROR": "check impersonate_user_id: it must be a user's UUID",
}


def error_of(item: events.ErrorEvent | Malformed) -> FluxbaseChatError:
    """Return the exception for what a request was answered with."""
    if isinstance(item, Malformed):
        return errors.RemoteProtocolError(
            f"the server broke the protocol: {item.reason}", sent=True
        )
    kind = _ERRORS.get(item.code, errors.ServerError)
    message = f"{item.error} ({item.code})" if item.code else item.error
    error = kind(message, sent=True, hint=_HINTS.get(item.code, ""))
    if item.code:
        error.code = item.code
    if isinstance(error, errors.ServerError):
        error.conversation_id = item.conversation_id
    return error
