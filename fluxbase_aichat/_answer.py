"""What arrives for one request, for the threads that wait for it.

An `Answer` is fed by the I/O thread and read by any. It is resolved exactly once; what comes
later is refused, so a cancelled turn stays as it was when it was cancelled.
"""

from __future__ import annotations

import copy
import logging
import threading
from _thread import allocate_lock  # a gate: it guards nothing, and another thread releases it
from collections.abc import Sequence
from typing import TypeVar

from . import events
from ._deadline import Clock, Deadline
from ._logs import about
from ._wire import ContentRun, Item
from .errors import FluxbaseChatError, NotConnectedError, TurnCancelledError
from .results import QueryResult, Reply, ToolOutput

__all__ = ["Answer", "Flag", "Outcome", "Text", "fresh"]

E = TypeVar("E", bound=FluxbaseChatError)

_log = logging.getLogger("fluxbase_aichat.turn")

# Ctrl-C does not end the wait for a lock on Windows, nor anywhere when it comes in the moment in
# which the wait begins. So it may come so many seconds late.
_SLICE = 0.5

# What the caller brought about is no news to it.
_OWN_DOING = (TurnCancelledError, NotConnectedError)

# The steps in which a tool runs.
_TOOL_STEPS = frozenset({"querying", "executing"})

# Where a tail of deltas is joined: often enough to free them, seldom enough to cost nothing.
_TAIL = 4096


def fresh(error: E) -> E:
    """Return a copy to raise: one exception in several threads would mix their tracebacks."""
    again = copy.copy(error)
    again.__cause__ = error.__cause__
    return again


class Text:
    """The text of an answer, in segments: tools ran between them. Not thread-safe."""

    def __init__(self) -> None:
        self._segments: list[list[str]] = []
        self._tail: list[str] = []
        self._value: str | None = ""

    def add(self, deltas: list[str]) -> None:
        """Append."""
        self._value = None
        self._tail.extend(deltas)
        if len(self._tail) > _TAIL:
            self._join()

    def split(self) -> None:
        """End a segment."""
        self._join()
        if self._segments and self._segments[-1]:
            self._segments.append([])

    def _join(self) -> None:
        tail = "".join(self._tail)
        self._tail.clear()
        if tail:
            if not self._segments:
                self._segments.append([])
            self._segments[-1].append(tail)

    @property
    def segments(self) -> tuple[str, ...]:
        """The segments that have text in them."""
        self._join()
        return tuple("".join(parts) for parts in self._segments if parts)

    @property
    def value(self) -> str:
        """All of it."""
        if self._value is None:
            self._value = "".join(self.segments)
        return self._value


def _pass(gate: threading.Lock, seconds: float | None) -> None:
    """Wait until another thread releases the gate, or the time is up."""
    deadline = Deadline(seconds)
    left = deadline.remaining()
    while not gate.acquire(timeout=_SLICE if left is None else min(left, _SLICE)):
        left = deadline.remaining()
        if left == 0.0:
            return


class Flag:
    """An event to wait for, as `threading.Event`, but Ctrl-C in a wait leaves no lock taken."""

    def __init__(self) -> None:
        self._is_set = False
        self._waiting: list[threading.Lock] = []

    def is_set(self) -> bool:
        """Whether it is set."""
        return self._is_set

    def set(self) -> None:
        """Set it, and wake who waits."""
        self._is_set = True
        while self._waiting:
            try:
                gate = self._waiting.pop()
            except IndexError:
                break  # it has just given up
            gate.release()

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until it is set; `False` when the time runs out first."""
        gate = allocate_lock()
        gate.acquire()  # another thread releases it
        self._waiting.append(gate)
        try:
            # Looked at behind the append: `set` has seen the gate, or is seen here.
            if not self._is_set:
                _pass(gate, seconds)
        finally:
            try:
                self._waiting.remove(gate)
            except ValueError:
                pass  # `set` has it
        return self._is_set


class Outcome:
    """A value or an error that somebody waits for; set once. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._set = Flag()
        self._error: FluxbaseChatError | None = None
        self._value = ""

    @property
    def done(self) -> bool:
        """Whether it is set."""
        return self._set.is_set()

    def resolve(self, value: str = "") -> bool:
        """Set the value; `False` when it was set before."""
        return self._finish(value, None)

    def fail(self, error: FluxbaseChatError) -> bool:
        """Set the error; `False` when it was set before."""
        return self._finish("", error)

    def _finish(self, value: str, error: FluxbaseChatError | None) -> bool:
        with self._lock:
            if self._set.is_set():
                return False
            self._value, self._error = value, error
            self._set.set()
            return True

    def wait(self, seconds: float | None) -> bool:
        """Wait until it is set; `False` when the time runs out first."""
        return self._set.wait(seconds)

    def after_fork(self) -> None:
        """Replace what a thread that is not in the child may have held."""
        self._lock = threading.Lock()

    def get(self) -> str:
        """Return the value or raise the error; it must be set."""
        if self._error is not None:
            raise fresh(self._error)
        return self._value


