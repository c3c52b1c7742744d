"""A turn as server-sent events: what a browser gets, and what ends it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any
from wsgiref.headers import Headers
from wsgiref.util import is_hop_by_hop

import hypothesis.strategies as st
import pytest
from clocks import FakeClock
from hypothesis import given, settings
from servers import WAIT, Gate, Peer, RawServer, content, done, error, refusing_port

from fluxbase_aichat import (
    SSE_HEADERS,
    ChatPool,
    ConfigurationError,
    FluxbaseAIChat,
    Turn,
    TurnCancelledError,
)
from fluxbase_aichat._deadline import Deadline
from fluxbase_aichat._sse import _encode
from fluxbase_aichat.devserver import DevServer

CID = "the-conversation-that-nobody-may-know"
TOKEN = "a-token-nobody-may-see"


def parse(stream: Iterable[bytes]) -> list[tuple[str, Any]]:
    """Read events as the HTML standard's parser does; comments are `(":", None)`."""
    found: list[tuple[str, Any]] = []
    kind, data = "", []
    for line in b"".join(stream).decode().split("\n"):
        field, colon, value = line.partition(":")
        value = value.removeprefix(" ")
        if not line:
            if data:
                found.append((kind, json.loads("\n".join(data), parse_constant=pytest.fail)))
            kind, data = "", []
        elif not field:
            found.append((":", None))
        elif field == "event":
            kind = value
        else:
            assert (field, colon) == ("data", ":")
            data.append(value)
    assert (kind, data) == ("", [])
    return found


def saying(*messages: Any):
    """Serve one turn of these messages."""

    def script(peer: Peer) -> None:
        peer.accept()
        peer.start(CID)
        peer.message()
        peer.send_text(*messages)
        peer.until_closed()

    return script


def result(**fields: Any) -> dict[str, Any]:
    """Return a query result as the server sends it."""
    return {"type": "query_result", "conversation_id": CID, **fields}


def events_of(*messages: Any, **options: Any) -> list[tuple[str, Any]]:
    """Return what a browser gets for these messages of the server."""
    with RawServer(saying(*messages)) as server, FluxbaseAIChat(server.url) as chat:
        turn = chat.conversation("support").send("Hi")
        turn.wait(WAIT)
        return parse(turn.iter_sse(**options))


@pytest.fixture
def held() -> Iterator[tuple[Turn, Gate]]:
    """Give a turn that has said "One", and the gate behind which it ends."""
    go_on = Gate()

    def script(peer: Peer) -> None:
        peer.accept()
        if peer.number == 1:
            peer.start(CID)
            peer.message()
            peer.send_text(content(CID, "One"))
            go_on.wait()
            peer.send_text(content(CID, "Two"), done(CID))
        peer.until_closed()

    with RawServer(script) as server, FluxbaseAIChat(server.url) as chat:
        yield chat.conversation("support").send("Hi"), go_on
        go_on.open()


# -- what comes ---------------------------------------------------------------------------------


def test_an_answer_with_its_rows() -> None:
    """Progress, words and rows in their order, without the SQL, and `done` at the end."""
    with DevServer() as server, FluxbaseAIChat(server.ws_url, token=server.token()) as chat:
        turn = chat.conversation("sql-assistant").send("Show me the top 2 users by order count")
        stream = list(turn.iter_sse())
    events = parse(stream)
    names = [name for name, _ in events]
    assert "progress" == names[0]
    assert "done" == names[-1]
    assert {"progress", "content", "result", "done"} == set(names)
    text = "".join(data["delta"] for name, data in events if name == "content")
    assert turn.text == text
    (rows,) = [data for name, data in events if name == "result"]
    assert ["name", "orders", "revenue"] == rows["columns"]
    assert ["Calm Heron", "Amber Heron"] == [row["name"] for row in rows["rows"]]
    assert ("ok", 2) == (rows["status"], rows["row_count"])
    assert "query" not in rows
    assert {"step": "thinking", "message": "Thinking..."} == events[0][1]
    assert turn.usage is not None
    assert turn.usage.total_tokens == events[-1][1]["usage"]["total_tokens"]
    for piece in stream:
        assert re.fullmatch(rb"event: \w+\ndata: [ -~]*\n\n", piece)


