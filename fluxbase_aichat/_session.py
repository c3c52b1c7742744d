"""What outlives a connection: the queue, the conversations, the identity, draining connections.

One lock guards all of it. What must happen outside the lock (waking waiters, starting threads,
telling callbacks) is collected while it is held and done when it is released, in that order.

    entry:  queued ──> its start on the wire ──> its message on the wire ──> ended
               │ └───── a start alone ends here ──┘          │
               └── cancelled, expired, disconnected: ended ──┘

One entry is on the wire at a time (promise 1). A conversation's start and its message are one
entry: nothing goes between them, so another chatbot cannot answer the message.
"""

from __future__ import annotations

import contextlib
import contextvars
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import attrs

from . import events
from ._answer import Outcome, fresh
from ._connection import Connection
from ._deadline import Clock, Deadline
from ._dispatch import Callbacks, Dispatcher, Failure, Post
from ._entry import Entry, Record
from ._protocol import Delivery, Message, Request, Start, error_of
from ._watch import Due
from ._wire import Item, Malformed
from .config import Settings
from .errors import (
    AuthenticationError,
    ChatTimeoutError,
    ConnectionLostError,
    ConnectTimeoutError,
    ConversationNotResumedError,
    FluxbaseChatError,
    IdentityConflictError,
    LocalProtocolError,
    NotConnectedError,
    RemoteProtocolError,
    TurnCancelledError,
)

__all__ = ["Session", "State"]

State = Literal["new", "connecting", "connected", "reconnecting", "lost", "disconnected"]

# Cancelled connections that drain out of sight; the server ends each when its turn has ended.
_MAX_DRAINING = 4
# What an I/O thread may need for its last steps when its deadline has come.
_JOIN_SECONDS = 1.0
# Conversations whose last text is kept.
_MAX_TEXTS = 1000

Effect = Callable[[], object]


