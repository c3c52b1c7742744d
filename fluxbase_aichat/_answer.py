"""What arrives for one request, for the threads that wait for it.

An `Answer` is fed by the I/O thread and read by any. It is resolved exactly once; what comes
later is refused, so a cancelled turn stays as it was when it was cancelled.
"""

from __future__ import annotations

import copy
import logging
import threading
from _thread import allocate_lock  # a gate: it guards nothing, and another thread releases it
from collections import deque
from collections.abc import Callable, Sequence
from typing import TypeVar

from . import events
from ._deadline import Clock, Deadline
from ._logs import about
from ._wire import ContentRun, Item
from .errors import FluxbaseChatError, NotConnectedError, TurnCancelledError
from .results import QueryResult, Reply, ToolOutput

__all__ = ["Answer", "Flag", "Outcome", "Position", "Text", "fresh"]

E = TypeVar("E", bound=FluxbaseChatError)

_log = logging.getLogger("fluxbase_aichat.turn")

# What the caller brought about is no news to it.
_OWN_DOING = (TurnCancelledError, NotConnectedError)

# The steps in which a tool runs.
_TOOL_STEPS = frozenset({"querying", "executing"})

# So many deltas are a run, and in so many of the newest runs they are kept apart: some ten
# thousand, as many as come while a thread that iterates waits for its turn.
_RUN = 4096
_LOOSE_RUNS = 8


def fresh(error: E) -> E:
    """Return a copy to raise: one exception in several threads would mix their tracebacks."""
    again = copy.copy(error)
    again.__cause__ = error.__cause__
    return again


class Text:
    """The text of an answer, in segments: tools ran between them. Not thread-safe.

    It is kept in runs of deltas, which are those of the answer's log too. The newest are as they
    came; in those before, each run's deltas are joined: a string of its own for each word takes
    ten times the memory of its text.
    """

    def __init__(self) -> None:
        self._segments: list[list[ContentRun]] = []
        self._open: ContentRun | None = None
        self._loose: deque[ContentRun] = deque()
        self._value: str | None = ""
        self._texts: tuple[str, ...] | None = ()

    def add(self, run: ContentRun) -> ContentRun | None:
        """Append; return the run that this begins, or `None` when the last one has grown."""
        self._value = self._texts = None
        last = self._open
        if last is not None and len(last.deltas) < _RUN and last.rest is run.rest:
            last.deltas.extend(run.deltas)
            return None
        # One of its own: that which came may be in the hands of the callback thread.
        begun = self._open = _with(run, run.deltas.copy())
        if not self._segments:
            self._segments.append([])
        self._segments[-1].append(begun)
        self._loose.append(begun)
        if len(self._loose) > _LOOSE_RUNS:
            past = self._loose.popleft()
            # A new list: who is in the middle of the old one goes on there.
            past.deltas = ["".join(past.deltas)]
        return begun

    def close(self) -> None:
        """What comes next begins a run: something else came between."""
        self._open = None

    def split(self) -> None:
        """End a segment."""
        self.close()
        if self._segments and self._segments[-1]:
            self._segments.append([])

    @property
    def segments(self) -> tuple[str, ...]:
        """The segments that have text in them."""
        if self._texts is None:
            texts = ("".join([d for run in runs for d in run.deltas]) for runs in self._segments)
            self._texts = tuple(text for text in texts if text)
        return self._texts

    @property
    def ends_in_prose(self) -> bool:
        """Whether there is text behind the last tool."""
        last = self._segments[-1] if self._segments else []
        return any(delta for run in last for delta in run.deltas)

    @property
    def value(self) -> str:
        """All of it."""
        if self._value is None:
            self._value = "".join(self.segments)  # of one segment, the same string
        return self._value


def _pass(gate: threading.Lock, seconds: float | None, passed: Callable[[], bool]) -> None:
    """Wait until another thread releases the gate, or the time is up.

    Ctrl-C may have kept that thread from releasing it: so look whether it has `passed`, too.
    """
    deadline = Deadline(seconds)
    while not (gate.acquire(timeout=deadline.slice()) or passed() or deadline.expired):
        pass


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
                _pass(gate, seconds, self.is_set)
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


class Position:
    """How far an iterator has come in an answer's log, whose last run may grow."""

    def __init__(self) -> None:
        self._index = 0
        # The deltas of the last run, if one was last, and how many of them were taken.
        self._last = ContentRun("", [], {})
        self._deltas: list[str] | None = None
        self._taken = 0

    def advance(self, log: list[events.Event | ContentRun]) -> list[events.Event | ContentRun]:
        """Return what is behind it, and go to the end."""
        items: list[events.Event | ContentRun] = []
        if self._deltas is not None and len(self._deltas) > self._taken:
            # Not the run's: they may have been joined since, in another list.
            items.append(_with(self._last, self._deltas[self._taken :]))
        new = log[self._index :]
        if new:
            self._index = len(log)
            self._deltas = None
            last = new[-1]
            if isinstance(last, ContentRun):
                self._last, self._deltas = last, last.deltas
                new[-1] = _with(last, last.deltas.copy())  # it may grow while it is read
        if self._deltas is not None:
            self._taken = len(self._deltas)
        return items + new


def _with(run: ContentRun, deltas: list[str]) -> ContentRun:
    return ContentRun(run.conversation_id, deltas, run.rest)


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
            if not self._keep:
                self._log.clear()
            for item in items:
                self._take(item)
            self._wake()
            return True

    def _take(self, item: Item) -> None:
        if isinstance(item, ContentRun):
            if self._first_at is None:
                self._first_at = self._clock()
            begun = self.text.add(item)
            if begun is not None and self._keep:
                self._log.append(begun)
            return
        self.text.close()
        if isinstance(item, events.Progress):
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
        if self._keep and isinstance(item, events.Event):
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

    @property
    def sent_at(self) -> float | None:
        """When the message was written; `None` if it was not."""
        return self._sent_at

    def current_text(self) -> str:
        """Return the text so far."""
        with self._lock:
            return self.text.value

    def read(
        self, position: Position, deadline: Deadline
    ) -> tuple[list[events.Event | ContentRun], bool]:
        """Wait for what is behind a position, and move it there; return whether it is the last."""
        while True:
            with self._lock:
                ended = self.ended.is_set()
                items = position.advance(self._log)
                if items or ended or deadline.expired:
                    return items, ended
                gate = allocate_lock()
                gate.acquire()  # the I/O thread releases it
                self._readers.append(gate)
            _pass(gate, deadline.remaining(), self.ended.is_set)

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
