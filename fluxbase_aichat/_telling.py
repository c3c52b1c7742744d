"""Who is told what, and when: waiters at once, callbacks in their turn, none under a lock.

What is decided while a session's lock is held takes effect when it is released, in the same
order: waking waiters, starting threads. Only the posts to the callback thread are made under the
lock, so that they stand there in the order of what was decided, whichever thread comes first.

Ctrl-C may raise in the main thread between any two steps of Python code, and only there. A lock
that Python code takes or releases could stay taken by it; the interpreter's own, in a `with`,
cannot.
"""

from __future__ import annotations

import contextlib
import contextvars
import logging
import threading
from collections.abc import Callable, Sequence
from functools import partial
from types import TracebackType
from typing import Literal

from . import events
from ._answer import fresh
from ._dispatch import Callbacks, Dispatcher, Failure, Post
from ._entry import Entry
from ._logs import about
from ._wire import Item
from .errors import AuthenticationError, ConnectionLostError, FluxbaseChatError

__all__ = ["Effects", "Telling", "code_of"]

_connection_log = logging.getLogger("fluxbase_aichat.connection")
_turn_log = logging.getLogger("fluxbase_aichat.turn")

Effect = Callable[[], object]


class Effects(threading.local):
    """What to do when a lock is released: `with effects, lock:` … `effects.then(effect)`.

    Ctrl-C comes behind the last: others wait for what was decided.
    """

    def __init__(self) -> None:
        self._effects: list[Effect] = []

    def then(self, effect: Effect) -> None:
        """Do this once the lock is released; the lock must be held."""
        self._effects += [effect]

    def __enter__(self) -> None:
        """Come before the lock, so as to be left behind it."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        effects = self._effects
        interrupted: KeyboardInterrupt | None = None
        while effects:
            effect = effects[0]
            try:
                del effects[0]
                effect()
            except KeyboardInterrupt as again:
                interrupted = again
                if not effects or effects[0] is not effect:
                    effects.insert(0, effect)  # each can be done twice
        if interrupted is not None:
            raise interrupted


class Telling:
    """The waiters' and the callbacks' side of a session. All methods need the session's lock."""

    def __init__(
        self,
        callbacks: Callbacks,
        effects: Effects,
        drained: Callable[[], object],
        ended: Callable[[], object],
    ) -> None:
        self.callbacks: Callbacks = callbacks
        self._effects = effects
        self._ended = ended  # called behind each entry's end
        # What `on_event` was told last about the connection. The successor of a cancelled one
        # is not told: to the user nothing happened.
        self._told: Literal["nothing", "connected", "lost"] = "nothing"
        self._context = contextvars.copy_context()
        self.dispatcher: Dispatcher = Dispatcher(callbacks, self._failed, drained)
        self.callback_errors: int = 0

    def _failed(self) -> None:
        self.callback_errors += 1

    # -- the callback thread ----------------------------------------------------------------

    @property
    def inside_callback(self) -> bool:
        """Whether the caller runs inside a callback of this session. Takes no lock."""
        return Dispatcher.inside(self.callbacks)

    def begin(self) -> None:
        """Take the context of the call that connects, for what belongs to no call."""
        self._context = contextvars.copy_context()

    def end(self, error: FluxbaseChatError) -> None:
        """Tell the connection's end, and begin anew with the next one."""
        self.lost(error)
        self._told = "nothing"

    @property
    def backlog(self) -> int:
        """The bytes that wait for callbacks. Takes no lock."""
        return self.dispatcher.backlog

    def untold(self, entries: list[Entry]) -> int:
        """How many of these turns, or of those ended, have callbacks still to hear. No lock."""
        if not self.callbacks.any:
            return 0
        turns = sum(entry.answer is not None for entry in entries)
        return turns + self.dispatcher.untold

    # -- the connection ---------------------------------------------------------------------

    @property
    def connected_before(self) -> bool:
        """Whether a connection was open since the client was connected or made."""
        return self._told != "nothing"

    def opened(self) -> None:
        """Tell that there is a connection, unless there was one all the time for the user."""
        if self._told != "connected":
            self.post([events.Reconnected() if self.connected_before else events.Connected()])
            self._told = "connected"

    def lost(self, error: FluxbaseChatError) -> None:
        """Tell that there is no connection any more, once."""
        if self._told == "connected":
            self._told = "lost"
            self.post([events.Disconnected(reason=str(error))])

    # -- requests ---------------------------------------------------------------------------

    def post(
        self,
        items: Sequence[Item | Failure],
        entry: Entry | None = None,
        *,
        ending: Effect | None = None,
        size: int = 0,
    ) -> None:
        """Tell callbacks what came, for an entry or for nobody; `ending` ends the entry before."""
        if entry is None:
            self._log_connection(items)
        context = entry.context if entry is not None else self._context
        answer = entry.answer if entry is not None else None
        if self.callbacks.any:
            self.dispatcher.post(Post(context, items, answer, ending=ending, size=size))
        elif ending is not None and answer is not None:
            self._effects.then(answer.callbacks_run.set)

    def _log_connection(self, items: Sequence[Item | Failure]) -> None:
        for item in items:
            match item:
                case events.Reconnecting(attempt=attempt, delay=delay):
                    text = f"reconnecting: attempt {attempt} in {delay:.1f} s"
                case events.Disconnected(reason=reason):
                    text = f"disconnected: {reason}"
                case events.Connected() | events.Reconnected():
                    text = item.type
                case _:
                    continue
            self._log(partial(_connection_log.info, text, extra=about()))

    def stray(self, item: Item, size: int) -> None:
        """Tell `on_event`, and nobody else, of what belongs to no request."""
        if self.callbacks.any:
            self.dispatcher.post(Post(self._context, [item], stray=True, size=size))

    def fail(self, entry: Entry, error: FluxbaseChatError, items: Sequence[Item] = ()) -> None:
        """End an entry with an error that the server sent as `items`, or that its caller made."""
        self._fail(entry, error, items)

    def fail_found(self, entry: Entry, error: FluxbaseChatError) -> None:
        """End an entry with an error that the client found; `on_error` hears of it."""
        self._fail(entry, error, [Failure(error, code_of(error), entry.record.id or "")])

    def _fail(
        self, entry: Entry, error: FluxbaseChatError, items: Sequence[Item | Failure]
    ) -> None:
        entry.ended = True
        error = fresh(error)
        error.sent = entry.sent
        if isinstance(error, ConnectionLostError):
            error.retryable = error.sent is False
        told = bool(items) and self.callbacks.on_error is not None
        outcome, answer = entry.outcome, entry.answer

        def resolve() -> None:
            if outcome is not None:
                outcome.fail(error)
            elif answer is not None:
                answer.fail(error, told=told)

        self._end(entry, resolve, items)
        self._log_end(entry, f"ended with {type(error).__name__}")

    def finish(self, entry: Entry, done: events.Done) -> None:
        """End a turn whose answer is whole."""
        answer = entry.answer
        assert answer is not None  # noqa: S101 - a turn has one
        entry.ended = True
        self._end(entry, lambda: answer.finish(done), [done])
        self._log_end(entry, "is whole")

    def resolve(self, entry: Entry, conversation_id: str) -> None:
        """End a start: its conversation has this id."""
        outcome = entry.outcome
        assert outcome is not None  # noqa: S101 - a start has one
        entry.ended = True
        self._effects.then(lambda: outcome.resolve(conversation_id))
        self._effects.then(self._ended)

    def _end(self, entry: Entry, resolve: Effect, items: Sequence[Item | Failure]) -> None:
        """Wake who waits for the entry, and tell callbacks; whichever comes first resolves it."""
        ending = Ending(resolve)
        self._effects.then(ending)
        self.post(items, entry, ending=ending)
        self._effects.then(self._ended)

    def _log_end(self, entry: Entry, how: str) -> None:
        if _turn_log.isEnabledFor(logging.DEBUG):
            what = "a start" if entry.answer is None else "an answer"
            extra = about(entry.record.chatbot, entry.record.id)
            self._log(partial(_turn_log.debug, "%s %s", what, how, extra=extra))

    def _log(self, tell: Effect) -> None:
        self._effects.then(partial(_quietly, tell))


class Ending:
    """What ends a call, done once: a second thread waits for the first, and then does nothing."""

    def __init__(self, effect: Effect) -> None:
        self._effect = effect
        self._lock = threading.Lock()
        self._done = False

    def __call__(self) -> None:
        """End it."""
        with self._lock:
            if not self._done:
                self._effect()
                self._done = True


def _quietly(tell: Effect) -> None:
    """Log: a handler is the user's, and what it raises must keep nothing else from its turn."""
    with contextlib.suppress(Exception):
        tell()


def code_of(error: FluxbaseChatError) -> str:
    """Return the server's code, or the one of the SDK for what the client found."""
    if error.code:
        return error.code
    if isinstance(error, TimeoutError):
        return "TIMEOUT"
    return "AUTH_FAILED" if isinstance(error, AuthenticationError) else "CONNECTION_LOST"
