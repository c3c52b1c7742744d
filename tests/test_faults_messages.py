"""Faults of messages (M): what cannot be read fails one request, what is unknown fails none."""

from __future__ import annotations

import json
import logging
import math
from typing import Any

import pytest
from helpers import Heard, run
from servers import WAIT, Gate, Peer, RawServer, content, done

from fluxbase_aichat import FluxbaseAIChat
from fluxbase_aichat.errors import (
    ConfigurationError,
    FluxbaseChatError,
    LocalProtocolError,
    RemoteProtocolError,
)
from fluxbase_aichat.events import UnknownEvent

CID = "c-1"

# -- M01 ------------------------------------------------------------------------------------

UNREADABLE = {
    "not JSON": b"hello",
    "an array": b'[{"type":"done","conversation_id":"c-1"}]',
    "a string": b'"done"',
    "a number": b"1",
    "null": b"null",
    "nothing": b"",
    "a blank": b" ",
    "half an object": b'{"type":"done"',
    "two objects": b'{"type":"done","conversation_id":"c-1"}{}',
    "NaN": b'{"type":"x","n":NaN}',
    "a byte order mark": b'\xef\xbb\xbf{"type":"done","conversation_id":"c-1"}',
    "deep nesting": b'{"type":"x","n":' + b"[" * 200_000 + b"]" * 200_000 + b"}",
    "a raw line feed in a string": b'{"type":"x","n":"\n"}',
}


@pytest.mark.parametrize("junk", UNREADABLE.values(), ids=UNREADABLE.keys())
def test_m01_in_a_turn(junk) -> None:
    """The turn on the wire fails, the connection is closed, what was queued moves on."""
    asked, queued, closed = Gate(), Gate(), Gate()

    def first(peer: Peer) -> None:
        peer.accept()
        peer.start("c-1")
        peer.start("c-2")
        peer.message()
        asked.open()
        queued.wait()
        peer.send_text(content("c-1", "half"), junk, content("c-1", "never"), done("c-1"))
        peer.until_closed()
        assert 1002 == peer.close_code
        assert 3 == len(peer.received)
        closed.open()

    heard = Heard()
    with (
        RawServer(first, Peer.serve) as server,
        FluxbaseAIChat(server.url, on_error=heard, reconnect_delay=0.01) as chat,
    ):
        one, two = chat.start_chat("support"), chat.start_chat("support")
        broken = chat.send_message(one, "first")
        moved = chat.send_message(two, "second")
        asked.wait()
        started = run(chat.start_chat, "other")
        queued.open()
        with pytest.raises(RemoteProtocolError) as caught:
            broken.result()
        assert (True, "half") == (caught.value.sent, caught.value.partial_text)
        assert "You said: second" == moved.result().text
        assert started.result()
        closed.wait()
        assert chat.wait_idle(WAIT)
    assert [("CONNECTION_LOST", one)] == [(code, cid) for _, code, cid in heard.items]
    assert {"type": "start_chat", "chatbot": "support", "conversation_id": two} == next(
        message for number, message in server.received if number == 2
    )


def test_m01_in_a_start() -> None:
    """The start on the wire fails as sent; the next one goes over a new connection."""

    def first(peer: Peer) -> None:
        peer.accept()
        peer.recv_json()
        peer.send_text("[]")
        peer.until_closed()

    with (
        RawServer(first, Peer.serve) as server,
        FluxbaseAIChat(server.url, reconnect_delay=0.01) as chat,
    ):
        with pytest.raises(RemoteProtocolError) as caught:
            chat.start_chat("support")
        assert caught.value.sent is True
        assert "c-1" == chat.start_chat("support")


