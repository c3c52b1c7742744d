"""What the REST side of a server knows: chatbots, conversations and their messages, as values.

Nothing here does I/O. A field that a server leaves out is empty; all that it sent is in `raw`.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import attrs

from . import _plain
from ._value import Value
from .errors import ConfigurationError, RemoteProtocolError
from .results import QueryResult, Usage, read_usage

__all__ = [
    "Chatbot",
    "ConversationPage",
    "ConversationSummary",
    "StoredConversation",
    "StoredMessage",
    "read",
    "read_chatbot",
    "read_chatbots",
    "read_conversation",
    "read_page",
]

T = TypeVar("T")


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Chatbot(Value):
    """A chatbot as the server lists it."""

    id: str = ""
    name: str = ""
    namespace: str = "default"
    description: str = ""
    model: str = ""
    enabled: bool = False
    is_public: bool = False
    source: str = ""
    """Where it was defined, such as `"filesystem"`."""
    updated_at: dt.datetime | None = attrs.field(default=None, repr=False)
    raw: dict[str, Any] = attrs.field(factory=dict, repr=False, eq=False)
    """The JSON object as the server sent it, with what only older servers tell: `allowed_tables`,
    `allowed_operations`, `allowed_schemas`, `version`, `created_at`."""


@attrs.frozen(kw_only=True, eq=False, repr=False)
class ConversationSummary(Value):
    """A stored conversation as the server lists it. Times are aware, in UTC."""

    # Whoever knows the id can go on with the conversation, so it is not shown.
    id: str = attrs.field(default="", repr=False)
    """The conversation's id. It is a secret between the server and the user."""
    chatbot: str = ""
    namespace: str = "default"
    title: str | None = None
    preview: str = attrs.field(default="", repr=False)
    """The beginning of the first question."""
    message_count: int = 0
    created_at: dt.datetime | None = attrs.field(default=None, repr=False)
    updated_at: dt.datetime | None = None
    raw: dict[str, Any] = attrs.field(factory=dict, repr=False, eq=False)


@attrs.frozen(kw_only=True, eq=False, repr=False)
class ConversationPage(Value):
    """A part of the list of conversations, the newest first. Iterating gives `conversations`."""

    conversations: tuple[ConversationSummary, ...] = ()
    total: int = 0
    """How many there are in all."""
    has_more: bool = False
    """Whether there are more behind these."""

    def __iter__(self) -> Iterator[ConversationSummary]:
        return iter(self.conversations)

    def __len__(self) -> int:
        return len(self.conversations)


@attrs.frozen(kw_only=True, eq=False, repr=False)
class StoredMessage(Value):
    """A message of a stored conversation."""

    id: str = attrs.field(default="", repr=False)
    role: str = ""
    """`"user"` or `"assistant"`."""
    content: str = ""
    """The text; of an answer with tool rounds only what was written after the last of them."""
    timestamp: dt.datetime | None = None
    """When it was stored, aware, in UTC."""
    query_results: tuple[QueryResult, ...] = ()
    """The results of all queries of the answer."""
    usage: Usage | None = None
    raw: dict[str, Any] = attrs.field(factory=dict, repr=False, eq=False)


@attrs.frozen(kw_only=True, eq=False, repr=False)
class StoredConversation(Value):
    """A stored conversation with its messages, the oldest first. Times are aware, in UTC."""

    id: str = attrs.field(default="", repr=False)
    """The conversation's id. It is a secret between the server and the user."""
    chatbot: str = ""
    namespace: str = "default"
    title: str | None = None
    created_at: dt.datetime | None = attrs.field(default=None, repr=False)
    updated_at: dt.datetime | None = None
    messages: tuple[StoredMessage, ...] = attrs.field(default=(), repr=False)
    raw: dict[str, Any] = attrs.field(factory=dict, repr=False, eq=False)


# --- From JSON ------------------------------------------------------------------------------


def read(reader: Callable[[Any], T], values: Any) -> T:
    """Apply one of the readers below; raise `RemoteProtocolError` for what it cannot read.

    The error names the field and not its value.
    """
    try:
        return reader(values)
    except ConfigurationError as error:
        reason = str(error)
    except (TypeError, ValueError):
        reason = "it is no JSON object"
    raise RemoteProtocolError(f"the server's answer cannot be read: {reason}", sent=True)


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


def _time(value: Any) -> dt.datetime | None:
    """Read a time by RFC 3339, as Go writes it; what is none is left to `raw`."""
    try:
        moment = dt.datetime.fromisoformat(_plain.text(value))
        return moment.astimezone(dt.UTC) if moment.tzinfo else moment.replace(tzinfo=dt.UTC)
    except (ValueError, OverflowError):
        return None


def _build(cls: type[T], values: Any, **readers: Callable[[Any], Any]) -> T:
    return attrs.evolve(_plain.build(cls, values, **readers), raw=values)  # type: ignore[misc]


def _result(values: Any) -> QueryResult:
    return _plain.build(
        QueryResult,
        values,
        query=_plain.text,
        summary=_plain.text,
        row_count=_plain.count,
        # Not _plain.rows, which would read a wrapped number into what looks like one.
        data=lambda rows: [dict(_plain.mapping(row)) for row in _plain.read_list(rows)],
    )


def _message(values: Any) -> StoredMessage:
    return _build(
        StoredMessage,
        values,
        id=_plain.text,
        role=_plain.text,
        content=_plain.text,
        timestamp=_time,
        query_results=_plain.many(_result),
        usage=read_usage,
    )


def _chatbot(values: Any) -> Chatbot:
    return _build(
        Chatbot,
        values,
        id=_plain.text,
        name=_plain.text,
        namespace=_plain.text,
        description=_plain.text,
        model=_plain.text,
        enabled=_flag,
        is_public=_flag,
        source=_plain.text,
        updated_at=_time,
    )


def read_chatbot(values: Any) -> Chatbot:
    """Read a chatbot, as it is or as the answer to a look-up by name has it."""
    return _chatbot(_plain.mapping(values).get("chatbot", values))


def read_chatbots(values: Any) -> list[Chatbot]:
    """Read the list of chatbots, which is null when there are none."""
    return [_chatbot(value) for value in _plain.read_list(values.get("chatbots") or [])]


def _summary(values: Any) -> ConversationSummary:
    return _build(
        ConversationSummary,
        values,
        id=_plain.text,
        chatbot=_plain.text,
        namespace=_plain.text,
        title=_plain.text,
        preview=_plain.text,
        message_count=_plain.count,
        created_at=_time,
        updated_at=_time,
    )


def read_page(values: Any) -> ConversationPage:
    """Read a part of the list of conversations."""
    return _plain.build(
        ConversationPage,
        values,
        conversations=_plain.many(_summary),
        total=_plain.count,
        has_more=_flag,
    )


def read_conversation(values: Any) -> StoredConversation:
    """Read a conversation with its messages."""
    return _build(
        StoredConversation,
        values,
        id=_plain.text,
        chatbot=_plain.text,
        namespace=_plain.text,
        title=_plain.text,
        created_at=_time,
        updated_at=_time,
        messages=_plain.many(_message),
    )
