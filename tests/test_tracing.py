"""Spans of OpenTelemetry: their names, what is in them and what is not, and whose children run."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from helpers import Heard
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode, Tracer

from fluxbase_aichat import (
    ConfigurationError,
    ConnectionLostError,
    FluxbaseAIChat,
    LocalProtocolError,
    MissingExtraError,
    NotConnectedError,
    RateLimitError,
    TurnCancelledError,
)
from fluxbase_aichat.testing import FakeServer

BOT = "sql-assistant"
SECRET = "what nobody should see"


class Spans:
    """A tracer, and the spans that have ended."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer: Tracer = provider.get_tracer("a test")

    @property
    def ended(self) -> list[ReadableSpan]:
        """The spans, in the order of their ending."""
        return list(self._exporter.get_finished_spans())

    def one(self) -> ReadableSpan:
        """Return the span of the only turn."""
        (turn,) = [span for span in self.ended if span.name.startswith("invoke_agent")]
        return turn


def attributes(span: ReadableSpan) -> dict[str, Any]:
    """Return the attributes of a span."""
    return dict(span.attributes or {})


@pytest.fixture
def spans() -> Spans:
    """Return a tracer that remembers."""
    return Spans()


def test_a_turn_is_a_span_with_the_genai_names(fluxbase_server: FakeServer, spans: Spans) -> None:
    """It has ended when the answer is there, and its queries are spans inside it."""
    fluxbase_server.on(BOT).say("Let me see.").rows([{"a": 1}]).failed_query().say("Done.")
    with FluxbaseAIChat(fluxbase_server.url, tracer=spans.tracer) as chat:
        reply = chat.ask(BOT, SECRET, namespace=None)
        names = [span.name for span in spans.ended]
    assert ["execute_tool execute_sql", "execute_tool execute_sql", f"invoke_agent {BOT}"] == names
    good, bad, turn = spans.ended
    found = attributes(turn)
    seconds = found.pop("gen_ai.response.time_to_first_chunk")
    assert reply.usage is not None
    assert {
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.provider.name": "fluxbase",
        "gen_ai.agent.name": BOT,
        "gen_ai.conversation.id": reply.conversation_id,
        "gen_ai.request.stream": True,
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.usage.input_tokens": reply.usage.prompt_tokens,
        "gen_ai.usage.output_tokens": reply.usage.completion_tokens,
        "fluxbase.namespace": "default",
        "server.address": "127.0.0.1",
        "server.port": int(fluxbase_server.url.split(":")[2].split("/")[0]),
    } == found
    assert seconds == reply.time_to_first_content
    assert (SpanKind.CLIENT, StatusCode.UNSET) == (turn.kind, turn.status.status_code)
    for query in (good, bad):
        assert turn.context is not None
        assert query.parent is not None
        assert turn.context.span_id == query.parent.span_id
        assert query.start_time is not None
        assert query.end_time is not None
        assert turn.start_time is not None
        assert turn.end_time is not None
        assert turn.start_time <= query.start_time <= query.end_time <= turn.end_time
    assert {
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": "execute_sql",
        "gen_ai.tool.type": "datastore",
    } == attributes(good)
    assert ("failed", StatusCode.ERROR) == (
        attributes(bad)["error.type"],
        bad.status.status_code,
    )


def test_no_content_unless_asked(fluxbase_server: FakeServer, spans: Spans) -> None:
    """Neither question nor answer, SQL, rows nor an error's text is in a span."""
    fluxbase_server.on(BOT, "error").say(SECRET).error(SECRET, "RATE_LIMITED")
    fluxbase_server.on(BOT).say(SECRET).rows([{"a": SECRET}], SECRET).failed_query(SECRET)
    with FluxbaseAIChat(fluxbase_server.url, token="my-jwt", tracer=spans.tracer) as chat:
        chat.ask(BOT, SECRET)
        with pytest.raises(RateLimitError):
            chat.ask(BOT, f"error {SECRET}")
    told = "".join(span.to_json() for span in spans.ended)
    assert 4 == len(spans.ended)
    assert SECRET not in told
    assert "my-jwt" not in told


