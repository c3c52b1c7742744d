"""Every exception of the library, as one tree. Nothing here does I/O or knows the wire.

FluxbaseChatError
├─ ConfigurationError (ValueError)          a parameter is wrong; nothing was done
├─ MissingExtraError (ImportError)          an optional dependency is not installed
├─ NotConnectedError (ConnectionError)      after disconnect(); also for what a fork left behind
├─ ConnectError (ConnectionError)           no connection could be opened
│  ├─ ConnectTimeoutError (TimeoutError)
│  ├─ TLSError
│  ├─ ProxyError
│  └─ HandshakeError                        the server refused the upgrade
│     └─ FeatureDisabledError               chat is switched off on the server
├─ AuthenticationError (PermissionError)    who are you: 401, AUTH_REQUIRED
├─ PermissionDeniedError (PermissionError)  you may not: 403, FORBIDDEN
├─ RateLimitError                           429, RATE_LIMITED
├─ QuotaError                               DAILY_LIMIT, TOKEN_BUDGET
├─ ConnectionLostError (ConnectionError)    the connection ended under a request
├─ ChatTimeoutError (TimeoutError)          a wait was longer than its limit
├─ ServerError                              the server answered with an error
│  ├─ ChatbotNotFoundError (LookupError)
│  ├─ NoSessionError
│  ├─ TurnLimitError
│  └─ ProviderError                         the model's provider failed
├─ ApiError                                 a REST call failed
│  └─ NotFoundError (LookupError)
├─ TurnCancelledError
├─ ConversationNotResumedError              a resume gave another conversation
├─ RecoveryError                            a lost answer could not be recovered
├─ IdentityConflictError (ValueError)       two identities for one client
├─ QueryFailedError                         a table was asked of a query that failed
├─ NoTableError (LookupError)               the answer has no query result
├─ PoolTimeoutError (TimeoutError)          all connections of a pool are busy
├─ LocalProtocolError (ValueError)          the caller's mistake
└─ RemoteProtocolError                      the server's mistake
"""

from __future__ import annotations

from typing import Any, Literal

__all__ = [
    "ApiError",
    "AuthenticationError",
    "ChatTimeoutError",
    "ChatbotNotFoundError",
    "ConfigurationError",
    "ConnectError",
    "ConnectTimeoutError",
    "ConnectionLostError",
    "ConversationNotResumedError",
    "FeatureDisabledError",
    "FluxbaseChatError",
    "HandshakeError",
    "IdentityConflictError",
    "LocalProtocolError",
    "MissingExtraError",
    "NoSessionError",
    "NoTableError",
    "NotConnectedError",
    "NotFoundError",
    "PermissionDeniedError",
    "PoolTimeoutError",
    "ProviderError",
    "ProxyError",
    "QueryFailedError",
    "QuotaError",
    "RateLimitError",
    "RecoveryError",
    "RemoteProtocolError",
    "ServerError",
    "TLSError",
    "TurnCancelledError",
    "TurnLimitError",
]

Phase = Literal["start", "idle", "turn", "wait", "recover"]


class FluxbaseChatError(Exception):
    """The base of every error of the library.

    It takes one message; the rest are attributes, so that it can be pickled and
    raised in another process.
    """

    sent: bool | None = None
    """Was the request written to the server: `True`, `False`, or `None` where that is unknown."""
    retryable: bool = False
    """Whether the same call may succeed later without anything else being changed."""
    retry_after: float | None = None
    """Seconds that the server asked to wait before trying again."""
    partial_text: str = ""
    """The part of the answer that had arrived."""
    hint: str = ""
    """What to do about it, in one sentence."""
    code: str = ""
    """The server's code, such as `TURN_LIMIT`, or `""`."""

    def __init__(self, message: str = "", /, **attributes: Any) -> None:
        super().__init__(message)
        # Only what differs from the class is kept: the repr and the pickle stay small.
        for name, value in attributes.items():
            if not hasattr(type(self), name):
                raise TypeError(f"{type(self).__name__} has no attribute {name!r}")
            setattr(self, name, value)

    def __str__(self) -> str:
        message = str(self.args[0]) if self.args else ""
        return f"{message} ({self.hint})" if self.hint else message


