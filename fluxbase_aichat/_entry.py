"""What a session keeps: conversations as it knows them, and entries of its queue. No behaviour."""

from __future__ import annotations

import contextvars
from typing import Any, Literal

import attrs

from ._answer import Answer, Outcome, fresh
from ._protocol import Message, Request, Start
from ._value import Value
from .errors import FluxbaseChatError

__all__ = ["Entry", "Place", "Record"]


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Place(Value):
    """Where a message stands in its conversation, as far as the client that has sent it knows."""

    new: bool
    """Whether this client began the conversation, and so knows all that was sent before it."""
    sent: int
    """How many messages it sent before."""
    kept: int
    """How many of them the server has surely kept, with their answers."""
    previous_at: float | None
    """When it last sent the same text in it, if that was a moment before."""


@attrs.define(eq=False, kw_only=True)
class Record:
    """A conversation: what is needed to start it again on another connection."""

    chatbot: str
    namespace: str
    id: str | None = None
    """`None` until the server has given one."""
    started: bool = False
    """Whether this client has started it, or resumed it."""
    on_lost: Literal["raise", "new"] = "raise"
    answer: Answer | None = None
    """The answer that is growing."""
    text: str = ""
    """The last answer's text, once it has ended."""

    def same(self, other: Record) -> bool:
        """Whether they are one conversation: two handles may have been made before its start."""
        return self is other or (self.id is not None and self.id == other.id)

    def accumulated(self) -> str:
        """Return the text of the newest answer so far."""
        answer = self.answer
        return self.text if answer is None else answer.current_text()


@attrs.define(eq=False, kw_only=True)
class Entry:
    """One call in the queue: a start, or a message with the start that it may need before it."""

    record: Record
    context: contextvars.Context
    outcome: Outcome | None = None
    """Who waits for a start; `None` for a message."""
    resume: str | None = None
    """The conversation that a start asks for."""
    answer: Answer | None = None
    """Who waits for a message's answer; `None` for a start."""
    content: str = attrs.field(default="", repr=False)
    page_context: Any = attrs.field(default=None, repr=False)
    start_limit: float | None = None
    idle_limit: float | None = None
    turn_limit: float | None = None
    request: Request | None = None
    """What was written of it last."""
    place: Place | None = None
    """Where its message stands, once it was written."""
    ended: bool = False
    """How it ends is decided; its waiters hear when the session's lock is released."""
    restarts: int = 0
    """How often the connection was lost under its start, before its message was written."""

    @property
    def sent(self) -> bool | None:
        """Whether what the caller asked for was written; `None` while a write is stuck."""
        request = self.request
        if request is None or (self.outcome is None and not isinstance(request, Message)):
            return False
        return None if request.stuck else True

    def after_fork(self, error: FluxbaseChatError) -> None:
        """Fail, in a child process."""
        error = fresh(error)
        error.sent = self.sent
        if self.outcome is not None:
            self.outcome.after_fork()
            self.outcome.fail(error)
        elif self.answer is not None:
            self.answer.after_fork(error)
            self.record.answer = None

    def start(self, impersonate: str | None) -> Start:
        """Return the start that it needs."""
        return Start(
            chatbot=self.record.chatbot,
            namespace=self.record.namespace,
            conversation_id=self.resume if self.outcome is not None else self.record.id,
            impersonate_user_id=impersonate,
            limit=self.start_limit,
            owner=self,
        )

    def message(self) -> Message:
        """Return its message; the conversation has an id by now."""
        return Message(
            conversation_id=self.record.id or "",
            content=self.content,
            page_context=self.page_context,
            idle=self.idle_limit,
            limit=self.turn_limit,
            owner=self,
        )