def test_include_and_include_sql() -> None:
    """Only what is wanted comes, and always the end; the SQL where it is asked for."""
    messages = (
        {"type": "progress", "conversation_id": CID, "step": "thinking", "message": "Hm"},
        content(CID, "One"),
        result(query="SELECT 1", summary="Query returned 1 row(s)", row_count=1, data=[{"a": 1}]),
        done(CID),
    )
    assert ["done"] == [name for name, _ in events_of(*messages, include=())]
    assert ["content", "done"] == [n for n, _ in events_of(*messages, include=["content"])]
    events = events_of(*messages, include={"result", "progress"}, include_sql=True)
    assert ["progress", "result", "done"] == [name for name, _ in events]
    assert "SELECT 1" == events[1][1]["query"]
    assert {"usage": None} == events[2][1]


def test_rows_of_tools_and_failed_queries() -> None:
    """Those of `execute_sql` are results; other tools' texts are the chatbot's own."""
    sql = {"type": "tool_result", "conversation_id": CID, "message": "execute_sql"}
    other = {**sql, "message": "think", "data": [{"tool": "think", "result": "Hm"}]}
    events = events_of(
        {**sql, "query": "SELECT 1", "data": [{"a": 1}]},
        other,
        result(query="SELECT x", summary="Query failed to execute"),
        done(CID),
    )
    assert ["result", "result", "done"] == [name for name, _ in events]
    assert [("ok", [{"a": 1}]), ("failed", [])] == [
        (data["status"], data["rows"]) for name, data in events if name == "result"
    ]


def test_values_that_json_cannot_say() -> None:
    """A UUID, a time, an interval and exact digits are text; an infinity is null."""
    row = (
        '{"id":[225,203,84,57,187,132,75,107,152,93,185,10,124,150,220,118],'
        '"at":{"Microseconds":36000000000,"Valid":true},'
        '"for":{"Microseconds":0,"Days":1,"Months":2,"Valid":true},'
        '"huge":1e999,"deep":[{"x":-1e999}],"text":"a\\ud800\\n\u2028<"}'
    )
    message = (
        f'{{"type":"query_result","conversation_id":"{CID}","query":"q","data":[{row}],'
        '"row_count":1}'
    )
    (_, data), _ = events_of(message, done(CID))
    assert {
        "id": "e1cb5439-bb84-4b6b-985d-b90a7c96dc76",
        "at": "10:00:00",
        "for": "2 months 1 days 0 s",
        "huge": None,
        "deep": [{"x": None}],
        "text": "a\ud800\n\u2028<",
    } == data["rows"][0]


def test_exact_numbers_keep_their_digits() -> None:
    """As text, because a browser's numbers would lose them."""
    message = f'{{"type":"query_result","conversation_id":"{CID}","data":[{{"n":12.50}}]}}'
    with (
        RawServer(saying(message, done(CID))) as server,
        FluxbaseAIChat(server.url, exact_numbers=True) as chat,
    ):
        (_, data), _ = parse(chat.conversation("support").send("Hi").iter_sse())
    assert [{"n": "12.50"}] == data["rows"]


@settings(max_examples=30)
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists))
def test_whatever_the_value_an_event_stays_one(value) -> None:
    """No text in it can begin another event, and every parser of JSON reads it."""
    ((name, _),) = parse([_encode("result", {"rows": [value, {str(value): value}]})])
    assert "result" == name


def test_each_iterator_begins_at_the_first_event(held) -> None:
    """However late it starts; deltas long past come joined."""
    turn, go_on = held
    first = turn.iter_sse(include=["content"])
    assert [("content", {"delta": "One"})] == parse([next(first)])
    go_on.open()
    turn.wait(WAIT)
    assert ["content", "done"] == [name for name, _ in parse(first)]
    text = "".join(d.get("delta", "") for _, d in parse(turn.iter_sse()))
    assert "OneTwo" == text
    assert [] == list(first)