class ConfigurationError(FluxbaseChatError, ValueError):
    """A parameter is wrong; the message names it and says what would be right."""

    sent: bool | None = False


class MissingExtraError(FluxbaseChatError, ImportError):
    """An optional dependency is not installed; the message has the pip line."""

    sent: bool | None = False


class NotConnectedError(FluxbaseChatError, ConnectionError):
    """The client was disconnected, by `disconnect()` or by a fork."""


class ConnectError(FluxbaseChatError, ConnectionError):
    """No connection could be opened, so nothing was sent."""

    sent: bool | None = False
    retryable: bool = True
    attempts: int = 1
    """How many times it was tried."""


class ConnectTimeoutError(ConnectError, TimeoutError):
    """Name look-up, TCP, TLS and upgrade together took longer than allowed."""


class TLSError(ConnectError):
    """The TLS handshake failed: a bad certificate, or no TLS on that port."""

    retryable: bool = False


class ProxyError(ConnectError):
    """The proxy refused, or could not be used."""


class HandshakeError(ConnectError):
    """What answered does not speak this protocol, or refused the upgrade."""

    retryable: bool = False
    status: int | None = None
    """The HTTP status, or `None` when there was no readable answer."""
    body: str = ""
    """The start of the answer's body (at most 8 KiB)."""


class FeatureDisabledError(HandshakeError):
    """AI chat is switched off on this server."""


class AuthenticationError(FluxbaseChatError, PermissionError):
    """The server does not know who is asking."""


class PermissionDeniedError(FluxbaseChatError, PermissionError):
    """The server knows who is asking, and refuses."""


class RateLimitError(FluxbaseChatError):
    """Too many requests; `retry_after` says when to come back, if the server does."""

    retryable: bool = True


class QuotaError(FluxbaseChatError):
    """The daily limit or the token budget is used up."""


class ConnectionLostError(FluxbaseChatError, ConnectionError):
    """The connection ended before the answer was whole."""

    turn: Any = None
    """The `Turn` that was interrupted, if a message was; not pickled."""

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "turn"}

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), self.args, self.__getstate__())


class ChatTimeoutError(FluxbaseChatError, TimeoutError):
    """A limit ran out. `phase` says which."""

    phase: Phase = "wait"


class ServerError(FluxbaseChatError):
    """The server answered with an error."""

    sent: bool | None = True
    conversation_id: str = ""
    """The conversation that the error names, or `""`."""


class ChatbotNotFoundError(ServerError, LookupError):
    """There is no such chatbot in that namespace, or it is disabled."""


class NoSessionError(ServerError):
    """The conversation was not started on this connection."""


class TurnLimitError(ServerError):
    """The conversation has used up its turns."""


class ProviderError(ServerError):
    """The model's provider failed."""

    retryable: bool = True


class ApiError(FluxbaseChatError):
    """A REST call failed."""

    status: int | None = None
    body: str = ""


class NotFoundError(ApiError, LookupError):
    """The REST side has no such thing, or not for this user."""


class TurnCancelledError(FluxbaseChatError):
    """The turn was cancelled; `partial_text` is what had arrived."""


class ConversationNotResumedError(FluxbaseChatError):
    """The server opened another conversation than the one asked for."""

    requested: str = ""
    received: str = ""


class RecoveryError(FluxbaseChatError):
    """A lost answer could not be recovered."""

    reason: Literal["not kept", "ambiguous", "failed", "superseded", "timeout"] = "failed"


class IdentityConflictError(FluxbaseChatError, ValueError):
    """A client acts as one user; another one needs a client of its own."""

    sent: bool | None = False


class QueryFailedError(FluxbaseChatError):
    """The query has no rows because it failed."""


class NoTableError(FluxbaseChatError, LookupError):
    """The answer has no successful query result."""


class PoolTimeoutError(FluxbaseChatError, TimeoutError):
    """All connections of the pool stayed busy."""

    sent: bool | None = False
    retryable: bool = True


class LocalProtocolError(FluxbaseChatError, ValueError):
    """The caller asked for something that the protocol does not allow now."""

    sent: bool | None = False


class RemoteProtocolError(FluxbaseChatError):
    """The server sent something that the protocol does not allow."""
