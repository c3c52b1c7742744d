"""A synchronous client for the AI chat of a Fluxbase server: no asyncio, no callbacks needed."""

import importlib as _importlib
import typing as _typing

from . import errors, events
from .client import FluxbaseAIChat
from .config import Limits, Timeouts
from .errors import (
    ApiError,
    AuthenticationError,
    ChatbotNotFoundError,
    ChatTimeoutError,
    ConfigurationError,
    ConnectError,
    ConnectionLostError,
    ConnectTimeoutError,
    ConversationNotResumedError,
    FeatureDisabledError,
    FluxbaseChatError,
    HandshakeError,
    IdentityConflictError,
    LocalProtocolError,
    MissingExtraError,
    NoSessionError,
    NoTableError,
    NotConnectedError,
    NotFoundError,
    PermissionDeniedError,
    PoolTimeoutError,
    ProviderError,
    ProxyError,
    QueryFailedError,
    QuotaError,
    RateLimitError,
    RecoveryError,
    RemoteProtocolError,
    ServerError,
    TLSError,
    TurnCancelledError,
    TurnLimitError,
)
from .results import Interval, QueryResult, Reply, ToolOutput, Usage
from .turn import Conversation, PageContext, Turn

if _typing.TYPE_CHECKING:
    __version__: str

    from ._magic import load_ipython_extension
    from ._many import ask_many
    from ._sse import SSE_HEADERS
    from .login import PasswordLogin, RefreshToken
    from .pool import ChatPool, PoolStats
    from .rest import FluxbaseAI
    from .stored import (
        Chatbot,
        ConversationPage,
        ConversationSummary,
        StoredConversation,
        StoredMessage,
    )
else:  # a type checker that saw these would take any name for one of ours
    # What most scripts do without, by the module that has it: loaded when it is first named.
    _LATER = {
        "ChatPool": "pool",
        "Chatbot": "stored",
        "ConversationPage": "stored",
        "ConversationSummary": "stored",
        "FluxbaseAI": "rest",
        "PasswordLogin": "login",
        "PoolStats": "pool",
        "RefreshToken": "login",
        "SSE_HEADERS": "_sse",
        "StoredConversation": "stored",
        "StoredMessage": "stored",
        "ask_many": "_many",
        "load_ipython_extension": "_magic",
        "login": "login",
        "pool": "pool",
        "rest": "rest",
        "stored": "stored",
    }

    def __getattr__(name: str) -> object:
        if name == "__version__":
            metadata = _importlib.import_module("importlib.metadata")
            try:
                return metadata.version("fluxbase-aichat")
            except metadata.PackageNotFoundError:  # help() asks whether there is one
                raise AttributeError("__version__: the package is not installed") from None
        if name not in _LATER:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module = _importlib.import_module(f".{_LATER[name]}", __name__)
        value = module if _LATER[name] == name else getattr(module, name)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *_LATER})


__all__ = [
    "SSE_HEADERS",
    "ApiError",
    "AuthenticationError",
    "ChatPool",
    "ChatTimeoutError",
    "Chatbot",
    "ChatbotNotFoundError",
    "ConfigurationError",
    "ConnectError",
    "ConnectTimeoutError",
    "ConnectionLostError",
    "Conversation",
    "ConversationNotResumedError",
    "ConversationPage",
    "ConversationSummary",
    "FeatureDisabledError",
    "FluxbaseAI",
    "FluxbaseAIChat",
    "FluxbaseChatError",
    "HandshakeError",
    "IdentityConflictError",
    "Interval",
    "Limits",
    "LocalProtocolError",
    "MissingExtraError",
    "NoSessionError",
    "NoTableError",
    "NotConnectedError",
    "NotFoundError",
    "PageContext",
    "PasswordLogin",
    "PermissionDeniedError",
    "PoolStats",
    "PoolTimeoutError",
    "ProviderError",
    "ProxyError",
    "QueryFailedError",
    "QueryResult",
    "QuotaError",
    "RateLimitError",
    "RecoveryError",
    "RefreshToken",
    "RemoteProtocolError",
    "Reply",
    "ServerError",
    "StoredConversation",
    "StoredMessage",
    "TLSError",
    "Timeouts",
    "ToolOutput",
    "Turn",
    "TurnCancelledError",
    "TurnLimitError",
    "Usage",
    "ask_many",
    "errors",
    "events",
    "load_ipython_extension",
]