def test_content_when_asked(fluxbase_server: FakeServer, spans: Spans) -> None:
    """Questions and answers are written as the conventions have them."""
    fluxbase_server.on(BOT).rows([{"a": 1}]).say("One.")
    with FluxbaseAIChat(fluxbase_server.url, tracer=spans.tracer, trace_content=True) as chat:
        chat.ask(BOT, "How many?")
    query, turn = spans.ended
    assert [{"role": "user", "parts": [{"type": "text", "content": "How many?"}]}] == json.loads(
        attributes(turn)["gen_ai.input.messages"]
    )
    assert [
        {
            "role": "assistant",
            "parts": [{"type": "text", "content": "One."}],
            "finish_reason": "stop",
        }
    ] == json.loads(attributes(turn)["gen_ai.output.messages"])
    assert {"sql": "SELECT a FROM fake"} == json.loads(
        attributes(query)["gen_ai.tool.call.arguments"]
    )
    assert attributes(query)["gen_ai.tool.call.result"].startswith("Query returned 1 row(s)")


def test_the_context_is_carried_into_callbacks(fluxbase_server: FakeServer, spans: Spans) -> None:
    """The turn is a child of the caller's span, and the parent of those made in its callbacks."""
    fluxbase_server.on(BOT).say("Hi")
    heard = Heard()

    def on_content(delta: str) -> None:
        with spans.tracer.start_as_current_span("in a callback"):
            heard(trace.get_current_span().get_span_context().trace_id)

    with FluxbaseAIChat(fluxbase_server.url, tracer=spans.tracer, on_content=on_content) as chat:
        conversation_id = chat.start_chat(BOT)
        with spans.tracer.start_as_current_span("the caller's") as caller:
            turn = chat.send_message(conversation_id, "hello")
            assert trace.get_current_span() is caller
        assert turn.wait()
    by_name = {span.name: span for span in spans.ended}
    inside, own = by_name["in a callback"], spans.one()
    assert own.parent == caller.get_span_context()
    assert inside.parent == own.context
    assert [caller.get_span_context().trace_id] == heard.items


def test_a_failed_turn(fluxbase_server: FakeServer, spans: Spans) -> None:
    """The error's type is the name of the exception."""
    fluxbase_server.on(BOT).say("Half").error("text", "RATE_LIMITED")
    with FluxbaseAIChat(fluxbase_server.url, tracer=spans.tracer) as chat:
        turn = chat.conversation(BOT).send("hello")
        turn.wait()
        assert turn.error is not None
    span = spans.one()
    assert "RateLimitError" == attributes(span)["error.type"]
    assert ("error",) == attributes(span)["gen_ai.response.finish_reasons"]
    assert StatusCode.ERROR == span.status.status_code


def test_lost_and_disconnected_turns(fluxbase_server: FakeServer, spans: Spans) -> None:
    """What the client found to have failed is told by the name of its exception."""
    fluxbase_server.on(BOT, "drop").say("Half").drop()
    fluxbase_server.on(BOT).hold()
    with FluxbaseAIChat(fluxbase_server.url, tracer=spans.tracer, reconnect_delay=0) as chat:
        with pytest.raises(ConnectionLostError):
            chat.ask(BOT, "drop")
        turn = chat.conversation(BOT).send("hold")
        chat.disconnect()
        with pytest.raises(NotConnectedError):
            turn.result()
        with pytest.raises(NotConnectedError):
            chat.conversation(BOT).send("never")
    types = [attributes(span)["error.type"] for span in spans.ended]
    assert ["ConnectionLostError", "NotConnectedError", "NotConnectedError"] == types