class Session:
    """One client's state. All methods are thread-safe; those of `Sink` are the I/O threads'."""

    def __init__(self, settings: Settings, callbacks: Callbacks, clock: Clock) -> None:
        self.settings = settings
        self.clock = clock
        self._callbacks = callbacks
        self._lock = threading.Lock()  # guards all below
        self._effects: list[Effect] = []
        self._state: State = "new"
        self._queue: deque[Entry] = deque()
        self._on_wire: Entry | None = None
        self._current: Connection | None = None
        self._opening = Outcome()
        self._draining: deque[Connection] = deque()
        self._numbers = 0
        self._records: dict[str, Record] = {}
        self._texts: OrderedDict[int, Record] = OrderedDict()
        # A tuple, because None stands for "nobody is impersonated", which is an identity too.
        self._identity: tuple[str | None] | None = None
        if settings.impersonate_user_id is not None:
            self._identity = (settings.impersonate_user_id,)
        self._dispatcher: Dispatcher | None = None
        # What `on_event` was told last about the connection. The successor of a cancelled one
        # is not told: to the user nothing happened.
        self._told: Literal["nothing", "connected", "lost"] = "nothing"
        self._context = contextvars.copy_context()

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the lock; then do what was collected meanwhile, in order, without it."""
        effects: list[Effect] = []
        try:
            with self._lock:
                try:
                    yield
                finally:
                    effects, self._effects = self._effects, []
        finally:
            for effect in effects:
                effect()

    def _then(self, effect: Effect) -> None:
        assert self._lock.locked()  # noqa: S101 - its order is the lock's order
        self._effects.append(effect)

    # -- state ------------------------------------------------------------------------------

    @property
    def state(self) -> State:
        """What the client is doing about its connection."""
        return self._state

    @property
    def callback_errors(self) -> int:
        """How many callbacks have raised since the last `connect`."""
        dispatcher = self._dispatcher
        return 0 if dispatcher is None else dispatcher.errors

    @property
    def inside_callback(self) -> bool:
        """Whether the caller runs inside a callback."""
        dispatcher = self._dispatcher
        return dispatcher is not None and dispatcher.inside

    def record(self, conversation_id: str) -> Record | None:
        """Return a conversation that was started by this client."""
        with self._lock:
            return self._records.get(conversation_id)

    # -- calls ------------------------------------------------------------------------------

    def connect(self, seconds: float | None) -> None:
        """Open a connection, or wait for the one being opened; raise if there is none in time."""
        with self._locked():
            if self._state == "connected":
                return
            if self._current is None:
                self._open(seconds)
            opening = self._opening
        if not opening.wait(seconds):
            raise ConnectTimeoutError(
                f"no connection to {self.settings.endpoint} within {seconds:g} s"
            )
        opening.get()

    def submit(self, entry: Entry) -> None:
        """Put a call into the queue, and on the wire if that is free."""
        with self._locked():
            self._enqueue(entry)

    def submit_turn(self, entry: Entry, if_busy: Literal["queue", "cancel", "raise"]) -> None:
        """The same for a message, minding the conversation's unfinished turns."""
        with self._locked():
            if if_busy != "queue":
                busy = self._unfinished(entry.record)
                if busy and if_busy == "raise":
                    raise LocalProtocolError(
                        "the conversation has an unfinished turn; wait for it, or pass "
                        'if_busy="queue" or "cancel"'
                    )
                if busy and busy[0] is self._on_wire:
                    self._end(busy[0], TurnCancelledError("the turn was cancelled"))
            self._enqueue(entry)

    def claim_identity(self, impersonate_user_id: str | None) -> None:
        """Fix whom the client acts as, or raise `IdentityConflictError` (promise 7)."""
        wanted = impersonate_user_id or self.settings.impersonate_user_id
        with self._lock:
            if self._identity is None:
                self._identity = (wanted,)
            if self._identity != (wanted,):
                raise IdentityConflictError(
                    "impersonate_user_id: this client already acts as "
                    f"{'another user' if self._identity[0] else 'its own user'}; "
                    "make a client for each user"
                )

    def cancel(self, record: Record) -> None:
        """Cancel the conversation's running turn, else its oldest queued one, else nothing."""
        with self._locked():
            for entry in self._unfinished(record)[:1]:
                self._end(entry, TurnCancelledError("the turn was cancelled"))

    def end(self, entry: Entry, error: FluxbaseChatError, *, tell: bool = False) -> None:
        """End an entry for its caller: with `tell`, callbacks hear of it as a failure."""
        with self._locked():
            self._end(entry, error, tell=tell)

    def give_up(self, entry: Entry) -> None:
        """Stop waiting for a start: its late answer reaches nobody else."""
        with self._locked():
            if not entry.ended:
                opened = self._state == "connected"
                self._end(
                    entry,
                    ChatTimeoutError("the conversation was not started in time", phase="start")
                    if opened
                    else ConnectTimeoutError("the conversation was not started: no connection"),
                    tell=True,
                )

    def unfinished(self) -> list[Entry]:
        """Return all that was asked and is not answered."""
        with self._lock:
            return [*([self._on_wire] if self._on_wire else []), *self._queue]

    def wait_for_callbacks(self, deadline: Deadline) -> bool:
        """Wait until all that was posted was told; `False` when the deadline comes first."""
        dispatcher = self._dispatcher
        return dispatcher is None or dispatcher.inside or dispatcher.wait_idle(deadline)

    def use_token(self, token: object) -> None:
        """Take a token for the next connection; raise `ConfigurationError` for a bad one."""
        self.settings = attrs.evolve(self.settings, token=token)  # type: ignore[arg-type]

    def disconnect(self, seconds: float | None) -> None:
        """End every wait, the connection and the threads; idempotent."""
        deadline = Deadline(seconds, self.clock)
        with self._locked():
            self._state = "disconnected"
            error = NotConnectedError("the client was disconnected")
            entries = [*([self._on_wire] if self._on_wire else []), *self._queue]
            self._queue.clear()
            self._on_wire = None
            current, self._current = self._current, None
            connections = [*([current] if current else []), *self._draining]
            self._draining.clear()
            dispatcher = self._dispatcher
            # Before the waits end: what they wake must find the connection closing.
            for connection in connections:
                connection.close(seconds if connection is current else 0.0)
            opening = self._opening
            self._then(lambda: opening.fail(error))
            for entry in entries:
                self._resolve(entry, error, tell=False)
            self._tell_loss(error)
            self._told = "nothing"
            self._dispatcher = None
        for connection in connections:
            left = deadline.remaining()
            # Its thread waits for nothing but the same deadline, and then ends by itself.
            connection.join(None if left is None else left + _JOIN_SECONDS)
        if dispatcher is not None:
            dispatcher.stop(deadline)

    # -- under the lock ---------------------------------------------------------------------

    def _enqueue(self, entry: Entry) -> None:
        if self._state == "disconnected":
            raise NotConnectedError(
                "the client was disconnected", sent=False, hint="connect() opens it again"
            )
        if self._identity is None:
            self._identity = (self.settings.impersonate_user_id,)
        self._queue.append(entry)
        self._advance()

    def _unfinished(self, record: Record) -> list[Entry]:
        """The conversation's turns: the one on the wire, then the queued ones in order."""
        entries = [*([self._on_wire] if self._on_wire else []), *self._queue]
        return [e for e in entries if e.record is record and e.answer is not None]

    def _open(self, seconds: float | None) -> None:
        self._numbers += 1
        if self._state in {"new", "disconnected"}:
            self._context = contextvars.copy_context()
        self._state = "connecting" if self._told == "nothing" else "reconnecting"
        self._opening = Outcome()
        connection = Connection(
            self.settings, self, clock=self.clock, connect=seconds, number=self._numbers
        )
        self._current = connection
        if self._dispatcher is None:
            self._dispatcher = Dispatcher(self._callbacks, self._numbers)
        dispatcher = self._dispatcher
        self._then(lambda: self._start(connection, dispatcher))

    def _start(self, connection: Connection, dispatcher: Dispatcher) -> None:
        try:
            dispatcher.start()
            connection.start()
        except FluxbaseChatError as error:
            self.open_failed(connection, error)

    def _advance(self) -> None:
        """Put the queue's head on the wire if that is free; open a connection if there is none."""
        if self._queue and self._current is None:
            self._open(self.settings.timeouts.connect)
        while self._queue and self._on_wire is None and self._current and self._current.ready:
            self._write(self._queue.popleft(), self._current)

    def _write(self, entry: Entry, connection: Connection) -> None:
        """Write what the entry needs next."""
        record = entry.record
        identity = self._identity[0] if self._identity else None
        request: Request
        if (
            entry.answer is None
            or record.id is None
            or connection.needs_start(record.id, record.chatbot, record.namespace)
        ):
            request = entry.start(identity)
        else:
            request = entry.message()
        try:
            written = connection.send(request)
        except FluxbaseChatError as error:
            self._resolve(entry, error, tell=True)
            return
        if not written:
            # It has just ended, and is about to say so: what was not written goes on after it.
            self._queue.appendleft(entry)
            return
        entry.request = request
        self._on_wire = entry
        if entry.answer is not None and isinstance(request, Message):
            entry.answer.sent(request.conversation_id)
            record.answer = entry.answer

    def _tell_loss(self, error: FluxbaseChatError) -> None:
        if self._told == "connected":
            self._told = "lost"
            self._post([events.Disconnected(reason=str(error))])

    def _end(self, entry: Entry, error: FluxbaseChatError, *, tell: bool = False) -> None:
        """End an entry wherever it is. What it leaves on the wire surfaces nowhere."""
        if entry.ended:
            return
        if entry in self._queue:
            self._queue.remove(entry)
        elif entry is self._on_wire and self._current is not None:
            self._on_wire = None
            if isinstance(entry.request, Message):
                if self._current.cancel(entry.request):
                    self._drain()
            elif entry.request is not None:
                # Its answer is still to come, and frees the wire then.
                entry.request.silenced = True
        self._resolve(entry, error, tell=tell)
        self._advance()

    def _drain(self) -> None:
        """Leave the connection to end by itself, and go on over a new one."""
        assert self._current is not None  # noqa: S101 - its turn was just cancelled
        self._draining.append(self._current)
        self._current = None
        if len(self._draining) > _MAX_DRAINING:
            self._draining.popleft().close()
        self._open(self.settings.timeouts.connect)

    def _resolve(
        self,
        entry: Entry,
        error: FluxbaseChatError,
        *,
        tell: bool,
        items: Sequence[Item | Failure] = (),
    ) -> None:
        """Fail an entry: `tell` callbacks that the client found it, or `items` that came."""
        error = fresh(error)
        error.sent = entry.sent
        if isinstance(error, ConnectionLostError):
            error.retryable = not error.sent
        record, answer, outcome = entry.record, entry.answer, entry.outcome
        if tell:
            items = [*items, Failure(error, _code(error), record.id or "")]

        told = bool(items) and self._callbacks.on_error is not None

        def resolve() -> None:
            if outcome is not None:
                outcome.fail(error)
            elif answer is not None:
                answer.fail(error, told=told)

        self._then(resolve)
        self._release(entry)
        self._post(items, entry, last=True)

    def _release(self, entry: Entry) -> None:
        """The entry has ended: its record keeps the text, not the answer."""
        record, answer = entry.record, entry.answer
        if answer is not None and record.answer is answer:
            record.text = answer.current_text()
            record.answer = None
            self._texts[id(record)] = record
            self._texts.move_to_end(id(record))
            if len(self._texts) > _MAX_TEXTS:
                self._texts.popitem(last=False)[1].text = ""

    def _post(
        self,
        items: Sequence[Item | Failure],
        entry: Entry | None = None,
        *,
        last: bool = False,
    ) -> None:
        """Have callbacks told, once the lock is released."""
        dispatcher = self._dispatcher
        context = entry.context if entry is not None else self._context
        answer = entry.answer if entry is not None else None
        if dispatcher is not None and self._callbacks.any:
            post = Post(context, items, answer, last)
            self._then(lambda: dispatcher.post(post))
        elif last and answer is not None:
            self._then(answer.callbacks_run.set)

    # -- Sink: the I/O threads ---------------------------------------------------------------

    def opened(self, connection: Connection) -> None:
        """Go on with the queue."""
        with self._locked():
            if connection is not self._current:
                return
            self._state = "connected"
            opening = self._opening
            self._then(opening.resolve)
            if self._told != "connected":
                first = self._told == "nothing"
                self._post([events.Connected() if first else events.Reconnected()])
                self._told = "connected"
            self._advance()

    def open_failed(self, connection: Connection, error: FluxbaseChatError) -> None:
        """Fail all that waits for the connection; none of it was sent."""
        with self._locked():
            if connection is not self._current:
                return
            self._current = None
            self._state = "lost"
            self._tell_loss(error)
            opening = self._opening
            self._then(lambda: opening.fail(error))
            while self._queue:
                self._resolve(self._queue.popleft(), error, tell=True)

    def ended(self, connection: Connection, error: FluxbaseChatError, lost: list[Request]) -> None:
        """Fail what was on the wire; what was not goes over the next connection."""
        del lost  # the entry on the wire says it
        with self._locked():
            if connection in self._draining:
                self._draining.remove(connection)
            if connection is not self._current:
                return
            self._current = None
            self._state = "lost"
            entry, self._on_wire = self._on_wire, None
            self._tell_loss(error)
            if entry is not None:
                entry.restarts += 1
                if entry.sent or entry.restarts > self.settings.reconnect_attempts:
                    self._resolve(entry, error, tell=True)
                else:
                    entry.request = None
                    self._queue.appendleft(entry)
            self._advance()

    def expired(self, connection: Connection, request: Request, phase: Due) -> None:
        """End what has used up its time, as a cancel does."""
        entry: Entry = request.owner
        with self._locked():
            if connection is not self._current:
                return
            if isinstance(request, Start):
                # A server that does not answer a start in time answers nothing behind it either.
                self._current = None
                self._on_wire = None
                connection.close()
                if not request.silenced:
                    error = ChatTimeoutError(
                        f"the server did not start the conversation within {request.limit:g} s",
                        phase="start",
                    )
                    self._resolve(entry, error, tell=True)
                self._open(self.settings.timeouts.connect)
            elif phase == "idle":
                self._end(
                    entry,
                    ChatTimeoutError(f"nothing came for {request.idle:g} s", phase="idle"),
                    tell=True,
                )
            else:
                self._end(
                    entry,
                    ChatTimeoutError(
                        f"the answer was not whole after {request.limit:g} s", phase="turn"
                    ),
                    tell=True,
                )

    def delivered(self, connection: Connection, deliveries: list[Delivery], size: int) -> None:
        """Hand on what arrived to those it is for."""
        if connection is not self._current:
            return  # a cancelled turn's connection: nothing of it surfaces
        turn: list[Item] = []
        entry: Entry | None = None
        for delivery in deliveries:
            request, item = delivery.request, delivery.item
            if request is None:
                if not isinstance(item, Malformed):
                    with self._locked():
                        self._post([item])
            elif request.silenced:
                with self._locked():
                    self._advance()
            elif isinstance(request, Start):
                self._answered(connection, request.owner, item)
            elif not delivery.final:
                entry = request.owner
                turn.append(item)
            else:
                self._feed(request.owner, turn, size)
                self._finish(request.owner, item)
                turn, size = [], 0
        if entry is not None:
            self._feed(entry, turn, size)

    def _feed(self, entry: Entry, items: list[Item], size: int) -> None:
        answer = entry.answer
        assert answer is not None  # noqa: S101 - a message has one
        if not items or not answer.feed(items, size):
            return
        with self._locked():
            self._post(items, entry)
            if answer.size > self.settings.limits.turn_bytes:
                limit = self.settings.limits.turn_bytes
                self._end(
                    entry,
                    RemoteProtocolError(f"the answer is larger than {limit:,} bytes"),
                    tell=True,
                )

    def _finish(self, entry: Entry, item: Item) -> None:
        """A turn has ended on the wire: the next goes on it, then its waiters hear."""
        answer = entry.answer
        assert answer is not None  # noqa: S101 - a message has one
        with self._locked():
            if entry.ended or entry is not self._on_wire:
                return
            self._on_wire = None
            if isinstance(item, events.Done):
                answer.feed([item], 0)
                self._release(entry)
                self._then(lambda: answer.finish(item))
                self._post([item], entry, last=True)
            elif isinstance(item, (events.ErrorEvent, Malformed)):
                malformed = isinstance(item, Malformed)
                self._resolve(
                    entry, error_of(item), tell=malformed, items=[] if malformed else [item]
                )
            else:
                error = TurnCancelledError("the server cancelled the turn")
                self._resolve(entry, error, tell=False, items=[item])
            self._advance()

    def _answered(self, connection: Connection, entry: Entry, item: Item) -> None:
        """A start was answered: it ends a start, and a message follows it."""
        with self._locked():
            if entry is not self._on_wire:
                return
            self._on_wire = None
            if isinstance(item, events.ChatStarted):
                self._post([item], entry)
                self._started(connection, entry, item.conversation_id)
            elif isinstance(item, (events.ErrorEvent, Malformed)):
                malformed = isinstance(item, Malformed)
                self._resolve(
                    entry, error_of(item), tell=malformed, items=[] if malformed else [item]
                )
                self._forget_identity()
            self._advance()

    def _started(self, connection: Connection, entry: Entry, received: str) -> None:
        record = entry.record
        requested = entry.resume if entry.outcome is not None else record.id
        moved = requested is not None and requested != received
        if moved and record.on_lost == "raise":
            # The new conversation is there and usable; the old one stays as it is (PROTOCOL 4.3).
            other = Record(chatbot=record.chatbot, namespace=record.namespace, id=received)
            self._records[received] = other
            error = ConversationNotResumedError(
                "the server has lost the conversation and opened another",
                requested=requested or "",
                received=received,
                hint="the new one is usable under its own id",
            )
            self._resolve(entry, error, tell=True)
            return
        if entry.outcome is None:
            if moved:
                self._records.pop(requested or "", None)
            record.id = received
            self._records[received] = record
            self._write(entry, connection)
            return
        # A known one may have been started again under another chatbot.
        known = self._records.setdefault(received, record)
        known.id, known.chatbot, known.namespace = received, record.chatbot, record.namespace
        outcome = entry.outcome
        self._then(lambda: outcome.resolve(received))

    def _forget_identity(self) -> None:
        """A first start that failed has fixed no identity."""
        if self.settings.impersonate_user_id is None and not self._records and not self._queue:
            self._identity = None


def _code(error: FluxbaseChatError) -> str:
    """The codes that `on_error` gets for what the client found."""
    if isinstance(error, TimeoutError):
        return "TIMEOUT"
    return "AUTH_FAILED" if isinstance(error, AuthenticationError) else "CONNECTION_LOST"
