"""What a user holds: a `Turn`, one message and its answer, and a `Conversation`.

They wait and read; what happens on the wire is `_session`'s.
"""

from __future__ import annotations

import contextlib
import contextvars
import logging
import weakref
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Self

from . import events
from ._answer import Answer, Outcome, Position, fresh
from ._deadline import Deadline
from ._edge import brief, edge
from ._entry import Entry, Record
from ._lifetime import Lease, calling
from ._logs import about
from ._session import Session
from ._wire import ContentRun, check_message
from .config import RECOVER_SECONDS, UNSET, Unset, check_seconds, named_keywords
from .errors import (
    ChatTimeoutError,
    ConfigurationError,
    ConnectionLostError,
    FluxbaseChatError,
    LocalProtocolError,
    NotConnectedError,
    RecoveryError,
)
from .results import QueryResult, Reply, ToolOutput, Usage

if TYPE_CHECKING:
    from ._sse import EventStream
    from .stored import StoredMessage

__all__ = ["Conversation", "IfBusy", "PageContext", "Turn", "ask", "send", "start"]

_log = logging.getLogger("fluxbase_aichat.turn")

IfBusy = Literal["queue", "cancel", "raise"]
PageContext = str | dict[str, Any]
"""What the page shows (from server 2026.6): text, or an object, by the server's version."""


