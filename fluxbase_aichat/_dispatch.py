"""The callback thread: it calls what the user gave, in wire order, one call at a time.

The I/O thread posts what arrived in batches and goes on; a slow callback delays only callbacks.
An exception in one is logged and stops nothing.
"""

from __future__ import annotations

import contextvars
import inspect
import logging
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, cast

import attrs

from . import events
from ._answer import Answer, Flag
from ._deadline import Deadline, join, start
from ._logs import about
from ._value import Value
from ._wire import ContentRun, Item
from .errors import ConfigurationError, ConnectError, FluxbaseChatError
from .results import QueryResult

__all__ = ["Callbacks", "Dispatcher", "Failure", "Post"]

_log = logging.getLogger("fluxbase_aichat.callbacks")

# What the thread may need for its last steps when nothing is left to tell.
_JOIN_SECONDS = 1.0

# Whose callbacks the current thread calls.
_here = threading.local()

# The JavaScript SDK's callbacks and their positional arguments (SDK.md).
_ARGUMENTS: dict[str, tuple[str, ...]] = {
    "on_content": ("delta", "conversation_id"),
    "on_progress": ("step", "message", "conversation_id"),
    "on_query_result": ("query", "summary", "row_count", "data", "conversation_id"),
    "on_done": ("usage", "conversation_id"),
    "on_error": ("error", "code", "conversation_id"),
    "on_event": ("event",),
    "on_callback_error": ("exception", "event"),
}

Callback = Callable[..., object]

# With more than this waiting, further deltas are joined: a string of its own for each word takes
# ten times the memory of its text.
_JOIN_BYTES = 1024 * 1024


def _adapt(name: str, function: object) -> Callback | None:
    """Return a callable that takes all documented arguments and passes on those wanted.

    Required positional parameters are filled in order, one with a default only if it has a
    documented name, `*args` gets all, and so does what has no readable signature.
    """
    if function is None:
        return None
    if not callable(function):
        raise ConfigurationError(f"{name} must be callable, not {type(function).__name__}")
    documented = _ARGUMENTS[name]
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (ValueError, TypeError):
        return function
    positional = [p for p in parameters if p.kind in {p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD}]
    required = [p for p in positional if p.default is p.empty]
    named = [p for p in parameters if p.kind is p.KEYWORD_ONLY]
    wrong = [p.name for p in named if p.default is p.empty and p.name not in documented]
    if len(required) > len(documented) or wrong:
        what = f"a keyword {wrong[0]}" if wrong else f"{len(required)} arguments"
        raise ConfigurationError(
            f"{name} is called with ({', '.join(documented)}); this one needs {what}"
        )
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return function
    count = len(required)
    by_name = {
        p.name: documented.index(p.name)
        for p in positional[count:] + named
        if p.kind is not p.POSITIONAL_ONLY and p.name in documented
    }
    if not by_name and count == len(documented):
        return function

    def adapted(*arguments: object) -> object:
        keywords = {key: arguments[index] for key, index in by_name.items()}
        return function(*arguments[:count], **keywords)

    return adapted


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Callbacks(Value):
    """The user's callbacks, each looked at once."""

    on_content: Callback | None = None
    on_progress: Callback | None = None
    on_query_result: Callback | None = None
    on_done: Callback | None = None
    on_error: Callback | None = None
    on_event: Callback | None = None
    on_callback_error: Callback | None = None

    @classmethod
    def of(cls, **functions: object) -> Callbacks:
        """Make them from what the user gave; raise `ConfigurationError` for what cannot be one."""
        return cls(**{name: _adapt(name, function) for name, function in functions.items()})

    def weakly(self) -> Callbacks:
        """Return the same without keeping them alive: they may hold the client that they serve."""
        return cast("Callbacks", _Weakly(self))

    @property
    def any(self) -> bool:
        """Whether there is anything to call."""
        return any(f is not None for f in attrs.astuple(self, recurse=False)[:-1])