# -- errors and secrets -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "sent", "retryable"),
    [
        ("TURN_LIMIT", "TURN_LIMIT", False),
        ("DAILY_LIMIT", "DAILY_LIMIT", False),
        ("RATE_LIMITED", "RATE_LIMITED", True),
        ("AUTH_REQUIRED", "AUTH_REQUIRED", False),
        ("PROVIDER_ERROR", "PROVIDER_ERROR", True),
    ],
)
def test_an_error_of_the_server_is_an_event(code, sent, retryable) -> None:
    """With the server's code and text; the hint is the developer's."""
    events = events_of(content(CID, "One"), error(f"Not so {CID}", code, CID))
    assert ["content", "error"] == [name for name, _ in events]
    message = f"Not so … ({code})"
    assert {"code": sent, "message": message, "retryable": retryable} == events[1][1]


def test_a_lost_connection_is_an_event() -> None:
    """It was sent, so trying again may ask twice."""

    def script(peer: Peer) -> None:
        peer.accept()
        if peer.number == 1:
            peer.start(CID)
            peer.message()
            peer.send_text(content(CID, "One"))
            peer.cut()
        peer.until_closed()

    with RawServer(script) as server, FluxbaseAIChat(server.url) as chat:
        events = parse(chat.conversation("support").send("Hi").iter_sse())
    lost = "the connection to the chat was lost"
    data = {"code": "CONNECTION_LOST", "message": lost, "retryable": False}
    assert [("content", {"delta": "One"}), ("error", data)] == events


def test_a_server_that_is_not_there_is_not_named() -> None:
    """Where the chat's server stands is not the browser's business."""
    with refusing_port() as port, ChatPool(f"ws://127.0.0.1:{port}") as pool:
        turn = pool.send("support", "Hi", user=1, token=TOKEN)
        (event,) = list(turn.iter_sse())
    assert str(port).encode() not in event
    data = {"code": "CONNECTION_LOST", "message": "the chat cannot be reached", "retryable": True}
    assert [("error", data)] == parse([event])


def test_no_secret_is_shown() -> None:
    """Neither the conversation's id nor a token, also where the server repeats them."""
    said = f"{CID} {TOKEN}"

    def script(peer: Peer) -> None:
        peer.accept()
        peer.start(CID)
        peer.message()
        peer.send_text(
            {"type": "progress", "conversation_id": CID, "step": "thinking", "message": CID},
            content(CID, "One"),
            result(query="q", summary=f"Query failed {CID}"),
            error(said, "X", CID),
        )
        peer.until_closed()

    with RawServer(script) as server, FluxbaseAIChat(server.url, token=TOKEN) as chat:
        stream = list(chat.conversation("support").send("Hi").iter_sse(include_sql=True))
    assert 4 == len(stream)
    assert CID.encode() not in b"".join(stream)
    assert TOKEN.encode() not in b"".join(stream)


def test_an_error_that_was_streamed_was_looked_at(caplog) -> None:
    """Nothing is logged of it a second time."""
    events_of(error("Not so", "X", CID))
    assert [] == caplog.records


# -- silence, and the end -----------------------------------------------------------------------


def test_comments_fill_the_silence(held) -> None:
    """So that proxies keep the connection; none where there is no silence, or none are wanted."""
    turn, go_on = held
    stream = turn.iter_sse(heartbeat=0.01)
    assert [("content", {"delta": "One"})] == parse([next(stream)])
    assert [b":\n\n"] * 3 == [next(stream) for _ in range(3)]
    silent = turn.iter_sse(heartbeat=None)
    assert [("content", {"delta": "One"})] == parse([next(silent)])
    go_on.open()
    assert ["content", "done"] == [name for name, _ in parse(silent)]
    assert "done" == parse(stream)[-1][0]
    assert (":", None) not in parse(turn.iter_sse(heartbeat=1e-9))


def test_silence_counts_from_the_last_event(monkeypatch) -> None:
    """An answer that comes slowly needs no comments, and the next is as far from a comment."""
    clock = FakeClock()
    monkeypatch.setattr("fluxbase_aichat._sse.Deadline", lambda seconds: Deadline(seconds, clock))
    gates = [Gate(), Gate(), Gate()]

    def script(peer: Peer) -> None:
        peer.accept()
        peer.start(CID)
        peer.message()
        for number, gate in enumerate(gates):
            peer.send_text(content(CID, str(number)))
            gate.wait()
        peer.send_text(done(CID))
        peer.until_closed()

    with RawServer(script) as server, FluxbaseAIChat(server.url) as chat:
        stream = (
            chat.conversation("support").send("Hi").iter_sse(heartbeat=10.0, include=["content"])
        )
        assert [("content", {"delta": "0"})] == parse([next(stream)])
        for number in (1, 2):
            clock.advance(6.0)
            gates[number - 1].open()
            assert [("content", {"delta": str(number)})] == parse([next(stream)])
        clock.advance(10.0)
        assert b":\n\n" == next(stream)
        clock.advance(6.0)
        gates[2].open()
        assert ["done"] == [name for name, _ in parse(stream)]