class Turn:
    """One message and its answer: iterable while it grows, a `Reply` when it is whole.

    All methods are thread-safe. Each iterator has a position of its own and begins at the first
    event, however late it starts.
    """

    def __init__(self, lease: Lease, entry: Entry) -> None:
        assert entry.answer is not None  # noqa: S101 - a message has one
        self._lease: Lease | None = lease
        self._session: Session = lease.session
        self._entry = entry
        self._answer: Answer = entry.answer
        self._recovered: Reply | None = None
        # A turn that nobody holds keeps no events; its callbacks go on.
        weakref.finalize(self, self._answer.forget).atexit = False

    # -- what is known so far ---------------------------------------------------------------

    @property
    def conversation_id(self) -> str | None:
        """The conversation's id; `None` until the server has given one."""
        return self._entry.record.id

    @property
    def text(self) -> str:
        """The answer's text so far."""
        return self._answer.current_text()

    @property
    def done(self) -> bool:
        """Whether the turn has ended: whole, failed or cancelled."""
        return self._answer.ended.is_set()

    @property
    def error(self) -> FluxbaseChatError | None:
        """Why the turn has failed, if it has; a cancelled turn has a `TurnCancelledError`."""
        self._answer.looked_at = self._answer.looked_at or self.done
        return self._answer.error

    @property
    def cancelled(self) -> bool:
        """Whether the turn was cancelled."""
        return self._answer.cancelled

    @property
    def usage(self) -> Usage | None:
        """The tokens used; `None` until the answer is whole, or when the server told none."""
        done = self._answer.done
        return None if done is None else done.usage

    @property
    def query_results(self) -> tuple[QueryResult, ...]:
        """The results of the queries so far."""
        return tuple(self._answer.query_results)

    @property
    def tool_results(self) -> tuple[ToolOutput, ...]:
        """What the tools gave so far."""
        return tuple(self._answer.tool_results)

    @property
    def progress(self) -> str:
        """The last step that the server told: `"thinking"`, `"querying"`, …, or `""`."""
        return self._answer.step

    # -- waiting ----------------------------------------------------------------------------

    @named_keywords
    def result(self, timeout: float | None = None) -> Reply:
        """Wait until the answer is whole and return it.

        It returns before the callbacks of the last events may have run: see `wait`.

        Args:
            timeout: seconds to wait; `None` is no limit beyond the client's own `Timeouts`. When
                it runs out the turn goes on.

        With `recover_replies` an answer that a lost connection has interrupted is recovered, see
        `recover`; `timeout` counts for that too, and without one it takes 60 s at most.

        Raises:
            ChatTimeoutError: phase `"wait"`: the answer was not whole in time; `"recover"`: it was
                lost, and not recovered in time.
            TurnCancelledError: the turn was cancelled.
            FluxbaseChatError: what made the turn fail.

        """
        deadline = Deadline(check_seconds("timeout", timeout, zero=True), self._session.clock)
        with self._waiting():
            ended = self._answer.ended.wait(deadline.remaining())
        if not ended:
            raise ChatTimeoutError(
                f"the answer was not whole after {timeout:g} s; the turn goes on",
                phase="wait",
                sent=self._entry.sent,
                partial_text=self.text,
            )
        return self._reply(deadline)

    def _result_by(self, deadline: Deadline, seconds: float | None) -> Reply:
        """Return the whole answer; at the deadline end the turn, as a cancel does.

        The call was given so many `seconds`.
        """
        with self._waiting():
            if not self._answer.ended.wait(deadline.remaining()):
                self._session.give_up(self._entry, seconds)
        if not self.done:
            return self.result()
        return self._reply(deadline)

    def _reply(self, deadline: Deadline) -> Reply:
        """Return the answer of a turn that has ended, or raise why there is none."""
        lost = isinstance(self._answer.error, ConnectionLostError) and self._entry.sent
        if not (lost and self._session.settings.recover_replies):
            self._raise_error()
            return self._answer.reply()
        limit = deadline.sooner(RECOVER_SECONDS)
        try:
            return self._recover(limit)
        except NotConnectedError:
            raise
        except FluxbaseChatError as failure:
            if limit is deadline and getattr(failure, "reason", "") == "timeout":
                raise ChatTimeoutError(
                    "the connection was lost, and its answer not recovered in time",
                    phase="recover",
                    sent=True,
                    partial_text=self.text,
                ) from failure
            error = self._fresh_error()
            error.hint = f"its answer was not recovered: {failure.args[0]}"
            raise error from failure

    # -- after a lost connection ------------------------------------------------------------

    @named_keywords
    def recover(self, timeout: float | None = RECOVER_SECONDS) -> Reply:
        """Return the answer that the server has finished after the connection was lost.

        Where the chatbot persists its conversations, the server finishes and stores an answer that
        nobody listens to. This asks the REST side until it is there, and takes it only if it
        is provably the answer to this message. Of an answer with tool rounds only what was
        written behind the last of them is stored. It needs no connection, and works after
        `disconnect` too.

        Args:
            timeout: seconds; `None` is no limit.

        Raises:
            RecoveryError: `reason` says why: `"not kept"` by the server; `"ambiguous"`, it may be
                the answer to another question; `"failed"`, the turn; `"superseded"` by another
                message; `"timeout"`, it may still come.
            LocalProtocolError: the turn has not ended.
            NotConnectedError: `disconnect` was called meanwhile.
            FluxbaseChatError: the REST side refuses, as `FluxbaseAI.get_conversation` says.

        """
        seconds = check_seconds("timeout", timeout)
        if not self.done:
            raise LocalProtocolError("the turn has not ended; result() waits for its answer")
        return self._recover(Deadline(seconds, self._session.clock))

    def _recover(self, deadline: Deadline) -> Reply:
        answer = self._answer
        answer.looked_at = True
        if answer.error is None:
            return answer.reply()
        if self._recovered is None:
            from ._recover import asked, recover  # noqa: PLC0415 - few answers are lost

            try:
                question = asked(self._session, self._entry)
                # A turn that has gone back to its pool is recovered on its own: the pool may be
                # about to disconnect what it has lent.
                session = self._session if self._lease is None else self._lease.session
                self._recovered = recover(session, answer.conversation_id, question, deadline)
                self._let_go()
            except RecoveryError as error:
                error.sent = self._entry.sent
                error.partial_text = self.text
                raise
        return self._recovered

    @named_keywords
    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the turn has ended and its callbacks have run; say whether that is so.

        Inside a callback it waits for the end of the turn only. It raises no error of the turn.
        """
        deadline = Deadline(check_seconds("timeout", timeout, zero=True), self._session.clock)
        with self._waiting():
            ended = self._answer.ended.wait(deadline.remaining())
            if ended and not self._session.inside_callback:
                ended = self._answer.callbacks_run.wait(deadline.remaining())
        self._let_go()
        return ended

    def __iter__(self) -> Iterator[events.Event]:
        """Yield the turn's events as they come, the last being `Done`.

        Raises what made the turn fail; after a cancel it just ends.
        """
        try:
            for item in self._items():
                if isinstance(item, ContentRun):
                    for event in item.events():
                        if self._answer.cancelled:
                            return
                        yield event
                else:
                    yield item
        except FluxbaseChatError as error:
            brief(error)
            raise

    @property
    def text_stream(self) -> Iterator[str]:
        """The text's pieces as they come; it ends and raises as iterating the turn does."""
        answer = self._answer
        try:
            for item in self._items():
                if isinstance(item, ContentRun):
                    for delta in item.deltas:
                        if answer.error is not None and answer.cancelled:
                            return
                        yield delta
        except FluxbaseChatError as error:
            brief(error)
            raise

    @named_keywords
    def iter_sse(
        self,
        *,
        heartbeat: float | None = 15.0,
        include: Iterable[str] = ("progress", "content", "result"),
        include_sql: bool = False,
        stop: Callable[[], object] | None = None,
    ) -> EventStream:
        """Return the turn as server-sent events, to be streamed to a browser with `SSE_HEADERS`.

        Each item is the bytes of one event: `progress` {step, message}, `content` {delta}, `result`
        {summary, status, row_count, columns, rows}, and at the end `done` {usage} or `error` {code,
        message, retryable}. No error of the turn is raised, a cancelled one just ends, and the
        conversation's id is in none of it.

        Args:
            heartbeat: seconds of silence after which a comment line is sent, so that proxies keep
                the connection and a browser that has gone is noticed; `None` for no such lines.
            include: which of `"progress"`, `"content"` and `"result"` are wanted.
            include_sql: whether a `result` has the `query` too.
            stop: asked between events, and at least four times a second; true cancels the turn.

        Closing the iterator cancels the turn, which web servers do when the browser has gone. In
        the page, close an `EventSource` at `done` and `error`: else it asks again by itself.

        Raises:
            ConfigurationError: an argument is wrong.

        """
        from ._sse import EventStream, SSEOptions  # noqa: PLC0415 - only web servers need it

        options = SSEOptions(
            heartbeat=heartbeat, include=include, include_sql=include_sql, stop=stop
        )
        return EventStream(self._answer, self._read, self.cancel, options)

    def _read(
        self, position: Position, deadline: Deadline
    ) -> tuple[list[events.Event | ContentRun], bool]:
        with self._waiting():
            return self._answer.read(position, deadline)

    def _items(self) -> Iterator[events.Event | ContentRun]:
        answer = self._answer
        forever = Deadline(None)
        position = Position()
        last = False
        while not last:
            items, last = self._read(position, forever)
            for item in items:
                if answer.cancelled:
                    return
                yield item
        if not answer.cancelled:
            self._raise_error()

    @edge
    def display(self) -> None:
        """Show the answer while it grows, until it has ended; in a notebook in the current cell.

        There its text is Markdown, with what the chatbot does meanwhile below it, and each query
        a table under its SQL. Elsewhere it is printed as it comes. Raises what made the turn
        fail; a cancelled turn just ends. Ctrl-C, or interrupting the cell, cancels it.
        """
        from .display import Live  # noqa: PLC0415 - most turns are not shown

        answer = self._answer
        live = Live()
        position = Position()
        last = False
        try:
            while not last:
                with self._waiting():
                    items, last = answer.read(position, Deadline(live.patience))
                if not answer.cancelled:
                    live.show(items)
            live.end(answer.error)
        except KeyboardInterrupt:
            self.cancel()
            live.end(answer.error)
            raise
        if not answer.cancelled:
            self._raise_error()

    def _let_go(self) -> None:
        """Keep the client no longer than needed: an old answer in a notebook is no reason."""
        answer = self._answer
        if answer.cancelled or (answer.ended.is_set() and answer.callbacks_run.is_set()):
            # What may be recovered needs the client's tokens for that.
            lost = isinstance(answer.error, (ConnectionLostError, ChatTimeoutError))
            self._lease = self._lease if lost and self._recovered is None else None

    def _raise_error(self) -> None:
        self._let_go()
        self._answer.looked_at = True
        if self._answer.error is not None:
            raise self._fresh_error()

    def _fresh_error(self) -> FluxbaseChatError:
        assert self._answer.error is not None  # noqa: S101 - the caller has looked
        error = fresh(self._answer.error)
        if isinstance(error, ConnectionLostError):
            error.turn = self
            if self._entry.sent:
                error.hint = error.hint or "the message was sent; error.turn.recover() may help"
        return error

    @contextlib.contextmanager
    def _waiting(self) -> Iterator[None]:
        """Wait for the turn: reading goes on, and Ctrl-C cancels it."""
        try:
            with self._session.blocking():
                yield
        except KeyboardInterrupt:
            self.cancel()
            raise

    # -- ending it --------------------------------------------------------------------------

    def cancel(self) -> None:
        """End the turn at once; what the server still says of it surfaces nowhere.

        It does not stop the model: its answer may still appear in the stored history, behind a
        newer one. Nothing happens when the turn has ended.
        """
        self._session.cancel_entry(self._entry)
        self._let_go()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.cancel()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Turn belongs to its client and cannot be pickled; its result() can be")

    def __repr__(self) -> str:
        answer = self._answer
        if not answer.ended.is_set():
            state = answer.step or ("queued" if self._entry.sent is False else "sent")
        elif answer.error is None:
            state = "whole"
        else:
            state = "cancelled" if answer.cancelled else type(answer.error).__name__
        return f"<Turn {answer.chatbot!r} {state}, {len(self.text)} characters>"