class _Weakly:
    """Callbacks as long as somebody else holds them; then there are none."""

    def __init__(self, callbacks: Callbacks) -> None:
        self._callbacks = weakref.ref(callbacks)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._callbacks() or _NONE, name)


_NONE = Callbacks()


@attrs.frozen(eq=False, repr=False)
class Failure(Value):
    """A request that the client found to have failed; the server said nothing about it."""

    error: FluxbaseChatError
    code: str
    conversation_id: str


@attrs.define(eq=False)
class Post:
    """Things to tell, in the context of the call that asked for them."""

    context: contextvars.Context
    items: Sequence[Item | Failure]
    answer: Answer | None = None
    """The turn that they belong to; once it is cancelled they are dropped."""
    ending: Callable[[], object] | None = None
    """What ends the turn, if it ends with them; it may have been called before."""
    stray: bool = False
    """Whether they belong to no request: only `on_event` hears of them."""
    size: int = 0
    """The bytes that they came in."""
    joined: bool = False
    """Whether they are one run of our own, whose deltas were joined."""


class Dispatcher:
    """One queue, and one thread while it is wanted. All methods are thread-safe.

    A thread that is told to rest ends when all is told; one that is wanted again meanwhile goes
    on. So there is never a second one beside it, and the order is kept.
    """

    def __init__(
        self,
        callbacks: Callbacks,
        failed: Callable[[], object] = int,
        drained: Callable[[], object] = int,
    ) -> None:
        """Both are called on the thread and without a lock.

        `failed` for each callback that raises, `drained` when something was told.
        """
        self._callbacks = callbacks
        self._count_failure = failed
        self._drained = drained
        self._lock = threading.RLock()  # guards all below
        self._posted = threading.Condition(self._lock)
        self._queue: deque[Post] = deque()
        self._backlog = 0
        self._thread: threading.Thread | None = None
        self._threads = 0
        self._wanted = False
        self.wants = 0
        """How often it was wanted."""
        self._busy = False
        # Set when nothing is queued or running, and then another one. Not the condition: Ctrl-C in
        # a wait for that can leave its lock free, which makes another error of it.
        self._idle = Flag()
        self._running: Post | None = None
        # Counts how often what was posted was dropped: a running callback is the last then.
        self._drops = 0

    def want(self) -> None:
        """Keep what is posted from now on, for the thread that `start` will start."""
        with self._lock:
            self._wanted = True
            self.wants += 1

    def start(self) -> None:
        """Have a thread if it is still wanted; raise `ConnectError` where none can be started."""
        with self._lock:
            if self._thread is not None or not self._wanted:
                return
            self._threads += 1
            name = f"fluxbase-aichat-callbacks-{self._threads}"
            self._thread = thread = threading.Thread(target=self._run, name=name, daemon=True)
        try:
            start(thread)
        except ConnectError:
            with self._lock:
                self._thread = None
                self._wanted = False
            self._drop()
            raise

    @staticmethod
    def inside(callbacks: Callbacks) -> bool:
        """Whether the caller runs inside one of these callbacks."""
        return getattr(_here, "callbacks", None) is callbacks

    def post(self, post: Post) -> None:
        """Have it told after everything posted before; to nobody where no thread is wanted."""
        with self._lock:
            if self._thread is not None or self._wanted:
                self._backlog += post.size
                if not (self._backlog > _JOIN_BYTES and self._join(post)):
                    self._queue.append(post)
                    self._posted.notify_all()
                return
        _told(post)

    def _join(self, post: Post) -> bool:
        """Add a run to the one that waits, as one delta: many of them cost more than their text."""
        if not self._queue or post.ending is not None or len(post.items) != 1:
            return False
        last = self._queue[-1]
        if last.answer is not post.answer:
            return False
        waiting, coming = last.items[-1], post.items[0]
        if not (
            isinstance(waiting, ContentRun)
            and isinstance(coming, ContentRun)
            and waiting.rest == coming.rest
        ):
            return False
        if not last.joined:
            # The run itself may be in the hands of an iterator.
            own = ContentRun(waiting.conversation_id, ["".join(waiting.deltas)], waiting.rest)
            last.items = [*last.items[:-1], own]
            last.joined = True
            waiting = own
        waiting.deltas.append("".join(coming.deltas))
        last.size += post.size
        return True

    @property
    def backlog(self) -> int:
        """The bytes of what was posted and is not told yet."""
        return self._backlog

    @property
    def untold(self) -> int:
        """How many ends of turns are posted and not told as a whole. Takes no lock."""
        posts = [*list(self._queue), *([self._running] if self._running else [])]
        answers = [post.answer for post in posts if post.ending is not None]
        return sum(answer is not None and not answer.cancelled for answer in answers)

    def abandon(self) -> None:
        """Drop what is posted and end the thread; does not wait for it."""
        self.rest()
        self._drop()

    def after_fork(self) -> None:
        """Tell nothing more in a child process; if it is inside a callback, that is the last."""
        self._lock = threading.RLock()
        self._posted = threading.Condition(self._lock)
        self.abandon()

    def wait_idle(self, deadline: Deadline) -> bool:
        """Wait until nothing is queued or running; `False` when the deadline comes first."""
        with self._lock:
            if not self._queue and not self._busy:
                return True
            idle = self._idle
        return idle.wait(deadline.remaining())

    def _rests(self) -> None:
        if not self._queue and not self._busy:
            idle, self._idle = self._idle, Flag()
            idle.set()

    def rest(self, wants: int | None = None) -> None:
        """End the thread when all that was posted is told; does not wait for it.

        With `wants` only if it was not wanted again since.
        """
        with self._lock:
            if wants is None or wants == self.wants:
                self._wanted = False
                self._posted.notify_all()

    def stop(self, deadline: Deadline) -> None:
        """After `rest`, run what was posted, but start no callback after the deadline.

        Called inside a callback it returns at once, and that callback is the last.
        """
        thread = self._thread
        if thread is None:
            if not self._wanted:
                self._drop()  # it was never started
            return
        # One that another thread is just starting has nothing to tell, and ends.
        if thread is not threading.current_thread():
            join(thread, deadline)
        if thread.is_alive() and not self._wanted:
            self._drop()
            if not self._busy and thread is not threading.current_thread():
                thread.join(_JOIN_SECONDS)  # it runs no callback, and has none to run

    def _drop(self) -> None:
        with self._lock:
            self._drops += 1
            queue, self._queue = self._queue, deque()
            self._backlog -= sum(post.size for post in queue)
            self._rests()
        for post in queue:
            _told(post)

    def _run(self) -> None:
        _here.callbacks = self._callbacks
        if "IPython" in sys.modules:
            from .display import follow_cells  # noqa: PLC0415 - only a notebook needs it

            follow_cells()
        while True:
            with self._lock:
                self._busy = False
                self._running = None
                self._rests()
                self._posted.wait_for(lambda: self._queue or not self._wanted)
                if not self._queue:
                    self._thread = None
                    return
                post = self._queue.popleft()
                self._busy = True
                self._running = post
                drops = self._drops
            post.context.run(self._tell, post, drops)
            _told(post)
            if post.size:
                with self._lock:
                    self._backlog -= post.size
                self._drained()
            del post  # what waits here for more keeps nothing of it

    def _tell(self, post: Post, drops: int) -> None:
        answer = post.answer
        if post.ending is not None:
            post.ending()
        if answer is not None and answer.callbacks_run.is_set():
            return  # it came together with the end that was told already
        for item in post.items:
            if self._drops != drops:
                return
            if post.stray:
                stray = item.events() if isinstance(item, ContentRun) else [item]
                for event in stray:
                    if isinstance(event, events.Event):
                        self._call(self._callbacks.on_event, event, event)
                continue
            if isinstance(item, ContentRun):
                self._tell_run(item, answer, drops)
            elif isinstance(item, Failure):
                self._call(
                    self._callbacks.on_error,
                    events.ErrorEvent(
                        conversation_id=item.conversation_id, error=str(item.error), code=item.code
                    ),
                    str(item.error),
                    item.code,
                    item.conversation_id or None,
                )
            elif isinstance(item, events.Event) and not (answer is not None and answer.cancelled):
                self._tell_event(item)

    def _tell_run(self, run: ContentRun, answer: Answer | None, drops: int) -> None:
        on_content, on_event = self._callbacks.on_content, self._callbacks.on_event
        conversation_id = run.conversation_id
        if on_event is not None:
            for event in run.events():
                if self._silent(answer, drops):
                    return
                if on_content is not None:
                    self._call(on_content, event, event.delta, conversation_id)
                try:
                    on_event(event)
                except BaseException as error:  # noqa: BLE001 - the user's, whatever it is
                    self._failed(error, event)
        elif on_content is not None:
            for delta in run.deltas:
                # The first two spare a call for each delta of a turn that goes well.
                if (
                    self._drops != drops or (answer is not None and answer.error is not None)
                ) and self._silent(answer, drops):
                    return
                try:
                    on_content(delta, conversation_id)
                except BaseException as error:  # noqa: BLE001 - the user's, whatever it is
                    event = events.Content(conversation_id=conversation_id, delta=delta)
                    self._failed(error, event)

    def _silent(self, answer: Answer | None, drops: int) -> bool:
        # Looked at before each call: a callback may have cancelled its own turn.
        return self._drops != drops or (answer is not None and answer.cancelled)

    def _tell_event(self, event: events.Event) -> None:
        callbacks = self._callbacks
        # The server names a conversation in all but some errors; None is what the SDK says then.
        cid = event.conversation_id or None
        # The SDK calls on_content and on_progress only for what has all their arguments: a Content
        # that is not in a run has no delta, and reaches on_event alone.
        if isinstance(event, events.Progress):
            if event.step and event.message:
                self._call(callbacks.on_progress, event, event.step, event.message, cid)
        elif isinstance(event, events.QueryResultEvent):
            self._call_query_result(event, event.result)
        elif isinstance(event, events.ToolResult):
            if event.output.query_result is not None and event.output.data:
                self._call_query_result(event, event.output.query_result)
        elif isinstance(event, events.Done):
            self._call(callbacks.on_done, event, event.usage, cid)
        elif isinstance(event, events.ErrorEvent):
            self._call(callbacks.on_error, event, event.error, event.code or None, cid)
        self._call(callbacks.on_event, event, event)

    def _call_query_result(self, event: events.Event, result: QueryResult) -> None:
        self._call(
            self._callbacks.on_query_result,
            event,
            result.query,
            result.summary,
            result.row_count,
            result.data,
            event.conversation_id or None,
        )

    def _call(self, callback: Callback | None, event: events.Event, *arguments: Any) -> None:
        if callback is not None:
            try:
                callback(*arguments)
            except BaseException as error:  # noqa: BLE001 - the user's, whatever it is
                self._failed(error, event)

    def _failed(self, error: BaseException, event: events.Event) -> None:
        self._count_failure()
        extra = about(conversation_id=event.conversation_id)
        handler = self._callbacks.on_callback_error
        if handler is not None:
            try:
                handler(error, event)
            except BaseException:  # noqa: BLE001 - the user's, whatever it is
                _log.exception("on_callback_error failed", extra=extra)
            return
        _log.error("a callback failed on a %s event", event.type, exc_info=error, extra=extra)


def _told(post: Post) -> None:
    """Wake those who wait for a turn's callbacks, if it has ended with this post."""
    if post.ending is not None and post.answer is not None:
        post.answer.callbacks_run.set()
