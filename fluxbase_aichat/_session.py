"""What outlives a connection: the queue, the entry on the wire, and connections that drain.

One lock guards all of it; what must happen without it takes effect on its release (`_telling`).

    entry:  queued ──> its start on the wire ──> its message on the wire ──> ended
               │ └───── a start alone ends here ──┘          │
               └── cancelled, expired, disconnected: ended ──┘

One entry is on the wire at a time (promise 1). A conversation's start and its message are one
entry: nothing goes between them, so another chatbot cannot answer the message.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Literal

import attrs

from . import events
from ._answer import Answer, Outcome, fresh
from ._connection import Connection
from ._conversations import Conversations
from ._deadline import Clock, Deadline
from ._dispatch import Callbacks
from ._entry import Entry, Record
from ._net import Waker
from ._protocol import Delivery, Message, Request, Start, error_of
from ._reconnect import GOOD_SECONDS, Backoff
from ._telling import Effects, Telling
from ._watch import Due
from ._wire import Item, Malformed, fast_loads
from .config import Settings
from .errors import (
    ChatTimeoutError,
    ConnectError,
    ConnectTimeoutError,
    FluxbaseChatError,
    LocalProtocolError,
    NotConnectedError,
    RemoteProtocolError,
    TurnCancelledError,
)

__all__ = ["Session", "State"]

State = Literal["new", "connecting", "connected", "reconnecting", "lost", "disconnected"]

# Cancelled connections that drain out of sight; the server ends each when its turn has ended.
_MAX_DRAINING = 4
# The errors that say that a connection acts as nobody else (start_errors, impersonation).
_NOT_IMPERSONATED = frozenset({"FORBIDDEN", "USER_ERROR", "USER_NOT_FOUND"})
# What an I/O thread may need for its last steps when its deadline has come.
_JOIN_SECONDS = 1.0


class Session:
    """One client's state. All methods are thread-safe; those of `Sink` are the I/O threads'."""

    def __init__(self, settings: Settings, callbacks: Callbacks, clock: Clock) -> None:
        self.settings: Settings = settings
        self.clock: Clock = clock
        self._conversations = Conversations(settings.impersonate_user_id)
        self._answers: weakref.WeakSet[Answer] = weakref.WeakSet()
        fast_loads()  # here, so that no I/O thread has to import anything
        self._begin(callbacks)

    def _begin(self, callbacks: Callbacks) -> None:
        """Be without a connection, a thread or a call: at first, and in the child of a fork."""
        settings = self.settings
        self._effects = Effects()
        # Guards all below. It is never taken twice: it is asked whether it is (`_put_off`).
        self._lock = threading.RLock()
        self._telling = Telling(callbacks, self._effects, self._resume, self._entry_ended)
        self._state: State = "new"
        self._queue: deque[Entry] = deque()
        self._on_wire: Entry | None = None
        self._current: Connection | None = None
        self._opening = Outcome()
        self._opened_at = 0.0
        self._draining: deque[Connection] = deque()
        self._numbers = 0
        import random  # noqa: PLC0415 - a millisecond of every import, and only clients need it

        self._backoff = Backoff(
            settings.reconnect_attempts, settings.reconnect_delay, random.random
        )
        # A connection that was there is being replaced, as often as the backoff allows. One that
        # a call asks for is tried once, for that call.
        self._recovering = False
        # Who asked for the connection gave it less time than others do, or more.
        self._impatient = self._patient = False
        self._abandoned = ""  # why nothing can be begun any more
        self._when_idle: Callable[[], object] | None = None
        self._blocked = 0
        self._paused = False
        self._wakers: set[Waker] = set()  # of the REST calls that are made for handles

    # -- what it knows ----------------------------------------------------------------------

    @property
    def state(self) -> State:
        """What the client is doing about its connection."""
        return self._state

    @property
    def inside_callback(self) -> bool:
        """Whether the caller runs inside a callback."""
        return self._telling.inside_callback

    @property
    def callback_errors(self) -> int:
        """How many callbacks have raised."""
        return self._telling.callback_errors

    def record(self, conversation_id: str) -> Record | None:
        """Return a conversation that was started by this client."""
        with self._effects, self._lock:
            return self._conversations.get(conversation_id)

    def unfinished(self) -> list[Entry]:
        """Return all that was asked and is not answered."""
        with self._effects, self._lock:
            return self._unfinished()

    def is_latest(self, entry: Entry) -> bool:
        """Whether nothing was sent in an entry's conversation behind its message."""
        with self._effects, self._lock:
            return self._conversations.is_latest(entry)

    @contextlib.contextmanager
    def ending(self, waker: Waker) -> Iterator[None]:
        """Have `disconnect` stop a waker too."""
        try:
            with self._effects, self._lock:
                self._wakers.add(waker)
            yield
        finally:
            with self._effects, self._lock:
                self._wakers.discard(waker)

    # -- pausing for slow callbacks ---------------------------------------------------------

    @contextlib.contextmanager
    def blocking(self) -> Iterator[None]:
        """Say that a thread waits for what is read: reading does not pause meanwhile."""
        counted = False
        try:
            with self._effects, self._lock:
                self._blocked += 1
                counted = True
            self._resume()
            yield
        finally:
            if counted:
                with self._effects, self._lock:
                    self._blocked -= 1

    def paused(self) -> bool:
        """Whether reading has to wait until callbacks have taken what there is (promise 9)."""
        # Set before looking: whoever changes what is looked at sees it afterwards.
        self._paused = True
        limit = self.settings.limits.backlog_bytes
        self._paused = self._telling.backlog > limit and self._blocked == 0
        return self._paused

    def _resume(self) -> None:
        connection = self._current
        if self._paused and connection is not None:
            connection.wake()

    # -- calls ------------------------------------------------------------------------------

    def connect(self, seconds: float | None) -> None:
        """Open a connection, or wait for the one being opened; raise if there is none in time."""
        deadline = Deadline(seconds, self.clock)
        while not self._connect(deadline, seconds):
            pass

    def _connect(self, deadline: Deadline, seconds: float | None) -> bool:
        """See `connect`; `False` when another call's connection had less time than this call."""
        with self._effects, self._lock:
            self._check_not_abandoned()
            if self._state == "connected":
                return True
            patience = deadline.remaining()
            mine = self._current is None
            if mine:
                self._recovering = False
                self._open(patience)
                # It ends at the same deadline, and says what it was waiting for.
                patience = None if patience is None else patience + _JOIN_SECONDS
            opening, connection = self._opening, self._current
        with self.blocking():
            opened = opening.wait(patience)
        if not opened:
            raise ConnectTimeoutError(
                f"no connection to {self.settings.endpoint} within {seconds:g} s"
            )
        try:
            opening.get()
        except ConnectTimeoutError:
            if deadline.expired or (mine and not (connection and connection.hastened)):
                raise
            return False
        return True

    def submit(self, entry: Entry, identity: tuple[str | None] | None = None) -> None:
        """Put a call into the queue, and on the wire if that is free.

        With an `identity` it fixes whom the client acts as, or raises `IdentityConflictError`: in
        one step, because a start that fails in between would release it.
        """
        with self._effects, self._lock:
            if identity is not None:
                self._conversations.claim(identity[0])
            self._enqueue(entry)

    def submit_turn(self, entry: Entry, if_busy: Literal["queue", "cancel", "raise"]) -> None:
        """Put a message into the queue, minding the conversation's unfinished turns."""
        with self._effects, self._lock:
            busy = [] if if_busy == "queue" else self._turns(entry.record)
            if busy and if_busy == "raise":
                raise LocalProtocolError(
                    "the conversation has an unfinished turn; wait for it, or pass "
                    'if_busy="queue" or "cancel"'
                )
            if busy and busy[0] is self._on_wire:
                self._cancel(busy[0])
            if entry.answer is not None:
                self._answers.add(entry.answer)
            self._enqueue(entry)

    def cancel(self, record: Record) -> None:
        """Cancel the conversation's running turn, else its oldest queued one, else nothing."""
        if self._put_off(lambda: self.cancel(record)):
            return
        with self._effects, self._lock:
            for entry in self._turns(record)[:1]:
                self._cancel(entry)

    def cancel_entry(self, entry: Entry) -> None:
        """Cancel one call."""
        if self._put_off(lambda: self.cancel_entry(entry)):
            return
        with self._effects, self._lock:
            self._cancel(entry)

    def give_up(self, entry: Entry, seconds: float | None = None) -> None:
        """End a call whose own time is up; what comes late for it reaches nobody else."""
        with self._effects, self._lock:
            error: FluxbaseChatError
            within = "in time" if seconds is None else f"within {seconds:g} s"
            if entry.sent is not False and entry.answer is not None:
                error = ChatTimeoutError(f"the answer was not whole {within}", phase="turn")
            elif self._state != "connected":
                error = ConnectTimeoutError(f"there was no connection {within}")
            elif entry in self._queue:
                error = ChatTimeoutError(
                    f"nothing was sent {within}: what was asked before is unanswered", phase="start"
                )
            else:
                error = ChatTimeoutError(
                    f"the conversation was not started {within}", phase="start"
                )
            self._end(entry, error)

    def use_token(self, token: Any) -> None:
        """Take a token for the next connection; raise `ConfigurationError` for a bad one."""
        self.settings = attrs.evolve(self.settings, token=token)

    def wait_for_callbacks(self, deadline: Deadline) -> bool:
        """Wait until all that was posted was told; `False` when the deadline comes first."""
        return self.inside_callback or self._telling.dispatcher.wait_idle(deadline)

    def untold(self) -> int:
        """How many turns are unfinished whose end callbacks would hear of. Takes no lock."""
        return self._telling.untold([e for e in [*list(self._queue), self._on_wire] if e])

    def abandon(self) -> list[Connection]:
        """End everything at once, and return what ends; nobody waits any more.

        Takes no lock, and does not wait: the garbage collector may be inside. So the I/O thread
        ends the callback thread; where there is no connection, that was told to end before.
        """
        self._abandoned = "the interpreter is shutting down"
        connections = self._connections()
        for connection in connections:
            connection.abandon()
        return connections

    def after_fork(self) -> None:
        """Begin anew in a child process: without its threads, and without a word to the server.

        What was pending fails, the conversations stay known. Nothing else runs in the child yet.
        """
        error = NotConnectedError(
            "the process was forked: this belongs to the parent", hint="the next call connects"
        )
        entries = self._unfinished()
        for connection in self._connections():
            connection.after_fork()
        self._telling.dispatcher.after_fork()
        opening = self._opening
        disconnected = self._state == "disconnected"
        self._begin(self._telling.callbacks)
        self._state = "disconnected" if disconnected else "new"
        opening.after_fork()
        opening.fail(error)
        for entry in entries:
            entry.after_fork(error)
        # Some have just left the queue, and who waits for them would have heard in a moment.
        for answer in list(self._answers):
            answer.after_fork(fresh(error))

    def disconnect(self, seconds: float | None) -> None:
        """End every wait, the connection and the threads; idempotent."""
        if sys.is_finalizing():
            return  # the threads have stopped where they were, with the locks they held
        if self._put_off(lambda: self.disconnect(seconds)):
            return
        deadline = Deadline(seconds, self.clock)
        with self._effects, self._lock:
            self._state = "disconnected"
            error = NotConnectedError("the client was disconnected")
            entries = self._unfinished()
            self._queue.clear()
            self._on_wire = None
            connections = self._connections()
            current, self._current = self._current, None
            self._draining.clear()
            # Before the waits end: what they wake must find the connection closing.
            for connection in connections:
                connection.close(seconds if connection is current else 0.0)
            self._fail_opening(error)
            for waker in self._wakers:
                waker.stop()
            for entry in entries:
                self._conversations.release(entry)
                self._telling.fail(entry, error)
            self._telling.end(error)
            self._rest()
            self._backoff.reset()
        self._telling.dispatcher.stop(deadline)
        try:
            for connection in connections:
                left = deadline.remaining()
                # Its thread waits for nothing but the same deadline, and then ends by itself.
                connection.join(None if left is None else left + _JOIN_SECONDS)
        except KeyboardInterrupt:
            for connection in connections:
                connection.abandon()
            raise

    def _put_off(self, call: Callable[[], object]) -> bool:
        """Whether the thread is at work in here: then it makes the call when it leaves.

        The garbage collector may run anywhere, and with it somebody's `__del__`.
        """
        inside = self._lock._is_owned() or any(c.at_work for c in self._connections())  # type: ignore[attr-defined]  # noqa: SLF001
        if inside:
            self._effects.then(lambda: self._abandoned or call())
        return inside

    # -- for a pool -------------------------------------------------------------------------

    def when_idle(self, then: Callable[[], object]) -> None:
        """Have `then` called when nothing that was asked is unfinished: in any thread, no lock."""
        if self._put_off(lambda: self.when_idle(then)):
            return
        with self._effects, self._lock:
            self._when_idle = then
            self._effects.then(self._entry_ended)

    def _entry_ended(self) -> None:
        if self._when_idle is None:
            return
        with self._effects, self._lock:
            if self._when_idle is not None and not self._unfinished():
                self._effects.then(self._when_idle)
                self._when_idle = None

    def forget(self) -> bool:
        """Forget all conversations; `False` when the connection is not as good as a new one."""
        with self._effects, self._lock:
            connection = self._current
            good = (
                self._state == "connected"
                and connection is not None
                and connection.ready  # no caller has left a start without an answer there
                and not self._draining
                and self._conversations.acts_as_told
            )
            self._conversations.forget()
            if good and connection is not None:
                connection.forget()
                # Lost while nobody has it, it is not replaced: its token may be an old one by then.
                self._recovering = False
            return good

    def lent(self) -> None:
        """Have a connection that was forgotten replaced again when it gets lost."""
        with self._effects, self._lock:
            self._recovering = self._state == "connected"

    def retired(self, why: str) -> Session:
        """Return what its handles get in its place when they may begin nothing more."""
        session = Session(self.settings, Callbacks(), self.clock)
        session._state = "disconnected"
        session._abandoned = why
        return session

    # -- under the lock: the queue ----------------------------------------------------------

    def _check_not_abandoned(self) -> None:
        if self._abandoned:
            raise NotConnectedError(self._abandoned, sent=False)

    def _connections(self) -> list[Connection]:
        """Return all that there are, the current one first. Takes no lock."""
        current = self._current
        return [*([current] if current else []), *self._draining]

    def _unfinished(self) -> list[Entry]:
        return [*([self._on_wire] if self._on_wire else []), *self._queue]

    def _turns(self, record: Record) -> list[Entry]:
        """Return a conversation's turns: the one on the wire, then the queued ones in order."""
        return [e for e in self._unfinished() if e.record.same(record) and e.answer is not None]

    def _enqueue(self, entry: Entry) -> None:
        self._check_not_abandoned()
        if self._state == "disconnected":
            raise NotConnectedError(
                "the client was disconnected", sent=False, hint="connect() opens it again"
            )
        self._queue.append(entry)
        limit = self.settings.timeouts.connect
        if self._patient and limit is not None and self._current is not None:
            self._patient = False
            self._current.hasten(limit)
        self._advance()

    def _advance(self) -> None:
        """Put the queue's head on the wire if that is free; open a connection if there is none."""
        if self._queue and self._current is None:
            self._recovering = False
            self._open(self.settings.timeouts.connect)
        while self._queue and self._on_wire is None and self._current and self._current.ready:
            self._write(self._queue.popleft(), self._current)

    def _write(self, entry: Entry, connection: Connection) -> None:
        """Write what the entry needs next."""
        record, answer = entry.record, entry.answer
        request: Request
        if answer is None and entry.resume is None and record.id is not None:
            # Another thread's call has started the same conversation meanwhile.
            self._telling.resolve(entry, record.id)
            return
        if (
            answer is None
            or record.id is None
            or connection.needs_start(record.id, record.chatbot, record.namespace)
        ):
            request = entry.start(self._conversations.identity)
        else:
            request = entry.message()
        # Before it is: Ctrl-C must find it where it can be cancelled.
        previous, entry.request, self._on_wire = entry.request, request, entry
        try:
            written = connection.send(request)
        except FluxbaseChatError as error:
            entry.request, self._on_wire = previous, None
            self._fail(entry, error)
            return
        if not written:
            # It has just ended, and is about to say so: what was not written goes on after it.
            entry.request, self._on_wire = previous, None
            self._queue.appendleft(entry)
            return
        if answer is not None and isinstance(request, Message):
            answer.sent(request.conversation_id)
            self._conversations.written(record, answer)
            self._conversations.wrote(entry)

    def _cancel(self, entry: Entry) -> None:
        if not entry.ended:
            self._take_off(entry)
            self._conversations.release(entry)
            self._telling.fail(entry, TurnCancelledError("the turn was cancelled"))
            self._advance()

    def _end(self, entry: Entry, error: FluxbaseChatError) -> None:
        """End an entry as a cancel does, for a reason that the client found."""
        if not entry.ended:
            self._take_off(entry)
            self._fail(entry, error)
            self._advance()

    def _fail(self, entry: Entry, error: FluxbaseChatError) -> None:
        self._conversations.release(entry)
        self._telling.fail_found(entry, error)

    def _take_off(self, entry: Entry) -> None:
        """Take an entry from the queue or the wire; what it leaves there surfaces nowhere."""
        if entry in self._queue:
            self._queue.remove(entry)
        elif entry is self._on_wire and self._current is not None:
            self._on_wire = None
            if not isinstance(entry.request, Message):
                assert entry.request is not None  # noqa: S101 - it is on the wire
                entry.request.silenced = True  # its answer frees the wire
            elif self._current.cancel(entry.request):
                self._draining.append(self._current)
                if len(self._draining) > _MAX_DRAINING:
                    self._draining.popleft().close()
                self._replace()

    # -- under the lock: the connection -----------------------------------------------------

    def _open(self, seconds: float | None, delay: float = 0.0) -> None:
        """Open a connection in place of the current one."""
        limit = self.settings.timeouts.connect
        self._impatient = seconds is not None and (limit is None or seconds < limit)
        self._patient = limit is not None and (seconds is None or seconds > limit)
        self._numbers += 1
        if not self._telling.connected_before:
            self._telling.begin()
        self._state = "reconnecting" if self._telling.connected_before else "connecting"
        connection = Connection(
            self.settings,
            self,
            clock=self.clock,
            connect=seconds,
            number=self._numbers,
            delay=delay,
        )
        self._telling.dispatcher.want()
        self._effects.then(lambda: self._start(connection))
        self._current = connection

    def _replace(self) -> None:
        """Go on over a new connection at once: this one was left on purpose."""
        self._recovering = True
        self._open(self.settings.timeouts.connect)

    def _recover(self, error: FluxbaseChatError) -> bool:
        """There is no connection: try again in a while; `False` where that is over."""
        self._current = None
        self._telling.lost(error)
        delay = self._backoff.next(error) if self._recovering else None
        if delay is None:
            return False
        self._telling.post([events.Reconnecting(attempt=self._backoff.attempt, delay=delay)])
        self._open(self.settings.timeouts.connect, delay)
        return True

    def _give_up(self, error: FluxbaseChatError) -> None:
        """There will be no connection: fail all that waits for one; none of it was sent."""
        self._state = "lost"
        if isinstance(error, ConnectError):
            error.attempts = self._backoff.attempt if self._recovering else 1
        self._fail_opening(error)
        while self._queue:
            self._fail(self._queue.popleft(), error)
        self._conversations.start_failed()
        self._rest()

    def _fail_opening(self, error: FluxbaseChatError) -> None:
        opening, self._opening = self._opening, Outcome()
        self._effects.then(lambda: opening.fail(error))

    def _rest(self) -> None:
        """Have the callback thread end behind what is told, unless it is wanted again by then."""
        dispatcher = self._telling.dispatcher
        wants = dispatcher.wants
        self._effects.then(lambda: dispatcher.rest(wants))

    def _start(self, connection: Connection) -> None:
        """Start the threads; the lock is not held."""
        try:
            self._telling.dispatcher.start()
            connection.start()
        except FluxbaseChatError as error:
            connection.discard()
            self.open_failed(connection, error)
        if self._abandoned:
            connection.abandon()  # it came to be while the others ended

    # -- Sink: the I/O threads --------------------------------------------------------------

    def settle(self) -> None:
        """See `_put_off`: an idle connection may not come here for another reason for long."""
        with self._effects:
            pass

    def opened(self, connection: Connection) -> None:
        """Go on with the queue."""
        with self._effects, self._lock:
            if connection is self._current:
                self._state = "connected"
                self._patient = False
                self._opened_at = self.clock()
                self._recovering = True
                # Who connects from now on waits for another opening: this one is decided.
                opening, self._opening = self._opening, Outcome()
                self._effects.then(opening.resolve)
                self._telling.opened()
                self._advance()

    def open_failed(self, connection: Connection, error: FluxbaseChatError) -> None:
        """Try again, or give up."""
        with self._effects, self._lock:
            if self._abandoned:
                self._effects.then(self._telling.dispatcher.abandon)
            elif connection is self._current and not self._recover(error):
                if isinstance(error, ConnectTimeoutError) and self._impatient and self._queue:
                    self._fail_opening(error)
                    self._open(self.settings.timeouts.connect)
                else:
                    self._give_up(error)

    def ended(
        self, connection: Connection, error: FluxbaseChatError, unsent: list[Request]
    ) -> None:
        """Fail what was on the wire; what was not goes over the next connection."""
        with self._effects, self._lock:
            if connection in self._draining:
                self._draining.remove(connection)
            if self._abandoned:
                self._effects.then(self._telling.dispatcher.abandon)
                return
            if connection is not self._current:
                return
            if self.clock() - self._opened_at >= GOOD_SECONDS:
                self._backoff.reset()
            self._telling.lost(error)
            entry, self._on_wire = self._on_wire, None
            if entry is not None:
                if entry.request in unsent:
                    entry.request = None
                    self._conversations.unwrote(entry)
                entry.restarts += 1
                # Once is allowed also where reconnecting is off: it was not written yet.
                again = max(1, self.settings.reconnect_attempts)
                if entry.sent is not False or entry.restarts > again:
                    self._fail(entry, error)
                else:
                    entry.request = None
                    self._queue.appendleft(entry)
            if not self._recover(error):
                if self._backoff.attempt:  # all were made, and it is lost again before an answer
                    self._give_up(error)
                    return
                self._state = "lost"
                self._advance()  # what is queued is a call each, and tries once more
                if not self._queue:
                    self._rest()

    def expired(self, connection: Connection, request: Request, phase: Due) -> None:
        """End what has used up its time, as a cancel does."""
        entry: Entry = request.owner
        with self._effects, self._lock:
            if connection is not self._current:
                return
            if isinstance(request, Message):
                if phase == "idle":
                    late = ChatTimeoutError(f"nothing came for {request.idle:g} s", phase="idle")
                else:
                    late = ChatTimeoutError(
                        f"the answer was not whole after {request.limit:g} s", phase="turn"
                    )
                self._end(entry, late)
                return
            # A server that does not answer a start answers nothing behind it either.
            self._on_wire = None
            connection.close()
            if not request.silenced:
                late = ChatTimeoutError(
                    f"the server did not start the conversation within {request.limit:g} s",
                    phase="start",
                )
                self._fail(entry, late)
            self._replace()

    def delivered(self, connection: Connection, deliveries: list[Delivery], size: int) -> None:
        """Hand on what arrived to those it is for."""
        if connection is not self._current:
            return  # a cancelled turn's connection: nothing of it surfaces
        entry: Entry | None = None
        turn: list[Item] = []
        # The bytes count for the turn among them; what is nobody's waits for callbacks as well.
        strays = size if all(delivery.request is None for delivery in deliveries) else 0
        for delivery in deliveries:
            request, item = delivery.request, delivery.item
            if request is None:
                if entry is not None:
                    self._feed(entry, turn, size)  # what came before it is told before it
                    turn, size = [], 0
                if not isinstance(item, Malformed):
                    with self._effects, self._lock:
                        self._telling.stray(item, strays)
                    strays = 0
            elif request.silenced:
                with self._effects, self._lock:
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
        assert answer is not None  # noqa: S101 - a turn has one
        if not items or not answer.feed(items, size):
            return
        with self._effects, self._lock:
            self._telling.post(items, entry, size=size)
            limit = self.settings.limits.turn_bytes
            if answer.size > limit:
                self._end(entry, RemoteProtocolError(f"the answer is larger than {limit:,} bytes"))

    def _finish(self, entry: Entry, item: Item) -> None:
        """Put the next on the wire after a turn has ended there; then its waiters hear."""
        with self._effects, self._lock:
            if entry.ended or entry is not self._on_wire:
                self._advance()
                return
            self._on_wire = None
            if isinstance(item, events.Done):
                assert entry.answer is not None  # noqa: S101 - a turn has one
                entry.answer.feed([item], 0)
                self._conversations.answered(entry)
                self._conversations.release(entry)
                self._telling.finish(entry, item)
            elif isinstance(item, Malformed):
                self._fail(entry, error_of(item))
            elif isinstance(item, events.ErrorEvent):
                self._conversations.release(entry)
                self._telling.fail(entry, error_of(item), [item])
            else:
                self._conversations.release(entry)
                error = TurnCancelledError("the server cancelled the turn")
                self._telling.fail(entry, error, [item])
            self._advance()

    def _answered(self, connection: Connection, entry: Entry, item: Item) -> None:
        """Take the answer to a start: it ends a start, and a message follows it."""
        with self._effects, self._lock:
            if entry is not self._on_wire:
                return
            self._on_wire = None
            if isinstance(item, events.ChatStarted):
                self._backoff.reset()
                self._telling.post([item], entry)
                try:
                    self._conversations.started(entry, item.conversation_id)
                except FluxbaseChatError as error:
                    self._fail(entry, error)
                else:
                    if entry.answer is None:
                        self._telling.resolve(entry, item.conversation_id)
                    else:
                        self._write(entry, connection)
            else:
                if isinstance(item, events.ErrorEvent):
                    self._telling.fail(entry, error_of(item), [item])
                elif isinstance(item, Malformed):
                    self._fail(entry, error_of(item))
                other = not self._queue and self._conversations.start_failed()
                if (
                    other
                    and isinstance(item, events.ErrorEvent)
                    and item.code not in _NOT_IMPERSONATED
                ):
                    connection.close()  # nobody knows whom it acts as now
                    self._replace()
            self._advance()