class Conversation:
    """A handle on one conversation with one chatbot. Thread-safe; starts by itself."""

    def __init__(self, lease: Lease, record: Record) -> None:
        self._lease = lease
        self._session: Session = lease.session
        self._record = record

    @property
    def id(self) -> str | None:
        """The conversation's id: a secret; `None` until it was started."""
        return self._record.id

    @property
    def chatbot(self) -> str:
        """The chatbot's name."""
        return self._record.chatbot

    @property
    def namespace(self) -> str:
        """The chatbot's namespace."""
        return self._record.namespace

    @named_keywords
    def start(self, *, timeout: float | Unset | None = UNSET) -> str:
        """Start the conversation if it was not, and return its id.

        Args:
            timeout: seconds for the whole call; by default the client's `Timeouts` count.

        Raises:
            ChatTimeoutError: phase `"start"`.
            ChatbotNotFoundError: and the other errors of the server.
            ConversationNotResumedError: the server has lost the conversation.

        """
        record = self._record
        if record.id is not None and record.started:
            return record.id
        return start(self._lease, record, record.id, timeout)

    @named_keywords
    def send(
        self,
        content: str,
        *,
        page_context: PageContext | None = None,
        if_busy: IfBusy = "queue",
    ) -> Turn:
        """Send a message and return its turn at once; the conversation starts by itself.

        See `FluxbaseAIChat.send_message`.
        """
        return send(self._lease, self._record, content, page_context, if_busy)

    @named_keywords
    def ask(
        self,
        content: str,
        *,
        page_context: PageContext | None = None,
        timeout: float | Unset | None = UNSET,
    ) -> Reply:
        """Send a message and wait for the whole answer. See `FluxbaseAIChat.ask`."""
        return ask(self._lease, self._record, content, page_context, timeout)

    @named_keywords
    def history(self, *, timeout: float | None = 30.0) -> tuple[StoredMessage, ...]:
        """Return the messages that the server has stored, the oldest first.

        None before the conversation was started. It asks the REST side, and works after
        `disconnect` too.

        Args:
            timeout: seconds; `None` is no limit.

        Raises:
            NotFoundError: the chatbot does not persist its conversations, or it is another user's.
            NotConnectedError: `disconnect` was called meanwhile.
            FluxbaseChatError: as `FluxbaseAI.get_conversation` says.

        """
        seconds = check_seconds("timeout", timeout)
        session, conversation_id = self._session, self._record.id
        if conversation_id is None:
            return ()
        from ._api import perform, read_conversation  # noqa: PLC0415 - few make REST calls

        with calling(session) as waker:
            call = read_conversation(conversation_id)
            return perform(session.settings, call, Deadline(seconds), waker).value.messages

    def cancel(self) -> None:
        """Cancel the running turn, else the oldest queued one, else do nothing."""
        self._session.cancel(self._record)

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a Conversation belongs to its client and cannot be pickled; pass its id, and make one "
            "with conversation(chatbot, conversation_id=...) in the other process"
        )

    def __repr__(self) -> str:
        return f"<Conversation with {self.chatbot!r}, {'started' if self.id else 'not started'}>"


