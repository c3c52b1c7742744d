"""A turn as server-sent events, for a browser. It knows no web framework and no socket.

The format is the HTML standard's (https://html.spec.whatwg.org/multipage/server-sent-events.html).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, Self

import attrs

from . import events
from ._answer import Answer, Position
from ._deadline import Deadline
from ._kinds import Interval
from ._telling import code_of
from ._value import Value
from ._wire import ContentRun
from .config import check_seconds
from .errors import ConfigurationError, ConnectError, ConnectionLostError, FluxbaseChatError
from .results import QueryResult, ToolOutput

__all__ = ["SSE_HEADERS", "EventStream", "SSEOptions"]

SSE_HEADERS: Final[dict[str, str]] = {
    "Content-Type": "text/event-stream; charset=utf-8",
    # A cache must not keep it, nor a proxy compress it, which would collect it first.
    "Cache-Control": "no-cache, no-transform",
    # nginx passes on each piece when it comes.
    "X-Accel-Buffering": "no",
}
"""The headers of a response whose body is `Turn.iter_sse()`."""

_KINDS: Final = ("progress", "content", "result")
# So long may `stop` go unasked while nothing comes.
_POLL_SECONDS: Final = 0.25

Read = Callable[[Position, Deadline], tuple[list[events.Event | ContentRun], bool]]


def _include(value: Iterable[str]) -> frozenset[str]:
    try:
        chosen = frozenset(value)  # of one text its letters, which are none of them
    except TypeError:
        chosen = frozenset({"?"})
    if not chosen <= set(_KINDS):
        raise ConfigurationError(f"include must be a collection of some of {', '.join(_KINDS)}")
    return chosen


@attrs.frozen(kw_only=True, eq=False, repr=False)
class SSEOptions(Value):
    """What `Turn.iter_sse` was told, checked."""

    heartbeat: float | None = attrs.field(
        validator=lambda _, field, value: check_seconds(field.name, value)
    )
    include: frozenset[str] = attrs.field(converter=_include)
    include_sql: bool
    stop: Callable[[], object] | None = attrs.field()

    @stop.validator
    def _check_stop(self, _: object, value: object) -> None:
        if value is not None and not callable(value):
            raise ConfigurationError(
                f"stop must be a function that says whether to stop, not {type(value).__name__}"
            )


class EventStream(Iterator[bytes]):
    """The events of one turn, each as the bytes to send. One thread at a time may iterate.

    `close` cancels the turn unless it has ended; web servers call it when their client has gone.
    The garbage collector does not: it might come while a lock is held that a cancel takes.
    """

    def __init__(
        self, answer: Answer, read: Read, cancel: Callable[[], object], options: SSEOptions
    ) -> None:
        self._answer = answer
        self._read = read
        self._cancel = cancel
        self._options = options
        self._events = self._all()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> bytes:
        return next(self._events)

    def close(self) -> None:
        """End it, and the turn with it as a cancel does; idempotent, from any thread."""
        self._cancel()

    def _all(self) -> Iterator[bytes]:
        answer, options = self._answer, self._options
        silence = Deadline(options.heartbeat)
        position = Position()
        last = False
        while not last:
            items, last = self._read(position, self._patience(silence))
            for item in items:
                event = self._event(item)
                if self._stopped():
                    return
                if event is not None:
                    silence = Deadline(options.heartbeat)
                    yield event
            if self._stopped():
                return
            if silence.expired and not last:
                silence = Deadline(options.heartbeat)
                yield b":\n\n"
        answer.looked_at = True
        if answer.error is not None:
            yield self._failure(answer.error)
        elif answer.done is not None:
            usage = answer.done.usage
            yield _encode("done", {"usage": None if usage is None else attrs.asdict(usage)})

    def _patience(self, silence: Deadline) -> Deadline:
        return silence if self._options.stop is None else silence.sooner(_POLL_SECONDS)

    def _stopped(self) -> bool:
        """Whether the turn was cancelled, or is now."""
        stop = self._options.stop
        if stop is not None and not self._answer.ended.is_set() and stop():
            self._cancel()
        return self._answer.cancelled

    def _event(self, item: events.Event | ContentRun) -> bytes | None:
        include = self._options.include
        match item:
            case ContentRun(deltas=deltas) if "content" in include:
                return _encode("content", {"delta": "".join(deltas)})
            case events.Progress(step=step, message=message) if "progress" in include:
                return _encode("progress", {"step": step, "message": self._hide(message)})
            case events.QueryResultEvent(result=result) if "result" in include:
                return self._result(result)
            case events.ToolResult(output=ToolOutput(query_result=QueryResult() as result)) if (
                "result" in include
            ):
                return self._result(result)
        return None

    def _result(self, result: QueryResult) -> bytes:
        data = {
            "summary": self._hide(result.summary),
            "status": result.status,
            "row_count": result.row_count,
            "columns": result.columns,
            "rows": result.rows,
        }
        if self._options.include_sql:
            data["query"] = result.query
        return _encode("result", data)

    def _failure(self, error: FluxbaseChatError) -> bytes:
        # The hint is for who writes the application, and where the server stands is nobody's.
        match error:
            case ConnectError():
                message = "the chat cannot be reached"
            case ConnectionLostError():  # nor is how its connection has ended
                message = "the connection to the chat was lost"
            case _:
                message = str(error.args[0])
        data = {
            "code": code_of(error),
            "message": self._hide(message),
            "retryable": error.retryable,
        }
        return _encode("error", data)

    def _hide(self, text: str) -> str:
        """Return a text of the server without the conversation's id, which is a secret."""
        conversation_id = self._answer.conversation_id
        return text.replace(conversation_id, "…") if conversation_id else text


def _encode(event: str, data: dict[str, Any]) -> bytes:
    """Write an event. ASCII only: half of a surrogate pair is legal in JSON, and not in UTF-8."""
    try:
        text = _JSON.encode(data)
    except ValueError:
        text = _JSON.encode(_finite(data))
    return f"event: {event}\ndata: {text}\n\n".encode("ascii")


def _text(value: object) -> str:
    """Return what JSON has no type for as text: a UUID, a time, all digits of a number."""
    if isinstance(value, Interval):
        return f"{value.months} months {value.days} days {value.microseconds / 1e6:g} s"
    return str(value)


_JSON: Final = json.JSONEncoder(allow_nan=False, separators=(",", ":"), default=_text)


def _finite(value: Any) -> Any:
    """Return the value with `None` for what is no number in JSON: 1e999 is read as infinity."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value
