"""A turn as a span of OpenTelemetry, with the GenAI names. Imported when a client has a tracer.

What it learns inside a lock it keeps, and tells the tracer, which is the user's, outside of it.
"""

from __future__ import annotations

import contextvars
import json
import logging
import time
from typing import TYPE_CHECKING, Any, Final

import attrs

from . import events
from ._answer import Answer
from ._deadline import Clock
from ._logs import about
from ._value import Value
from ._wire import Item
from .config import Settings
from .errors import ConfigurationError, FluxbaseChatError, MissingExtraError, TurnCancelledError
from .results import QueryResult

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span, Tracer

__all__ = ["check_tracer", "traced_answer"]

_log = logging.getLogger("fluxbase_aichat.tracing")

# The server runs at most five rounds of tools; what comes beyond this is no tool's doing.
_MOST_CALLS: Final = 100
# The name of the tool behind each step, where no result tells it.
_TOOLS: Final = {"querying": "execute_sql", "executing": "unknown"}


def check_tracer(tracer: object) -> None:
    """Raise `ConfigurationError` for what is no tracer, `MissingExtraError` without the API."""
    if not callable(getattr(tracer, "start_span", None)):
        raise ConfigurationError(
            "tracer must be a tracer of OpenTelemetry, such as trace.get_tracer(__name__), not "
            f"{type(tracer).__name__}"
        )
    try:
        import opentelemetry.trace  # noqa: F401, PLC0415 - an extra
    except ImportError as error:
        raise MissingExtraError(
            "tracer needs opentelemetry-api: pip install 'fluxbase-aichat[otel]'"
        ) from error


@attrs.frozen(eq=False, repr=False)
class _Call(Value):
    """One run of a tool: when it began and ended, in nanoseconds since 1970, and what it gave."""

    tool: str
    began: int
    ended: int
    result: QueryResult | None = None