# -- what the client and the handles share ------------------------------------------------------


def start(
    lease: Lease,
    record: Record,
    resume: str | None,
    timeout: float | Unset | None,
    identity: tuple[str | None] | None = None,
) -> str:
    """Start a conversation and wait for its id."""
    session = lease.session
    seconds = None if isinstance(timeout, Unset) else check_seconds("timeout", timeout)
    outcome = Outcome()
    entry = Entry(
        record=record,
        context=contextvars.copy_context(),
        outcome=outcome,
        resume=resume,
        start_limit=session.settings.timeouts.start if isinstance(timeout, Unset) else seconds,
    )
    try:
        session.submit(entry, identity)
        with session.blocking():
            started = outcome.wait(seconds)
        if not started:
            session.give_up(entry, seconds)
    except KeyboardInterrupt:
        session.cancel_entry(entry)
        raise
    conversation_id = outcome.get()
    _log.debug("a conversation is started", extra=about(record.chatbot, conversation_id))
    return conversation_id


def send(
    lease: Lease,
    record: Record,
    content: str,
    page_context: PageContext | None,
    if_busy: IfBusy,
    timeout: float | Unset | None = UNSET,
) -> Turn:
    """Queue a message and return its turn."""
    session = lease.session
    check_message(content, page_context)
    if if_busy not in {"queue", "cancel", "raise"}:
        raise ConfigurationError('if_busy must be "queue", "cancel" or "raise"')
    limits = session.settings.timeouts
    own = not isinstance(timeout, Unset)
    context = contextvars.copy_context()
    answer = _answer(session, record, content, context)
    entry = Entry(
        record=record,
        context=context,
        answer=answer,
        content=content,
        page_context=page_context,
        start_limit=limits.start,
        # A limit on the whole call lifts those on its parts.
        idle_limit=None if own else limits.idle,
        turn_limit=None if own else limits.turn,
    )
    turn = Turn(lease, entry)
    _log.debug("a message is to be sent", extra=about(record.chatbot, record.id))
    try:
        session.submit_turn(entry, if_busy)
    except KeyboardInterrupt:
        turn.cancel()  # nobody will ever hold it
        raise
    except FluxbaseChatError as error:
        answer.fail(fresh(error), told=True)  # it is raised here
        raise
    return turn


def _answer(session: Session, record: Record, content: str, context: contextvars.Context) -> Answer:
    """Return the answer to be; with a tracer it has a span, the current one in `context`."""
    settings = session.settings
    if settings.tracer is None:
        return Answer(record.chatbot, session.clock)
    from ._tracing import traced_answer  # noqa: PLC0415 - an extra's

    chatbot, namespace = record.chatbot, record.namespace
    return traced_answer(settings, chatbot, namespace, content, session.clock, context)


def ask(
    lease: Lease,
    record: Record,
    content: str,
    page_context: PageContext | None,
    timeout: float | Unset | None,
) -> Reply:
    """Queue a message and wait for its whole answer; a `timeout` bounds all of it."""
    seconds = None if isinstance(timeout, Unset) else check_seconds("timeout", timeout)
    deadline = Deadline(seconds, lease.session.clock)
    turn = send(lease, record, content, page_context, "queue", timeout)
    try:
        return turn._result_by(deadline, seconds)  # noqa: SLF001 - of this module's own class
    except KeyboardInterrupt:
        turn.cancel()  # it may have come before the waiting
        raise