def test_what_is_left_out_is_silence_too(held) -> None:
    """A browser that gets no words gets comments."""
    turn, go_on = held
    assert b":\n\n" == next(turn.iter_sse(heartbeat=0.01, include=()))
    go_on.open()


def test_closing_cancels() -> None:
    """Also before the first event was taken, as when a browser goes at once; and twice."""
    with DevServer() as server, FluxbaseAIChat(server.ws_url, token=server.token()) as chat:
        for taken in (0, 1):
            turn = chat.conversation("sql-assistant").send("say One\npause 60")
            stream = turn.iter_sse()
            assert taken == len([next(stream) for _ in range(taken)])
            stream.close()
            stream.close()
            with pytest.raises(TurnCancelledError):
                turn.result()
            assert [] == list(stream)


def test_closing_behind_the_end_changes_nothing() -> None:
    """Web servers close every response."""
    with (
        RawServer(saying(content(CID, "One"), done(CID))) as server,
        FluxbaseAIChat(server.url) as chat,
    ):
        turn = chat.conversation("support").send("Hi")
        stream = turn.iter_sse()
        assert ["content", "done"] == [name for name, _ in parse(stream)]
        stream.close()
        assert "One" == turn.result().text


def test_a_cancelled_turn_just_ends(held) -> None:
    """Quietly, as all iterators do."""
    turn, _ = held
    stream = turn.iter_sse()
    next(stream)
    turn.cancel()
    assert [] == list(stream)
    assert [] == list(turn.iter_sse())


def test_stop_is_asked_and_cancels(held) -> None:
    """Before each event, and in silence too."""
    turn, _ = held
    asked = []

    def stop() -> bool:
        asked.append(1)
        return len(asked) > 2

    stream = turn.iter_sse(stop=stop, heartbeat=None)
    assert [("content", {"delta": "One"})] == parse([next(stream)])
    assert [] == list(stream)
    assert turn.cancelled
    assert 3 == len(asked)


def test_stop_may_raise(held) -> None:
    """It is the application's error; closing, which follows, still cancels."""
    turn, _ = held
    stream = turn.iter_sse(stop=lambda: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        next(stream)
    stream.close()
    assert turn.cancelled


def test_a_browser_that_goes_frees_the_pools_connection() -> None:
    """Nothing hangs a worker: the place is free at once, while the server is still at it."""
    with DevServer() as server, ChatPool(server.ws_url, size=1, acquire_timeout=WAIT) as pool:
        token = server.token()
        stream = pool.send("sql-assistant", "say One\npause 60", user=1, token=token).iter_sse()
        next(stream)
        stream.close()
        turn = pool.send("sql-assistant", "say Two", user=1, token=token)
        assert "Two" == turn.result().text


# -- what is asked for --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heartbeat": 0}, "heartbeat must be more than zero seconds"),
        ({"heartbeat": "15"}, "heartbeat must be a number of seconds"),
        ({"include": "content"}, "include must be a collection of some of progress, content"),
        ({"include": ["contents"]}, "include must be"),
        ({"include": 7}, "include must be"),
        ({"include": [[]]}, "include must be"),
        ({"stop": True}, "stop must be a function that says whether to stop, not bool"),
        ({"includeSql": True}, "did you mean include_sql"),
    ],
)
def test_bad_arguments_raise_at_once(options, message, held) -> None:
    """Not at the first event, which may be behind the response's head."""
    turn, _ = held
    with pytest.raises(ConfigurationError, match=message):
        turn.iter_sse(**options)


def test_the_headers_suit_wsgi() -> None:
    """Text, and none that only the server itself may set (PEP 3333)."""
    headers = Headers(list(SSE_HEADERS.items()))
    assert headers["content-type"].startswith("text/event-stream")
    assert "no-transform" in headers["cache-control"]
    assert not any(is_hop_by_hop(name) for name in SSE_HEADERS)