class _TracedAnswer(Answer):
    """An answer that ends its span before anybody hears that it has ended."""

    def __init__(self, chatbot: str, clock: Clock, span: Span, settings: Settings) -> None:
        super().__init__(chatbot, clock)
        self._span: list[Span] = [span]
        self._settings = settings
        self._calls: list[_Call] = []
        self._running: tuple[str, int] | None = None

    def _take(self, item: Item) -> None:
        super()._take(item)
        now = time.time_ns()
        if isinstance(item, events.QueryResultEvent):
            self._tool_ended(now, "execute_sql", item.result)
        elif isinstance(item, events.ToolResult):
            self._tool_ended(now, item.output.tool, item.output.query_result)
        elif self._running is not None:
            self._tool_ended(now)  # its result never came (PROTOCOL 4.12)
        if isinstance(item, events.Progress) and item.step in _TOOLS:
            self._running = item.step, now

    def _tool_ended(self, now: int, tool: str = "", result: QueryResult | None = None) -> None:
        step, began = self._running or ("", now)
        self._running = None
        if len(self._calls) < _MOST_CALLS:
            self._calls.append(_Call(tool or _TOOLS[step], began, now, result))

    def finish(self, done: events.Done) -> bool:
        self._close(done, None)
        return super().finish(done)

    def fail(self, error: FluxbaseChatError, *, told: bool = False) -> bool:
        self._close(None, error)
        return super().fail(error, told=told)

    def after_fork(self, error: FluxbaseChatError) -> None:
        self._span.clear()  # the parent tells it
        super().after_fork(error)

    def _close(self, done: events.Done | None, error: FluxbaseChatError | None) -> None:
        try:
            span = self._span.pop()  # once, whoever comes first
        except IndexError:
            return
        try:
            self._tell(span, done, error)
        except Exception:  # noqa: BLE001 - the user's, whatever it is
            _log.exception("the tracer failed", extra=about(self.chatbot, self.conversation_id))

    def _tell(self, span: Span, done: events.Done | None, error: FluxbaseChatError | None) -> None:
        from opentelemetry.trace import StatusCode, set_span_in_context  # noqa: PLC0415 - an extra

        with self._lock:
            calls = self._calls.copy()
            text = self.text.value if self._settings.trace_content else ""
            first, sent = self._first_at, self._sent_at
        if self.conversation_id:
            span.set_attribute("gen_ai.conversation.id", self.conversation_id)
        if first is not None and sent is not None:
            span.set_attribute("gen_ai.response.time_to_first_chunk", first - sent)
        if done is not None and done.usage is not None:
            span.set_attribute("gen_ai.usage.input_tokens", done.usage.prompt_tokens)
            span.set_attribute("gen_ai.usage.output_tokens", done.usage.completion_tokens)
            if done.usage.cached_tokens is not None:
                span.set_attribute("gen_ai.usage.cache_read.input_tokens", done.usage.cached_tokens)
        reason = "stop"
        if isinstance(error, TurnCancelledError):
            reason = "cancelled"
        elif error is not None:
            reason = "error"
            span.set_attribute("error.type", type(error).__name__)
            span.set_status(StatusCode.ERROR, type(error).__name__)
        span.set_attribute("gen_ai.response.finish_reasons", [reason])
        if self._settings.trace_content:
            said = _message("assistant", text, finish_reason=reason)
            span.set_attribute("gen_ai.output.messages", said)
        inside = set_span_in_context(span)
        for call in calls:
            self._tell_call(call, inside)
        span.end()

    def _tell_call(self, call: _Call, inside: Context) -> None:
        from opentelemetry.trace import StatusCode  # noqa: PLC0415 - an extra

        attributes: dict[str, Any] = {
            "gen_ai.operation.name": "execute_tool",
            "gen_ai.tool.name": call.tool,
            "gen_ai.tool.type": "datastore" if call.result is not None else "function",
        }
        result = call.result
        if result is not None and self._settings.trace_content:
            attributes["gen_ai.tool.call.arguments"] = json.dumps({"sql": result.query})
            attributes["gen_ai.tool.call.result"] = result.summary
        tracer: Tracer = self._settings.tracer
        span = tracer.start_span(
            f"execute_tool {call.tool}", inside, attributes=attributes, start_time=call.began
        )
        if result is not None and result.status in ("failed", "rejected"):
            span.set_attribute("error.type", result.status)
            span.set_status(StatusCode.ERROR)
        span.end(end_time=call.ended)


def traced_answer(
    settings: Settings,
    chatbot: str,
    namespace: str,
    content: str,
    clock: Clock,
    context: contextvars.Context,
) -> Answer:
    """Return an answer with a span, which is the current one in `context` from now on.

    A tracer that fails is logged, and the answer goes on without it.
    """
    try:
        return context.run(_traced, settings, chatbot, namespace, content, clock)
    except Exception:  # noqa: BLE001 - the user's, whatever it is
        _log.exception("the tracer failed", extra=about(chatbot))
        return Answer(chatbot, clock)


def _traced(
    settings: Settings, chatbot: str, namespace: str, content: str, clock: Clock
) -> _TracedAnswer:
    from opentelemetry.context import attach  # noqa: PLC0415 - an extra
    from opentelemetry.trace import SpanKind, set_span_in_context  # noqa: PLC0415

    attributes: dict[str, Any] = {
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.provider.name": "fluxbase",
        "gen_ai.agent.name": chatbot,
        "gen_ai.request.stream": True,
        "fluxbase.namespace": namespace,
        "server.address": settings.endpoint.host,
        "server.port": settings.endpoint.port,
    }
    if settings.trace_content:
        attributes["gen_ai.input.messages"] = _message("user", content)
    tracer: Tracer = settings.tracer
    span = tracer.start_span(f"invoke_agent {chatbot}", kind=SpanKind.CLIENT, attributes=attributes)
    attach(set_span_in_context(span))
    return _TracedAnswer(chatbot, clock, span, settings)


def _message(role: str, text: str, **more: str) -> str:
    """Return a conversation of one message, as the GenAI conventions write it."""
    return json.dumps([{"role": role, "parts": [{"type": "text", "content": text}], **more}])