class Answer:
    """One turn's answer as it grows. Thread-safe; its lock is held for nothing else."""

    def __init__(self, chatbot: str, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.RLock()  # guards all below
        self._readers: list[threading.Lock] = []
        self._keep = True
        self._log: list[events.Event | ContentRun] = []
        self._sent_at: float | None = None
        self._first_at: float | None = None
        self._ended_at: float | None = None
        self._done: events.Done | None = None
        self.text: Text = Text()
        self.chatbot: str = chatbot
        self.conversation_id: str = ""
        self.query_results: list[QueryResult] = []
        self.tool_results: list[ToolOutput] = []
        self.step: str = ""
        self.size: int = 0
        self.looked_at: bool = False
        """Whether somebody knows how the turn ended, or made it end."""
        self.error: FluxbaseChatError | None = None
        self.ended: Flag = Flag()
        self.callbacks_run: Flag = Flag()

    # -- the I/O thread ---------------------------------------------------------------------

    def sent(self, conversation_id: str) -> None:
        """The message is on the wire."""
        with self._lock:
            self.conversation_id = conversation_id
            self._sent_at = self._clock()

    def feed(self, items: Sequence[Item], size: int) -> bool:
        """Take what arrived, `size` bytes; `False` when the turn has ended before."""
        with self._lock:
            if self.ended.is_set():
                return False
            self.size += size
            for item in items:
                self._take(item)
            self._wake()
            return True

    def _take(self, item: Item) -> None:
        if isinstance(item, ContentRun):
            if self._first_at is None:
                self._first_at = self._clock()
            self.text.add(item.deltas)
        elif isinstance(item, events.Progress):
            self.step = item.step
            if item.step in _TOOL_STEPS:
                self.text.split()  # its result may never come (PROTOCOL 4.12)
        elif isinstance(item, events.QueryResultEvent):
            self.text.split()
            self.query_results.append(item.result)
        elif isinstance(item, events.ToolResult):
            self.text.split()
            self.tool_results.append(item.output)
            if item.output.query_result is not None:
                self.query_results.append(item.output.query_result)
        if not self._keep:
            self._log.clear()
        elif isinstance(item, (events.Event, ContentRun)):
            self._log.append(item)

    def finish(self, done: events.Done) -> bool:
        """The answer is whole; `False` when the turn has ended before."""
        with self._lock:
            if not self.ended.is_set():
                self._done = done
            return self._end(None)

    def fail(self, error: FluxbaseChatError, *, told: bool = False) -> bool:
        """The turn has failed or was cancelled; `False` when it has ended before.

        `told`: a callback hears of it, so it is no surprise to anybody.
        """
        with self._lock:
            if self.ended.is_set():
                return False
            error.partial_text = error.partial_text or self.text.value
            self._end(error)
        self.looked_at = self.looked_at or told or isinstance(error, _OWN_DOING)
        if not self._keep:
            self.warn_unseen()
        return True

    def _end(self, error: FluxbaseChatError | None) -> bool:
        if self.ended.is_set():
            return False
        self.error = error
        self._ended_at = self._clock()
        self.ended.set()
        self._wake()
        return True

    def _wake(self) -> None:
        readers, self._readers = self._readers, []
        for gate in readers:
            gate.release()

    def after_fork(self, error: FluxbaseChatError) -> None:
        """Fail, in a child process; what a thread that is not there may have held is replaced."""
        self._lock = threading.RLock()
        self.fail(error)
        self.callbacks_run.set()

    def forget(self) -> None:
        """Nobody holds the turn: keep no events. Called by the garbage collector: no locks."""
        self._keep = False
        self.warn_unseen()

    def warn_unseen(self) -> None:
        """Log, once, a failure that nobody has looked at."""
        if self.error is not None and not self.looked_at:
            self.looked_at = True
            _log.warning(
                "a turn failed and nobody looked: %s: %s",
                type(self.error).__name__,
                self.error,
                extra=about(self.chatbot, self.conversation_id),
            )

    # -- any thread -------------------------------------------------------------------------

    @property
    def cancelled(self) -> bool:
        """Whether the turn ended by being cancelled."""
        return isinstance(self.error, TurnCancelledError)

    @property
    def done(self) -> events.Done | None:
        """The event that ended a whole answer."""
        return self._done

    def current_text(self) -> str:
        """Return the text so far."""
        with self._lock:
            return self.text.value

    def read(
        self, position: int, deadline: Deadline
    ) -> tuple[list[events.Event | ContentRun], bool]:
        """Wait for events from `position` on; return them, and whether these are the last."""
        while True:
            with self._lock:
                ended = self.ended.is_set()
                if len(self._log) > position or ended or deadline.expired:
                    return self._log[position:], ended
                gate = allocate_lock()
                gate.acquire()  # the I/O thread releases it
                self._readers.append(gate)
            _pass(gate, deadline.remaining())

    def reply(self) -> Reply:
        """Return the whole answer as a value; it must be whole."""
        with self._lock:
            done = self._done
            assert done is not None  # noqa: S101 - the caller waited for it
            return Reply(
                text=self.text.value,
                segments=self.text.segments,
                usage=done.usage,
                query_results=tuple(self.query_results),
                tool_results=tuple(self.tool_results),
                conversation_id=self.conversation_id,
                chatbot=self.chatbot,
                matched_intent_rules=done.matched_intent_rules,
                daily_quota=done.daily_quota,
                duration=_between(self._sent_at, self._ended_at),
                time_to_first_content=_between(self._sent_at, self._first_at),
            )


def _between(start: float | None, end: float | None) -> float | None:
    return None if start is None or end is None else end - start