@pytest.mark.parametrize("junk", [b"hello", b"", b"[]"])
def test_m01_with_nothing_on_the_wire(junk) -> None:
    """Junk that interrupts nothing fails nothing: the connection is closed and comes again."""
    gate = Gate()

    def first(peer: Peer) -> None:
        peer.accept()
        peer.start(CID)
        gate.wait()
        peer.send_text(junk)
        peer.until_closed()
        assert 1002 == peer.close_code

    heard, failed = Heard(), Heard()
    with (
        RawServer(first, Peer.serve) as server,
        FluxbaseAIChat(server.url, on_event=heard, on_error=failed, reconnect_delay=0.01) as chat,
    ):
        cid = chat.start_chat("support")
        gate.open()
        # It comes again by itself; nobody has called anything.
        heard.wait_for_type("reconnected")
        assert "connected" == chat.state
        assert "You said: Hi" == chat.send_message(cid, "Hi").result().text
        assert 2 == server.connections
        assert ["connected", "chat_started", "disconnected", "reconnecting", "reconnected"] == (
            heard.types[:5]
        )
        (reason,) = [item.reason for item in heard.items if item.type == "disconnected"]
        assert "broke the protocol" in reason
    assert [] == failed.items


# -- M04 ------------------------------------------------------------------------------------

UNKNOWN: list[dict[str, Any]] = [
    {"type": "telepathy", "conversation_id": CID, "deep": {"er": [1, None, "ü"]}},
    {"type": "telepathy", "conversation_id": CID, "n": 2},
    {"type": "clairvoyance", "conversation_id": CID},
    {"type": "", "conversation_id": CID},
    {"type": 5, "conversation_id": CID},
    {"type": None, "conversation_id": CID},
    {"type": ["done"], "conversation_id": CID},
    {"conversation_id": CID, "no": "type"},
    {"type": "telepathy", "conversation_id": CID, "n": 3},
]


def test_m04_unknown_types(caplog) -> None:
    """Messages of unknown types are delivered whole, to the turn and to on_event."""

    def script(peer: Peer) -> None:
        peer.accept()
        peer.start(CID)
        peer.message()
        peer.send_text(content(CID, "a"), *UNKNOWN, content(CID, "b"), done(CID))
        peer.until_closed()

    heard = Heard()
    caplog.set_level(logging.DEBUG, "fluxbase_aichat")
    with RawServer(script) as server, FluxbaseAIChat(server.url, on_event=heard) as chat:
        turn = chat.conversation("support").send("Hi")
        events = list(turn)
        assert turn.wait(WAIT)
        assert "ab" == turn.result().text
    for delivered in (events, heard.items):
        unknown = [event for event in delivered if isinstance(event, UnknownEvent)]
        assert UNKNOWN == [event.raw for event in unknown]
        assert "telepathy" == unknown[0].type
        assert all(isinstance(event.type, str) for event in unknown)


def test_m04_unknown_types_are_logged_once(caplog) -> None:
    """Of each unknown type the log has one line, however many come."""

    def script(peer: Peer) -> None:
        peer.accept()
        peer.start(CID)
        peer.message()
        peer.send_text(*UNKNOWN, *UNKNOWN, done(CID))
        peer.message()
        peer.send_text(*UNKNOWN, done(CID))
        peer.until_closed()

    caplog.set_level(logging.DEBUG, "fluxbase_aichat")
    with RawServer(script) as server, FluxbaseAIChat(server.url) as chat:
        talk = chat.conversation("support")
        talk.ask("Hi")
        talk.ask("Hi again")
    for name in ("telepathy", "clairvoyance"):
        assert 1 == sum(name in record.getMessage() for record in caplog.records), name


# -- M05 ------------------------------------------------------------------------------------