def test_a_cancelled_turn_is_no_error(fluxbase_server: FakeServer, spans: Spans) -> None:
    """It ends when it is cancelled, once; a refused one ends too."""
    fluxbase_server.on(BOT).say("Half").hold()
    with FluxbaseAIChat(fluxbase_server.url, tracer=spans.tracer) as chat:
        conversation = chat.conversation(BOT)
        turn = conversation.send("hello")
        assert "Half" == next(turn.text_stream)
        with pytest.raises(LocalProtocolError):
            conversation.send("again", if_busy="raise")
        turn.cancel()
        refused, cancelled = spans.ended
        with pytest.raises(TurnCancelledError):
            turn.result()
        fluxbase_server.release()
    assert "LocalProtocolError" == attributes(refused)["error.type"]
    assert ("cancelled",) == attributes(cancelled)["gen_ai.response.finish_reasons"]
    assert StatusCode.UNSET == cancelled.status.status_code
    assert 2 == len(spans.ended)


def test_a_tool_whose_result_never_comes(spans: Spans) -> None:
    """It is a span all the same, as long as the server was silent about it (PROTOCOL 4.12)."""
    with FluxbaseAIChat("demo:", tracer=spans.tracer) as chat:
        chat.ask("tools", 'tool think {}\n---\ntool query_table {"table": "users"}\n---\nsay done')
    tools = [span.name for span in spans.ended if span.name.startswith("execute_tool")]
    assert ["execute_tool unknown", "execute_tool query_table"] == tools


class Broken:
    """A tracer that raises."""

    def start_span(self, *_: object, **__: object) -> None:
        """Fail."""
        raise RuntimeError("broken")


def test_a_broken_tracer_breaks_no_chat(
    fluxbase_server: FakeServer, caplog: pytest.LogCaptureFixture
) -> None:
    """The log says so, and the answer comes."""
    fluxbase_server.on(BOT).say("Hi")
    broken: Any = Broken()
    with FluxbaseAIChat(fluxbase_server.url, tracer=broken) as chat:
        assert "Hi" == chat.ask(BOT, "hello").text
    assert ["the tracer failed"] == [
        r.getMessage() for r in caplog.records if r.name == "fluxbase_aichat.tracing"
    ]


def test_a_tracer_that_breaks_at_the_end(
    fluxbase_server: FakeServer, spans: Spans, caplog: pytest.LogCaptureFixture
) -> None:
    """The answer comes all the same."""
    fluxbase_server.on(BOT).rows([{"a": 1}]).say("Hi")
    calls: list[str] = []

    class Half:
        def start_span(self, name: str, *arguments: Any, **options: Any) -> Any:
            calls.append(name)
            if len(calls) > 1:
                raise RuntimeError("broken")
            return spans.tracer.start_span(name, *arguments, **options)

    half: Any = Half()
    with FluxbaseAIChat(fluxbase_server.url, tracer=half) as chat:
        assert "Hi" == chat.ask(BOT, "hello").text
    assert [f"invoke_agent {BOT}", "execute_tool execute_sql"] == calls
    assert "the tracer failed" in caplog.text


def test_what_is_no_tracer() -> None:
    """It is refused at once, and so is content without a tracer."""
    wrong: Any = "tracer"
    with pytest.raises(ConfigurationError, match="must be a tracer of OpenTelemetry"):
        FluxbaseAIChat("ws://localhost", tracer=wrong)
    with pytest.raises(ConfigurationError, match="trace_content needs a tracer"):
        FluxbaseAIChat("ws://localhost", trace_content=True)


def test_without_opentelemetry(monkeypatch: pytest.MonkeyPatch, spans: Spans) -> None:
    """The error has the pip line."""
    monkeypatch.setitem(sys.modules, "opentelemetry.trace", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'fluxbase-aichat\[otel\]'"):
        FluxbaseAIChat("ws://localhost", tracer=spans.tracer)


def test_nothing_is_imported_without_a_tracer() -> None:
    """Who does not trace pays nothing."""
    script = (
        "import sys; from fluxbase_aichat import FluxbaseAIChat;"
        " FluxbaseAIChat('demo:').ask('support', 'say Hi');"
        " print({'opentelemetry', 'fluxbase_aichat._tracing'} & sys.modules.keys())"
    )
    ran = subprocess.run(  # noqa: S603 - our own
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert "set()\n" == ran.stdout
