"""What the server says, as values. Nothing here parses, waits or sends.

Every event has `type` (the wire's word), `conversation_id` (`""` where the server named none) and
`raw`, the whole message as it came, with the fields that this version does not know. Fields that
the server left out are empty, zero or `None`: it omits what is empty (PROTOCOL 3).
"""

from __future__ import annotations

from typing import Any

import attrs

from ._value import Value
from .results import IntentRule, QueryResult, Quota, ToolOutput, Usage

__all__ = [
    "AgentThought",
    "AgentTransition",
    "Cancelled",
    "ChatStarted",
    "Connected",
    "Content",
    "Disconnected",
    "Done",
    "ErrorEvent",
    "Event",
    "Progress",
    "QueryResultEvent",
    "Reconnected",
    "Reconnecting",
    "ToolResult",
    "UnknownEvent",
]


def _type(name: str) -> Any:
    return attrs.field(default=name, init=False, repr=False)


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Event(Value):
    """What all events have."""

    type: str = _type("")
    conversation_id: str = ""
    raw: dict[str, Any] = attrs.field(factory=dict, repr=False)


@attrs.frozen(kw_only=True, eq=False, repr=False)
class ChatStarted(Event):
    """A conversation is open on this connection."""

    type: str = _type("chat_started")
    chatbot: str = ""


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Progress(Event):
    """What the chatbot is doing: `thinking`, `generating`, `querying`, `executing`, or newer."""

    type: str = _type("progress")
    step: str = ""
    message: str = ""


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Content(Event):
    """The next piece of the answer's text."""

    type: str = _type("content")
    delta: str = ""


@attrs.frozen(kw_only=True, eq=False, repr=False)
class QueryResultEvent(Event):
    """A query that the chatbot ran, with its rows."""

    type: str = _type("query_result")
    result: QueryResult = attrs.field(factory=QueryResult)


@attrs.frozen(kw_only=True, eq=False, repr=False)
class ToolResult(Event):
    """What a tool gave; of `execute_sql` also as a query result, in `output.query_result`."""

    type: str = _type("tool_result")
    output: ToolOutput = attrs.field(factory=ToolOutput)


@attrs.frozen(kw_only=True, eq=False, repr=False)
class AgentTransition(Event):
    """One agent hands over to another (from server 2026.6)."""

    type: str = _type("agent_transition")
    agent: str = ""
    from_agent: str = ""
    to_agent: str = ""
    route: tuple[str, ...] = ()
    reason: str = ""


@attrs.frozen(kw_only=True, eq=False, repr=False)
class AgentThought(Event):
    """An agent's plan, reasoning or tool use (from server 2026.6)."""

    type: str = _type("agent_thought")
    agent: str = ""
    kind: str = ""
    delta: str = ""
    tool_name: str = ""
    tool_args: Any = None
    plan: dict[str, Any] | None = None


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Done(Event):
    """The answer is whole."""

    type: str = _type("done")
    usage: Usage | None = None
    matched_intent_rules: tuple[IntentRule, ...] = ()
    daily_quota: Quota | None = None


@attrs.frozen(kw_only=True, eq=False, repr=False)
class ErrorEvent(Event):
    """The server could not do what was asked."""

    type: str = _type("error")
    error: str = "Unknown error"
    code: str = ""


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Cancelled(Event):
    """The server has read a `cancel`."""

    type: str = _type("cancelled")


@attrs.frozen(kw_only=True, eq=False, repr=False)
class UnknownEvent(Event):
    """A message of a type that this version does not know; all of it is in `raw`."""

    type: str = ""


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Connected(Event):
    """The client's own: a connection is open."""

    type: str = _type("connected")


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Disconnected(Event):
    """The client's own: the connection has ended; `reason` says how, in a sentence."""

    type: str = _type("disconnected")
    reason: str = ""


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Reconnecting(Event):
    """The client's own: attempt number `attempt` (from 1) follows in `delay` seconds."""

    type: str = _type("reconnecting")
    attempt: int = 1
    delay: float = 0.0


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Reconnected(Event):
    """The client's own: the connection is back."""

    type: str = _type("reconnected")