S = "s3cret"
UNUSABLE: list[tuple[dict[str, Any], str]] = [
    ({"type": "content", "conversation_id": CID, "delta": {S: S}}, "delta"),
    ({"type": "content", "conversation_id": CID, "delta": 5}, "delta"),
    ({"type": "content", "conversation_id": [S], "delta": "x"}, "conversation_id"),
    ({"type": "content", "conversation_id": 7, "delta": "x"}, "conversation_id"),
    ({"type": "content", "delta": S}, "conversation_id"),
    ({"type": "progress", "conversation_id": 7, "step": S}, "conversation_id"),
    ({"type": "progress", "conversation_id": CID, "step": [S]}, "step"),
    ({"type": "query_result", "conversation_id": CID, "query": [S]}, "query"),
    ({"type": "query_result", "conversation_id": CID, "row_count": S}, "row_count"),
    ({"type": "query_result", "conversation_id": CID, "row_count": True}, "row_count"),
    ({"type": "query_result", "conversation_id": CID, "data": {S: S}}, "data"),
    ({"type": "query_result", "conversation_id": CID, "data": [{}, S]}, "data"),
    ({"type": "tool_result", "conversation_id": CID, "data": S}, "data"),
    ({"type": "tool_result", "conversation_id": CID, "message": [S]}, "message"),
    ({"type": "done", "conversation_id": 7}, "conversation_id"),
    ({"type": "done", "conversation_id": CID, "usage": S}, "usage"),
    ({"type": "done", "conversation_id": CID, "usage": {"total_tokens": S}}, "usage"),
    ({"type": "error", "conversation_id": CID, "error": {S: S}}, "error"),
    ({"type": "error", "conversation_id": CID, "error": "x", "code": [S]}, "code"),
    ({"type": "error", "conversation_id": {S: S}, "error": "x"}, "conversation_id"),
    ({"type": "cancelled", "conversation_id": [S]}, "conversation_id"),
]


@pytest.mark.parametrize(
    ("message", "field"), UNUSABLE, ids=[f"{m['type']} {name}" for m, name in UNUSABLE]
)
def test_m05_unusable_field(message, field) -> None:
    """A known type with a field that cannot be used is as junk; the error names the field."""

    def first(peer: Peer) -> None:
        peer.accept()
        peer.start(CID)
        peer.message()
        peer.send_text(message, done(CID))
        peer.until_closed()
        assert 1002 == peer.close_code

    heard = Heard()
    with (
        RawServer(first, Peer.serve) as server,
        FluxbaseAIChat(server.url, on_error=heard, reconnect_delay=0.01) as chat,
    ):
        talk = chat.conversation("support")
        turn = talk.send("Hi")
        with pytest.raises(RemoteProtocolError) as caught:
            turn.result()
        assert f"{message['type']} message" in str(caught.value)
        assert field in str(caught.value).partition("message")[2]
        assert S not in f"{caught.value} {caught.value!r} {caught.value.__cause__!r}"
        assert caught.value.sent is True
        assert "You said: again" == talk.ask("again").text
    assert 1 == len(heard.items)
    assert S not in heard.items[0][0]


@pytest.mark.parametrize("cid", [7, {S: S}, None, ""])
def test_m05_unusable_id_of_a_start(cid) -> None:
    """A start that is answered without a usable id fails, and names the field."""

    def script(peer: Peer) -> None:
        peer.accept()
        peer.recv_json()
        peer.send_text({"type": "chat_started", "conversation_id": cid, "chatbot": "support"})
        peer.until_closed()

    with RawServer(script) as server, FluxbaseAIChat(server.url) as chat:
        with pytest.raises(RemoteProtocolError, match="unusable conversation_id") as caught:
            chat.start_chat("support")
        assert S not in str(caught.value)


def test_m05_missing_optional_fields() -> None:
    """Every field that the server leaves out because it is empty is empty."""
    bare = [
        {"type": name, "conversation_id": CID}
        for name in ("progress", "content", "query_result", "tool_result", "done")
    ]

    def script(peer: Peer) -> None:
        peer.accept()
        peer.start(CID)
        peer.message()
        peer.send_text(*bare)
        peer.message()
        peer.send_text({"type": "error", "conversation_id": CID})
        peer.until_closed()

    progress, results = Heard(), Heard()
    with (
        RawServer(script) as server,
        FluxbaseAIChat(server.url, on_progress=progress, on_query_result=results) as chat,
    ):
        talk = chat.conversation("support")
        turn = talk.send("Hi")
        assert [message["type"] for message in bare] == [event.type for event in turn]
        reply = turn.result()
        with pytest.raises(FluxbaseChatError) as caught:
            talk.ask("again")
    assert ("", None) == (reply.text, reply.usage)
    (result,) = reply.query_results
    assert ("", "", 0, []) == (result.query, result.summary, result.row_count, result.data)
    (tool,) = reply.tool_results
    assert ("", [], None) == (tool.tool, tool.data, tool.query_result)
    assert [] == progress.items  # the SDK calls it with a step and a message only
    assert ("", "", 0, [], CID) == results.items[0]
    assert "Unknown error" == str(caught.value)


# -- M06 ------------------------------------------------------------------------------------

EXTRA = {"message_id": "m-1", "new": {"deep": [1, {"er": None}]}, "n": 2**70, "f": 0.1}


def test_m06_extra_fields() -> None:
    """Fields that this version does not know are in raw, whatever the event."""
    turn_messages: list[dict[str, Any]] = [
        {"type": "progress", "conversation_id": CID, "step": "thinking", **EXTRA},
        {**content(CID, "a"), **EXTRA},
        {**content(CID, "b"), **EXTRA},
        {**content(CID, "c"), "message_id": "m-2"},
        content(CID, "d"),
        {"type": "query_result", "conversation_id": CID, "query": "SELECT 1", **EXTRA},
        {"type": "tool_result", "conversation_id": CID, "message": "think", **EXTRA},
        {"type": "agent_thought", "conversation_id": CID, "agent_thought": {"x": 1}, **EXTRA},
        {"type": "agent_transition", "conversation_id": CID, **EXTRA},
        {**done(CID), **EXTRA},
    ]
    failure = {"type": "error", "conversation_id": CID, "error": "no", **EXTRA}
    began: list[dict[str, Any]] = []

    def script(peer: Peer) -> None:
        peer.accept()
        peer.recv_json()
        began.append({"type": "chat_started", "conversation_id": CID, **EXTRA})
        peer.send_text(*began)
        peer.message()
        peer.send_text(*turn_messages)
        peer.message()
        peer.send_text(failure)
        peer.until_closed()

    heard = Heard()
    with RawServer(script) as server, FluxbaseAIChat(server.url, on_event=heard) as chat:
        talk = chat.conversation("support")
        turn = talk.send("Hi")
        assert turn_messages == [event.raw for event in turn]
        assert "abcd" == turn.result().text
        last = talk.send("again")
        assert last.wait(WAIT)
        assert last.error is not None
    assert [*began, *turn_messages, failure] == [e.raw for e in heard.items if e.raw]


def test_m06_raw_is_what_came() -> None:
    """A field that the server left out is not in raw either."""
    empty = {"type": "content", "conversation_id": CID}

    def script(peer: Peer) -> None:
        peer.accept()
        peer.start(CID)
        peer.message()
        peer.send_text(content(CID, "a"), empty, content(CID, "b"), done(CID))
        peer.until_closed()

    with RawServer(script) as server, FluxbaseAIChat(server.url) as chat:
        turn = chat.conversation("support").send("Hi")
        assert [content(CID, "a"), empty, content(CID, "b"), done(CID)] == [e.raw for e in turn]


# -- M09 ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words", ["a\0b", "🎉 日本語 ü", '"\\\n\r\t\x7f\u2028', "", " ", "x" * 20_000_000]
)
def test_m09_any_text_goes_out_as_it_is(words) -> None:
    """NUL, emoji, controls and 20 MB arrive as they were given."""

    def script(peer: Peer) -> None:
        peer.accept()
        peer.start(CID)
        request = peer.message()
        assert words == request["content"]
        peer.send_text(content(CID, "whole"), done(CID))
        peer.until_closed()

    with RawServer(script) as server, FluxbaseAIChat(server.url) as chat:
        assert "whole" == chat.ask("support", words).text


@pytest.mark.parametrize(
    ("words", "context"),
    [
        ("half a pair \ud83d", None),
        ("\udc00", {"page": "x"}),
        ("fine", "\ud800"),
        ("fine", {"\ud800": 1}),
        ("fine", {"n": math.nan}),
        ("fine", {"n": object()}),
        ("fine", {"n": {1, 2}}),
    ],
)
def test_m09_text_that_cannot_be_written(words, context) -> None:
    """What UTF-8 or JSON cannot carry raises at the call; nothing is sent, the client goes on."""
    with RawServer(Peer.serve) as server, FluxbaseAIChat(server.url) as chat:
        cid = chat.start_chat("support")
        with pytest.raises(LocalProtocolError) as caught:
            chat.send_message(cid, words, page_context=context)
        assert caught.value.sent is False
        with pytest.raises(LocalProtocolError):
            chat.conversation("support").send(words, page_context=context)
        with pytest.raises(LocalProtocolError):
            chat.ask("support", words, page_context=context)
        assert "You said: fine" == chat.send_message(cid, "fine").result().text
    assert ["start_chat", "message"] == [message["type"] for _, message in server.received]


def test_m09_names_that_cannot_be_written() -> None:
    """A chatbot, namespace or id with half a surrogate pair raises before anything is sent."""
    with RawServer(Peer.serve) as server, FluxbaseAIChat(server.url) as chat:
        for names in (
            {"chatbot": "\ud800"},
            {"chatbot": "support", "namespace": "\ud800"},
            {"chatbot": "support", "conversation_id": "\ud800"},
            {"chatbot": "support", "impersonate_user_id": "\ud800"},
        ):
            with pytest.raises((ConfigurationError, LocalProtocolError)) as caught:
                chat.start_chat(**names)
            assert caught.value.sent is False
        assert "c-1" == chat.start_chat("support")
    assert [{"type": "start_chat", "chatbot": "support"}] == [m for _, m in server.received]


# -- M10 ------------------------------------------------------------------------------------


def test_m10_large_query_result() -> None:
    """A query result of 1 MB is delivered; calls and turns of others go on meanwhile."""
    rows = [{"id": n, "text": "x" * 100} for n in range(8000)]
    half, over = Gate(), Gate()
    message = json.dumps(
        {"type": "query_result", "conversation_id": CID, "row_count": len(rows), "data": rows}
    ).encode()

    def script(peer: Peer) -> None:
        peer.accept()
        peer.start(CID)
        peer.message()
        peer.send_raw(b"\x81\x7f" + len(message).to_bytes(8) + message[:500_000])
        half.open()
        over.wait()
        peer.send_raw(message[500_000:])
        peer.send_text(done(CID))
        peer.serve("c-2")

    with RawServer(script) as server, FluxbaseAIChat(server.url) as chat:
        turn = chat.conversation("support").send("Hi")
        half.wait()
        assert chat.is_connected()
        started = run(chat.start_chat, "support")
        behind = chat.conversation("support").send("behind")
        assert "" == turn.text
        over.open()
        assert rows == turn.result().query_results[0].data
        assert "You said: behind" == behind.result().text
        assert started.result()


# -- M11 ------------------------------------------------------------------------------------


def test_m11_event_of_an_unknown_conversation() -> None:
    """What names a conversation that nobody runs reaches on_event only."""
    other = "c-other"
    strangers: list[dict[str, Any]] = [
        {"type": "progress", "conversation_id": other, "step": "thinking", "message": "m"},
        content(other, "misrouted"),
        {"type": "query_result", "conversation_id": other, "query": "SELECT 1"},
        {"type": "error", "conversation_id": other, "error": "no"},
        done(other, {"total_tokens": 5}),
        {"type": "cancelled", "conversation_id": other},
    ]

    def script(peer: Peer) -> None:
        peer.accept()
        peer.start(CID)
        peer.message()
        peer.send_text(content(CID, "a"), *strangers, content(CID, "b"), done(CID))
        peer.until_closed()

    heard, misrouted = Heard(), Heard()
    with (
        RawServer(script) as server,
        FluxbaseAIChat(
            server.url,
            on_event=heard,
            on_content=lambda delta, cid: misrouted(delta, cid) if cid != CID else None,
            on_progress=misrouted,
            on_query_result=misrouted,
            on_error=misrouted,
            on_done=lambda usage, cid: misrouted(usage, cid) if cid != CID else None,
        ) as chat,
    ):
        turn = chat.conversation("support").send("Hi")
        assert [CID] * 3 == [event.conversation_id for event in turn]
        assert "ab" == turn.result().text
        assert "" == chat.get_accumulated_content(other)
        assert chat.wait_idle(WAIT)
    assert strangers == [event.raw for event in heard.items if event.conversation_id == other]
    assert [] == misrouted.items
