"""The client against the recordings: the recorded server's frames over a real socket.

A server plays the recorded frames and compares the client's with the recorded ones. What is
expected of the public API is written by hand. Parts that no public call would send are left out
here and played in `test_protocol_recordings`.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Sequence
from datetime import time, timedelta
from decimal import Decimal
from itertools import islice
from typing import Any, Literal
from uuid import UUID

import attrs
import pytest
from recordings import lines as lines_of
from recordings import load
from servers import CLOSE, WAIT, Gate, Gone, Peer, RawServer, Script, text

from fluxbase_aichat import (
    AuthenticationError,
    ChatbotNotFoundError,
    ConfigurationError,
    ConnectionLostError,
    ConversationNotResumedError,
    FeatureDisabledError,
    FluxbaseAIChat,
    FluxbaseChatError,
    HandshakeError,
    IdentityConflictError,
    LocalProtocolError,
    NoTableError,
    NotConnectedError,
    PermissionDeniedError,
    ProviderError,
    QueryResult,
    ServerError,
    ToolOutput,
    Turn,
    TurnCancelledError,
    TurnLimitError,
    Usage,
    events,
)
from fluxbase_aichat._transport import Transport

REPLAYED: set[str] = set()
"""The recordings that the tests of this file play."""

Write = Literal["a frame a write", "all in one write", "seven bytes a write"]
Call = tuple[Any, ...]


def replays(name: str) -> Callable[[Any], Any]:
    """Mark a test that plays this recording."""
    REPLAYED.add(name)
    return lambda test: test


@pytest.fixture(params=["a frame a write", "all in one write", "seven bytes a write"])
def write(request: pytest.FixtureRequest) -> Write:
    """How the server cuts what it writes; it must make no difference."""
    return request.param


# -- the recorded server ------------------------------------------------------------------------


@attrs.frozen
class Exchange:
    """A frame of the client, and what the server wrote until the client's next."""

    asked: dict[str, Any]
    answers: tuple[str, ...] = ()


def exchanges(name: str, connection: int = 0) -> list[Exchange]:
    """Cut a connection of a recording at the client's frames."""
    found: list[Exchange] = []
    for step in load(name)[connection].steps:
        if step.kind == "out":
            found.append(Exchange(json.loads(step.text)))
        elif step.kind == "in":
            found[-1] = attrs.evolve(found[-1], answers=(*found[-1].answers, step.text))
    return found


def plain(frame: dict[str, Any]) -> dict[str, Any]:
    """Leave out what means the same as nothing."""
    return {k: v for k, v in frame.items() if (k, v) != ("namespace", "default")}


def play(
    write: Write,
    *parts: Exchange,
    end: Literal["the client closes", "the stream ends"] = "the client closes",
) -> Script:
    """Make the script of a server that takes these frames, and no others, and answers them."""

    def script(peer: Peer) -> None:
        peer.accept()
        for part in parts:
            assert plain(part.asked) == peer.recv_json()
            send(peer, write, part.answers)
        if end == "the stream ends":
            peer.finish()
        with contextlib.suppress(Gone):
            assert CLOSE == peer.recv_control()[0]
            peer.close_frame()
            peer.until_closed()
        assert [part.asked["type"] for part in parts] == [frame["type"] for frame in peer.received]

    return script


def send(peer: Peer, write: Write, answers: Sequence[str]) -> None:
    """Write frames."""
    frames = [text(answer) for answer in answers]
    if write == "seven bytes a write":
        whole = b"".join(frames)
        frames = [whole[i : i + 7] for i in range(0, len(whole), 7)]
    elif write == "all in one write":
        frames = [b"".join(frames)]
    for data in frames:
        peer.send_raw(data)


# -- what the callbacks are told ----------------------------------------------------------------

THINKING = ("thinking", "Thinking...")
GENERATING = ("generating", "Generating response...")
QUERYING = ("querying", "Executing: scripted query")
CONNECTED, DISCONNECTED, RECONNECTED, STARTED = (
    ("event", kind) for kind in ("connected", "disconnected", "reconnected", "chat_started")
)


class Log:
    """Writes down every call of a callback, with its arguments."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self._changed = threading.Condition()

    def _add(self, call: Call) -> None:
        with self._changed:
            self.calls.append(call)
            self._changed.notify_all()

    def wait_for(self, call: Call) -> None:
        """Wait until a callback was called so."""
        with self._changed:
            assert self._changed.wait_for(lambda: call in self.calls, WAIT), f"no {call}"

    def callbacks(self) -> dict[str, Callable[..., object]]:
        """Return one callback of each kind."""
        add = self._add
        return {
            "on_content": lambda delta, conversation_id: add(("content", delta, conversation_id)),
            "on_progress": lambda step, message, conversation_id: add(
                ("progress", step, message, conversation_id)
            ),
            "on_query_result": lambda query, summary, row_count, data, conversation_id: add(
                ("query_result", query, summary, row_count, data, conversation_id)
            ),
            "on_done": lambda usage, conversation_id: add(("done", usage, conversation_id)),
            "on_error": lambda error, code, conversation_id: add(
                ("error", error, code, conversation_id)
            ),
            "on_event": lambda event: add(("event", event.type)),
        }


@pytest.fixture
def log() -> Log:
    """Write down the callbacks of this test."""
    return Log()


class Said:
    """What the callbacks are told of one conversation; each is followed by `on_event`."""

    def __init__(self, conversation_id: str) -> None:
        self.cid = conversation_id

    def progress(self, *steps: tuple[str, str]) -> list[Call]:
        """Steps."""
        return [c for s in steps for c in (("progress", *s, self.cid), ("event", "progress"))]

    def content(self, *deltas: str) -> list[Call]:
        """Deltas."""
        return [c for d in deltas for c in (("content", d, self.cid), ("event", "content"))]

    def result(self, result: QueryResult, kind: str = "query_result") -> list[Call]:
        """Say a query's result."""
        values = (result.query, result.summary, result.row_count, result.data)
        return [("query_result", *values, self.cid), ("event", kind)]

    def done(self, prompt: int, completion: int, total: int) -> list[Call]:
        """Say the end."""
        return [("done", Usage(prompt, completion, total), self.cid), ("event", "done")]


def error(message: str, code: str | None, conversation_id: str | None = None) -> list[Call]:
    """What the callbacks are told of an error of the server."""
    return [("error", message, code, conversation_id), ("event", "error")]


# -- one connection -----------------------------------------------------------------------------


@replays("turn_text")
def test_text(write: Write, log: Log) -> None:
    """Two answers in one conversation: text, usage and callbacks are the recorded ones."""
    said = Said("3ce8bd70-a32e-46a4-901e-0c615870816b")
    with (
        RawServer(play(write, *exchanges("turn_text"))) as server,
        FluxbaseAIChat(server.url, **log.callbacks()) as chat,
    ):
        assert said.cid == chat.start_chat("sql-assistant", "default")
        assert "" == chat.get_accumulated_content(said.cid)
        turn = chat.send_message(said.cid, 'say Hello wörld, 日本 and 😀 "quotes" <b>&amp;</b>')
        assert turn.wait(5)
        first = 'Hello wörld, 日本 and 😀 "quotes" <b>&amp;</b>'
        reply = turn.result(5)
        assert first == reply.text == str(reply) == turn.text
        assert (first,) == reply.segments
        assert Usage(446, 7, 453) == reply.usage == turn.usage
        assert () == reply.query_results == reply.tool_results
        assert said.cid == reply.conversation_id == turn.conversation_id
        assert "sql-assistant" == reply.chatbot
        assert ("generating", None, True, False) == (
            turn.progress,
            turn.error,
            turn.done,
            turn.cancelled,
        )
        assert ["Hello", " wörld,", " 日本", " and", " 😀", ' "quotes"', " <b>&amp;</b>"] == list(
            turn.text_stream
        )
        assert ["progress"] * 2 + ["content"] * 7 + ["done"] == [event.type for event in turn]
        assert first == chat.get_accumulated_content(said.cid)

        second = chat.ask("sql-assistant", "say A second answer.", conversation_id=said.cid)
        assert ("A second answer.", Usage(457, 3, 460)) == (second.text, second.usage)
        assert "A second answer." == chat.get_accumulated_content(said.cid)
        assert "connected" == chat.state
    assert "disconnected" == chat.state
    assert [
        CONNECTED,
        STARTED,
        *said.progress(THINKING, GENERATING),
        *said.content("Hello", " wörld,", " 日本", " and", " 😀", ' "quotes"', " <b>&amp;</b>"),
        *said.done(446, 7, 453),
        *said.progress(THINKING, GENERATING),
        *said.content("A", " second", " answer."),
        *said.done(457, 3, 460),
        DISCONNECTED,
    ] == log.calls


@replays("flood_small")
def test_flood(write: Write) -> None:
    """Two hundred deltas reach `on_content` one by one, also without `on_event`."""
    cid = "1782258b-178e-45ff-b668-f561c621fd0b"
    deltas: list[Call] = []
    with (
        RawServer(play(write, *exchanges("flood_small"))) as server,
        FluxbaseAIChat(
            server.url, on_content=lambda delta, conversation: deltas.append((delta, conversation))
        ) as chat,
    ):
        turn = chat.send_message(chat.start_chat("sql-assistant"), "flood 200 12")
        assert ["x" * 12] * 200 == list(turn.text_stream)
        assert turn.wait(5)
        assert [("x" * 12, cid)] * 200 == deltas
        assert "x" * 2400 == turn.result().text == chat.get_accumulated_content(cid)
        assert Usage(441, 200, 641) == turn.usage


@replays("anonymous")
def test_anonymous(write: Write, log: Log) -> None:
    """Without credentials one chatbot says who are you, and the other answers."""
    said = Said("ad1425ca-1bcd-4e8f-800e-ecbbd2704da6")
    found = QueryResult(
        "SELECT name FROM users LIMIT 1",
        "Query returned 1 row(s). Tables accessed: [users]. Sample name values: [Ada]",
        1,
        [{"name": "Ada"}],
    )
    with (
        RawServer(play(write, *exchanges("anonymous"))) as server,
        FluxbaseAIChat(server.url, **log.callbacks()) as chat,
    ):
        with pytest.raises(AuthenticationError, match="Authentication required") as refused:
            chat.start_chat("sql-assistant")
        assert refused.value.sent is True
        assert said.cid == chat.start_chat("support")
        question = "sql SELECT name FROM users LIMIT 1\n---\nsay Anonymous hello."
        reply = chat.send_message(said.cid, question).result(5)
        assert "authorization" not in server.peer().headers
    assert "Anonymous hello." == reply.text
    assert ("Anonymous hello.",) == reply.segments
    assert (found,) == reply.query_results
    assert found == reply.table
    assert Usage(400, 2, 402) == reply.usage
    assert [
        CONNECTED,
        *error("Authentication required", "AUTH_REQUIRED"),
        STARTED,
        *said.progress(THINKING, GENERATING, QUERYING),
        *said.result(found),
        *said.progress(GENERATING),
        *said.content("Anonymous", " hello."),
        *said.done(400, 2, 402),
        DISCONNECTED,
    ] == log.calls


@replays("big_message")
def test_big_message(write: Write, log: Log) -> None:
    """A million characters go out; the model's failure keeps the text that had come."""
    said = Said("8a835d55-1c27-4030-ba57-18c546fee55a")
    with (
        RawServer(play(write, *exchanges("big_message"))) as server,
        FluxbaseAIChat(server.url, **log.callbacks()) as chat,
    ):
        content = "say ok\n"
        content += "x" * (1_000_000 - len(content))
        turn = chat.send_message(chat.start_chat("support"), content)
        with pytest.raises(ProviderError) as failed:
            turn.result(5)
        assert "okYou said:" == turn.text == chat.get_accumulated_content(said.cid)
        assert turn.done
        assert not turn.cancelled
        assert "connected" == chat.state
    assert ("STREAM_ERROR", said.cid) == (failed.value.code, failed.value.conversation_id)
    assert (True, "okYou said:") == (failed.value.sent, failed.value.partial_text)
    assert "Error generating response (STREAM_ERROR)" == str(failed.value)
    assert [
        CONNECTED,
        STARTED,
        *said.progress(THINKING, GENERATING),
        *said.content("ok", "You", " said:"),
        *error("Error generating response", "STREAM_ERROR", said.cid),
        DISCONNECTED,
    ] == log.calls


@replays("binary_client_frame")
def test_start_only(write: Write) -> None:
    """The recording's only exchange: a start (this client sends text frames)."""
    with (
        RawServer(play(write, *exchanges("binary_client_frame"))) as server,
        FluxbaseAIChat(server.url) as chat,
    ):
        assert "405321fd-9fab-4a62-b8de-99cdafc6da84" == chat.start_chat("sql-assistant")


@replays("error_without_code_or_conversation")
def test_error_without_code_or_conversation(write: Write, log: Log) -> None:
    """An error that names nothing ends the running turn, and the conversation goes on."""
    said = Said("e333dff1-729c-4566-b30f-d53433e5b9ef")
    told = (
        "Unable to process this request - the AI kept trying to use a tool that isn't allowed "
        "for this type of query. Please rephrase your question."
    )
    with (
        RawServer(play(write, *exchanges("error_without_code_or_conversation"))) as server,
        FluxbaseAIChat(server.url, **log.callbacks()) as chat,
    ):
        conversation = chat.conversation("intent")
        assert conversation.id is None
        call = 'tool execute_sql {"sql":"SELECT 1"}'
        turn = conversation.send(f"{call} orders\n---\n{call}\n---\n{call}")
        with pytest.raises(ServerError) as failed:
            turn.result(5)
        assert said.cid == conversation.id == turn.conversation_id
        assert "Still here." == conversation.ask("say Still here.").text
    assert ServerError is type(failed.value)
    assert ("", "", told) == (failed.value.code, failed.value.conversation_id, str(failed.value))
    assert (True, "") == (failed.value.sent, failed.value.partial_text)
    assert [
        CONNECTED,
        STARTED,
        *said.progress(THINKING, GENERATING, GENERATING),
        *error(told, None),
        *said.progress(THINKING, GENERATING),
        *said.content("Still", " here."),
        *said.done(282, 2, 284),
        DISCONNECTED,
    ] == log.calls


@replays("start_errors")
def test_start_errors(write: Write, log: Log) -> None:
    """An unknown chatbot, one of another namespace, and one that is not listed."""
    parts = exchanges("start_errors")
    with (
        RawServer(play(write, parts[0], parts[3], parts[4], parts[6])) as server,
        FluxbaseAIChat(server.url, **log.callbacks()) as chat,
    ):
        for arguments in (("nope",), ("sql-assistant", "elsewhere")):
            with pytest.raises(ChatbotNotFoundError) as missing:
                chat.start_chat(*arguments)
            assert ("CHATBOT_NOT_FOUND", True) == (missing.value.code, missing.value.sent)
        with pytest.raises(ConfigurationError, match="chatbot"):
            chat.start_chat("")
        assert "76dcd6b9-ff55-46be-84c8-a24d6450abed" == chat.start_chat("hidden")
        with pytest.raises(IdentityConflictError) as conflict:
            chat.start_chat(
                "sql-assistant", impersonate_user_id="b18d69b6-18f0-4aef-8c32-1fa8f9f4f9d9"
            )
        assert conflict.value.sent is False
        assert "8ef5d8b8-fcca-44d6-a8b7-83690974f583" == chat.start_chat("sql-assistant")
    unknown = error("Chatbot not found or disabled", "CHATBOT_NOT_FOUND")
    assert [CONNECTED, *unknown, *unknown, STARTED, STARTED, DISCONNECTED] == log.calls


@replays("start_errors")
def test_forbidden_impersonation(write: Write) -> None:
    """Only administrators may impersonate; after the refusal the client is nobody yet."""
    parts = exchanges("start_errors")
    with (
        RawServer(play(write, parts[5], parts[6])) as server,
        FluxbaseAIChat(server.url) as chat,
    ):
        with pytest.raises(PermissionDeniedError, match="Only admins") as refused:
            chat.start_chat(
                "sql-assistant", impersonate_user_id="b18d69b6-18f0-4aef-8c32-1fa8f9f4f9d9"
            )
        assert refused.value.sent is True
        assert "8ef5d8b8-fcca-44d6-a8b7-83690974f583" == chat.start_chat("sql-assistant")


@replays("impersonation")
def test_impersonation(write: Write, log: Log) -> None:
    """The first start that succeeds fixes the identity; it is said once, and no other goes out."""
    said = Said("9ee208b4-3f00-47d4-a03b-2257650676e6")
    bob = "ebb17a12-04fa-4cef-9b92-e9af7141f9e3"
    parts = exchanges("impersonation")
    with (
        RawServer(play(write, *parts[1:5], parts[6])) as server,
        FluxbaseAIChat(server.url, **log.callbacks()) as chat,
    ):
        for wrong, code in (
            ("11111111-1111-4111-8111-111111111111", "USER_NOT_FOUND"),
            ("not-a-uuid", "USER_ERROR"),
        ):
            with pytest.raises(ServerError) as refused:
                chat.start_chat("keeper", impersonate_user_id=wrong)
            assert (ServerError, code) == (type(refused.value), refused.value.code)
        assert said.cid == chat.start_chat("keeper", impersonate_user_id=bob)
        assert "Hello Bob." == chat.send_message(said.cid, "say Hello Bob.").result(5).text
        with pytest.raises(IdentityConflictError):
            chat.start_chat("keeper", impersonate_user_id="e0cb5439-bb84-4b6b-985d-b90a7c96dc76")
        assert "5ed538b1-c899-4577-a701-29b0672ef2ad" == chat.start_chat(
            "keeper", impersonate_user_id=bob
        )
    assert [
        CONNECTED,
        *error("User not found", "USER_NOT_FOUND"),
        *error("Failed to verify user", "USER_ERROR"),
        STARTED,
        *said.progress(THINKING, GENERATING),
        *said.content("Hello", " Bob."),
        *said.done(360, 2, 362),
        STARTED,
        DISCONNECTED,
    ] == log.calls


@replays("impersonation")
def test_nobody_impersonated_is_an_identity(write: Write) -> None:
    """A client that has started a chat as itself does not act as another user."""
    with (
        RawServer(play(write, exchanges("impersonation")[0])) as server,
        FluxbaseAIChat(server.url) as chat,
    ):
        assert "0fb6ca1e-a9dc-464b-8f53-178313b04956" == chat.start_chat("keeper")
        with pytest.raises(IdentityConflictError):
            chat.start_chat("keeper", impersonate_user_id="ebb17a12-04fa-4cef-9b92-e9af7141f9e3")


@replays("impersonation")
def test_impersonation_by_the_constructor(write: Write) -> None:
    """A client made to act as a user says so with its first start only."""
    parts = exchanges("impersonation")
    with (
        RawServer(play(write, parts[3], parts[4], parts[6])) as server,
        FluxbaseAIChat(
            server.url, impersonate_user_id="ebb17a12-04fa-4cef-9b92-e9af7141f9e3"
        ) as chat,
    ):
        conversation = chat.conversation("keeper")
        assert "Hello Bob." == conversation.ask("say Hello Bob.").text
        assert "9ee208b4-3f00-47d4-a03b-2257650676e6" == conversation.id
        assert "5ed538b1-c899-4577-a701-29b0672ef2ad" == chat.start_chat("keeper")


@replays("ping_during_turn")
def test_pause_in_a_turn(write: Write) -> None:
    """A turn with a long pause is no reason for anything."""
    with (
        RawServer(play(write, *exchanges("ping_during_turn"))) as server,
        FluxbaseAIChat(server.url) as chat,
    ):
        reply = chat.ask("sql-assistant", "say one\npause 4\nsay two")
        assert [] == server.peer().control
    assert ("onetwo", ("onetwo",), Usage(444, 2, 446)) == (reply.text, reply.segments, reply.usage)


@replays("turn_limit")
def test_turn_limit(write: Write, log: Log) -> None:
    """The turn over the limit fails by name, and the connection stays."""
    said = Said("20ef9b3b-3420-4a9c-93e4-00d651c41014")
    with (
        RawServer(play(write, *exchanges("turn_limit"))) as server,
        FluxbaseAIChat(server.url, **log.callbacks()) as chat,
    ):
        conversation = chat.conversation("oneturn")
        assert said.cid == conversation.start()
        assert "only one" == conversation.ask("say only one").text
        with pytest.raises(TurnLimitError, match="start a new conversation") as full:
            conversation.ask("say two")
        assert ("TURN_LIMIT", said.cid) == (full.value.code, full.value.conversation_id)
        assert (True, "") == (full.value.sent, full.value.partial_text)
        assert "" == chat.get_accumulated_content(said.cid)
        assert "connected" == chat.state
    assert [
        CONNECTED,
        STARTED,
        *said.progress(THINKING, GENERATING),
        *said.content("only", " one"),
        *said.done(438, 2, 440),
        *error("Conversation turn limit reached", "TURN_LIMIT", said.cid),
        DISCONNECTED,
    ] == log.calls


# -- query results ------------------------------------------------------------------------------


@replays("turn_sql")
def test_sql(write: Write, log: Log) -> None:
    """Text round a query: two segments, and a table with the query's column order."""
    said = Said("852d89c9-bc1e-42d0-8f06-94e412342bb2")
    people = [
        {"created_at": "2026-01-02T00:00:00Z", "email": "u1@example.com", "name": "Ada"},
        {"created_at": "2026-01-03T00:00:00Z", "email": "u2@example.com", "name": "Béla"},
        {"created_at": "2026-01-04T00:00:00Z", "email": "u3@example.com", "name": "Chloë"},
        {"created_at": "2026-01-05T00:00:00Z", "email": "u4@example.com", "name": "Dmitri"},
        {"created_at": "2026-01-06T00:00:00Z", "email": "u5@example.com", "name": "Eun-ji"},
    ]
    query = "SELECT name, email, created_at FROM users ORDER BY name"
    summary = (
        "Query returned 5 row(s). Tables accessed: [users]. Sample name values: [Ada Béla Chloë]"
    )
    with (
        RawServer(play(write, *exchanges("turn_sql"))) as server,
        FluxbaseAIChat(server.url, **log.callbacks()) as chat,
    ):
        cid = chat.start_chat("sql-assistant")
        turn = chat.send_message(
            cid, f"say Let me look.\nsql {query}\n---\nsay There are five users."
        )
        reply = turn.result(5)
        assert ["progress"] * 2 + ["content"] * 3 + ["progress", "query_result", "progress"] + [
            "content"
        ] * 4 + ["done"] == [event.type for event in turn]
    assert "Let me look.There are five users." == reply.text
    assert ("Let me look.", "There are five users.") == reply.segments
    assert Usage(941, 7, 948) == reply.usage
    (result,) = reply.query_results
    assert (query, summary, 5, people) == (
        result.query,
        result.summary,
        result.row_count,
        result.data,
    )
    assert ("ok", ("name", "email", "created_at")) == (result.status, result.columns)
    assert people == list(reply.table)
    assert ["name", "email", "created_at"] == list(reply.table[0])
    assert [
        CONNECTED,
        STARTED,
        *said.progress(THINKING, GENERATING),
        *said.content("Let", " me", " look."),
        *said.progress(QUERYING),
        *said.result(QueryResult(query, summary, 5, people)),
        *said.progress(GENERATING),
        *said.content("There", " are", " five", " users."),
        *said.done(941, 7, 948),
        DISCONNECTED,
    ] == log.calls


@replays("turn_sql_no_rows")
def test_sql_without_rows(write: Write, log: Log) -> None:
    """Omitted fields: no rows are a count of 0 and an empty list, and the query succeeded."""
    said = Said("1d08d241-5afb-46a0-bc2c-768d9a80f928")
    nobody = QueryResult(
        "SELECT id, name FROM users WHERE name = 'nobody'",
        "Query executed successfully but returned 0 rows - no data matches your query criteria. "
        "Tables accessed: [users]",
        0,
        [],
    )
    with (
        RawServer(play(write, *exchanges("turn_sql_no_rows"))) as server,
        FluxbaseAIChat(server.url, **log.callbacks()) as chat,
    ):
        question = "sql SELECT id, name FROM users WHERE name = 'nobody'\n---\nsay None."
        reply = chat.ask("sql-assistant", question)
    assert (nobody,) == reply.query_results
    assert ("empty", (), []) == (reply.table.status, reply.table.columns, reply.table.rows)
    assert "None." == reply.text
    assert [
        CONNECTED,
        STARTED,
        *said.progress(THINKING, GENERATING, QUERYING),
        *said.result(nobody),
        *said.progress(GENERATING),
        *said.content("None."),
        *said.done(922, 1, 923),
        DISCONNECTED,
    ] == log.calls


@pytest.mark.parametrize("exact", [False, True])
@replays("turn_sql_two_calls")
def test_two_queries_in_a_round(write: Write, log: Log, exact: bool) -> None:
    """Three results in the order they came; totals are exact where that was asked for."""
    said = Said("6cc8f761-3212-4ebc-84b7-b38ea4954e9f")
    number = Decimal if exact else float
    notes = [
        {
            "id": 1,
            "note": 'note "1" é <b>',
            "placed_at": "2026-02-01T01:00:00Z",
            "total": number("12.50"),
        },
        {
            "id": 2,
            "note": 'note "2" é <b>',
            "placed_at": "2026-02-01T02:00:00Z",
            "total": number("25.00"),
        },
        {"id": 3, "note": None, "placed_at": "2026-02-01T03:00:00Z", "total": number("37.50")},
    ]
    orders = QueryResult(
        "SELECT id, total, placed_at, note FROM orders ORDER BY id LIMIT 3",
        "Query returned 3 row(s). Tables accessed: [orders]. Sample id values: [1 2 3]",
        3,
        notes,
    )
    users = QueryResult(
        "SELECT name FROM users LIMIT 2",
        "Query returned 2 row(s). Tables accessed: [users]. Sample name values: [Ada Béla]",
        2,
        [{"name": "Ada"}, {"name": "Béla"}],
    )
    count = QueryResult(
        "SELECT count(*) FROM orders",
        "Query returned 1 row(s). Tables accessed: [orders]. Sample count values: [20]",
        1,
        [{"count": 20}],
    )
    with (
        RawServer(play(write, *exchanges("turn_sql_two_calls"))) as server,
        FluxbaseAIChat(server.url, exact_numbers=exact, **log.callbacks()) as chat,
    ):
        reply = chat.ask(
            "sql-assistant",
            f"sql {users.query}\nsql {orders.query}\n---\nsay First.\nsql {count.query}\n---\n"
            "say Second.",
        )
    assert "First.Second." == reply.text
    assert ("First.", "Second.") == reply.segments
    assert (orders, users, count) == reply.query_results
    assert [number, number, number] == [type(row["total"]) for row in reply.query_results[0].data]
    assert "12.50" == str(reply.query_results[0].data[0]["total"]) or not exact
    assert [("id", "total", "placed_at", "note"), ("name",), ("count",)] == [
        result.columns for result in reply.query_results
    ]
    assert count == reply.table
    assert Usage(1526, 2, 1528) == reply.usage
    assert [
        CONNECTED,
        STARTED,
        *said.progress(THINKING, GENERATING, QUERYING),
        *said.result(orders),
        *said.progress(QUERYING),
        *said.result(users),
        *said.progress(GENERATING),
        *said.content("First."),
        *said.progress(QUERYING),
        *said.result(count),
        *said.progress(GENERATING),
        *said.content("Second."),
        *said.done(1526, 2, 1528),
        DISCONNECTED,
    ] == log.calls


@pytest.mark.parametrize("exact", [False, True])
@replays("turn_sql_column_types")
def test_column_types(write: Write, exact: bool) -> None:
    """Every type of column; a result that the server dropped; a group with a null UUID."""
    with (
        RawServer(play(write, *exchanges("turn_sql_column_types"))) as server,
        FluxbaseAIChat(server.url, exact_numbers=exact) as chat,
    ):
        conversation = chat.conversation("sql-assistant")
        typed = conversation.ask("sql SELECT * FROM types WHERE i2 = 1\n---\nsay Typed.")
        dropped = conversation.ask(
            "sql SELECT i8, n, f8, tz FROM types\n---\n"
            "say NaN and infinity: the server drops the frame."
        )
        query = "SELECT u, count(*) as n, avg(i8) a FROM types GROUP BY u"
        grouped = conversation.ask(f"sql {query}\n---\nsay Grouped.")

    one = UUID("00000000-0000-4000-8000-000000000001")
    n = "12345678901234567890.123456789"
    wire = {
        "ai": [1, 2, 3],
        "at": ["x", "y z"],
        "b": True,
        "ba": "\u07ad\ufffd\ufffd",
        "d": "2026-02-28T00:00:00Z",
        "f4": Decimal("0.1") if exact else 0.1,
        "f8": Decimal("0.1") if exact else 0.1,
        "i2": 1,
        "i4": -2147483648,
        "i8": 9223372036854775807,
        "ip": "10.0.0.1/24",
        "iv": {"Microseconds": 7384000000, "Days": 1, "Months": 0, "Valid": True},
        "j": {"a": [1, Decimal("2.5") if exact else 2.5], "b": 1},
        "jb": {"a": [1, Decimal("2.5") if exact else 2.5], "b": 1},
        "n": Decimal(n) if exact else float(n),
        "nul": None,
        "t": "zażółć 😀",
        "tm": {"Microseconds": 45296000000, "Valid": True},
        "ts": "2026-02-28T12:34:56Z",
        "tz": "2026-02-28T10:34:56Z",
        "u": [0, 0, 0, 0, 0, 0, 64, 0, 128, 0, 0, 0, 0, 0, 0, 1],
        "v": "[1,2,3]",
    }
    (result,) = typed.query_results
    assert [wire] == result.data
    assert repr(wire["n"]) == repr(result.data[0]["n"])
    assert tuple(wire) == result.columns
    assert [
        {
            **wire,
            "iv": timedelta(days=1, seconds=7384),
            "tm": time(12, 34, 56),
            "u": one,
        }
    ] == result.rows
    assert ("Typed.", Usage(922, 1, 923)) == (typed.text, typed.usage)

    assert "NaN and infinity: the server drops the frame." == dropped.text
    assert () == dropped.query_results
    with pytest.raises(NoTableError):
        _ = dropped.table
    assert Usage(958, 8, 966) == dropped.usage

    average = "9007199254740993.0000"
    group = grouped.table
    assert [
        {"a": Decimal(average) if exact else float(average), "n": 1, "u": None},
        {"a": 9223372036854775807, "n": 1, "u": one},
    ] == group.rows
    assert repr(Decimal(average) if exact else float(average)) == repr(group.rows[0]["a"])
    assert ("ok", 2, ("a", "n", "u")) == (group.status, group.row_count, group.columns)
    assert (
        "Query returned 2 row(s). Tables accessed: [types]. "
        "Sample u values: [<nil> [0 0 0 0 0 0 64 0 128 0 0 0 0 0 0 1]]"
    ) == group.summary


@replays("turn_mcp_tools")
def test_tools(write: Write, log: Log) -> None:
    """A tool's output, rows of `execute_sql` in both lists, and tools that gave nothing."""
    said = Said("242ee35d-44f7-4a9c-b93e-1fac208ea816")
    rows = QueryResult(
        "SELECT name FROM users ORDER BY name LIMIT 2",
        "Returned 2 row(s) in 1ms",
        2,
        [{"name": "Ada"}, {"name": "Béla"}],
    )
    parts = exchanges("turn_mcp_tools")
    with (
        RawServer(play(write, *parts)) as server,
        FluxbaseAIChat(server.url, **log.callbacks()) as chat,
    ):
        conversation = chat.conversation("tools")
        first, bad, unknown = (conversation.ask(part.asked["content"]) for part in parts[1:])
    assert ("Done.", ("Done.",), Usage(1964, 1, 1965)) == (first.text, first.segments, first.usage)
    table, sql = first.tool_results
    assert ("query_table", None, 1) == (table.tool, table.query_result, len(table.data))
    assert {"tool": "query_table"} == {k: v for k, v in table.data[0].items() if k != "result"}
    assert ["Ada", "Béla"] == [row["name"] for row in json.loads(table.data[0]["result"])]
    assert ToolOutput("execute_sql", rows.data, rows) == sql
    assert (rows,) == first.query_results
    assert ("ok", ("name",)) == (first.table.status, first.table.columns)
    assert [("Bad.", (), ()), ("Unknown.", (), ())] == [
        (reply.text, reply.query_results, reply.tool_results) for reply in (bad, unknown)
    ]
    assert [
        CONNECTED,
        STARTED,
        *said.progress(THINKING, GENERATING, ("executing", "Executing think..."), GENERATING),
        *said.progress(("executing", "Executing query_table on users...")),
        ("event", "tool_result"),
        *said.progress(GENERATING, ("executing", "Executing execute_sql...")),
        *said.result(rows, "tool_result"),
        *said.progress(GENERATING),
        *said.content("Done."),
        *said.done(1964, 1, 1965),
        *said.progress(THINKING, GENERATING, ("executing", "Executing execute_sql...")),
        *said.progress(GENERATING),
        *said.content("Bad."),
        *said.done(948, 1, 949),
        *said.progress(THINKING, GENERATING, GENERATING),
        *said.content("Unknown."),
        *said.done(954, 1, 955),
        DISCONNECTED,
    ] == log.calls


# -- more than one conversation -----------------------------------------------------------------


@replays("two_chatbots_switched_by_resume")
def test_two_chatbots(write: Write, log: Log) -> None:
    """A conversation is started again when the other chatbot was last, and only then."""
    a, b = (
        Said("784cba64-8d91-4f11-9c33-a7c5ebf6b477"),
        Said("6590882b-2297-4a13-b1a7-f5da3b4b73da"),
    )
    parts = exchanges("two_chatbots_switched_by_resume")
    assert "start_chat" == parts[5].asked["type"]  # the recorded client's, not needed
    with (
        RawServer(play(write, *parts[:5], *parts[6:])) as server,
        FluxbaseAIChat(server.url, **log.callbacks()) as chat,
    ):
        assert a.cid == chat.start_chat("sql-assistant")
        assert b.cid == chat.start_chat("oneturn")
        turns = [
            chat.send_message(b.cid, "say one turn in b"),
            chat.send_message(a.cid, "say first in a"),
            chat.send_message(a.cid, "say second in a"),
            chat.send_message(b.cid, "say over the limit"),
        ]
        assert ["one turn in b", "first in a", "second in a"] == [
            turn.result(5).text for turn in turns[:3]
        ]
        with pytest.raises(TurnLimitError):
            turns[3].result(5)
        assert ["second in a", ""] == [chat.get_accumulated_content(c.cid) for c in (a, b)]
    assert [
        CONNECTED,
        STARTED,
        STARTED,
        *b.progress(THINKING, GENERATING),
        *b.content("one", " turn", " in", " b"),
        *b.done(440, 4, 444),
        STARTED,
        *a.progress(THINKING, GENERATING),
        *a.content("first", " in", " a"),
        *a.done(442, 3, 445),
        *a.progress(THINKING, GENERATING),
        *a.content("second", " in", " a"),
        *a.done(449, 3, 452),
        STARTED,
        *error("Conversation turn limit reached", "TURN_LIMIT", b.cid),
        DISCONNECTED,
    ] == log.calls


@replays("two_messages_pipelined")
def test_calls_wait_in_order(write: Write, log: Log) -> None:
    """What was recorded written ahead waits in the client's queue: one request at a time."""
    a, b = (
        Said("8b206293-af30-40a7-a61b-511c7e52059d"),
        Said("6576b253-a5c9-42fe-964a-f2aec86240b4"),
    )
    first, second, ask_a, ask_b, nope, support = exchanges("two_messages_pipelined")
    answers = support.answers
    script = play(
        write,
        first,
        second,
        attrs.evolve(ask_a, answers=answers[:6]),
        attrs.evolve(ask_b, answers=answers[6:11]),
        attrs.evolve(nope, answers=answers[11:12]),
        attrs.evolve(support, answers=answers[12:]),
    )
    with RawServer(script) as server, FluxbaseAIChat(server.url, **log.callbacks()) as chat:
        assert a.cid == chat.start_chat("sql-assistant")
        assert b.cid == chat.start_chat("sql-assistant")
        turn_a = chat.send_message(a.cid, "say a1 a2\npause 1\nsay a3")
        turn_b = chat.send_message(b.cid, "say b1 b2")
        with pytest.raises(ChatbotNotFoundError):
            chat.start_chat("nope")
        assert (True, True) == (turn_a.done, turn_b.done)
        assert "1f1de8b6-9ea5-48e4-8d03-0965fb35efdc" == chat.start_chat("support")
        assert ["a1 a2a3", "b1 b2"] == [turn.result(5).text for turn in (turn_a, turn_b)]
        assert [Usage(445, 3, 448), Usage(441, 2, 443)] == [turn_a.usage, turn_b.usage]
    assert [
        CONNECTED,
        STARTED,
        STARTED,
        *a.progress(THINKING, GENERATING),
        *a.content("a1", " a2", "a3"),
        *a.done(445, 3, 448),
        *b.progress(THINKING, GENERATING),
        *b.content("b1", " b2"),
        *b.done(441, 2, 443),
        *error("Chatbot not found or disabled", "CHATBOT_NOT_FOUND"),
        STARTED,
        DISCONNECTED,
    ] == log.calls


@replays("message_then_close")
def test_a_queued_message_is_never_written(write: Write) -> None:
    """Written ahead it would be run and paid for; so `disconnect` finds it unsent."""
    parts = exchanges("message_then_close")
    script = play(write, parts[0], attrs.evolve(parts[1], answers=parts[2].answers))
    with RawServer(script) as server, FluxbaseAIChat(server.url) as chat:
        cid = chat.start_chat("keeper")
        running = chat.send_message(cid, "say first\npause 1\nsay end")
        queued = chat.send_message(cid, "say queued behind")
        assert "first" == next(iter(running.text_stream))
        chat.disconnect()
        for turn, sent, had_come in ((running, True, "first"), (queued, False, "")):
            with pytest.raises(NotConnectedError) as gone:
                turn.result(5)
            assert (sent, had_come) == (gone.value.sent, gone.value.partial_text)
        server.join()


@replays("resume_unknown_id")
def test_resume_of_an_unknown_conversation(write: Write, log: Log) -> None:
    """The server silently opens another one: an error says so, with both ids."""
    parts = exchanges("resume_unknown_id")
    unknown = "11111111-1111-4111-8111-111111111111"
    with (
        RawServer(play(write, *parts)) as server,
        FluxbaseAIChat(server.url, **log.callbacks()) as chat,
    ):
        for chatbot, requested, received in (
            ("sql-assistant", unknown, "adeef359-f599-498a-b30f-ea24232c1b36"),
            ("keeper", "not-a-uuid", "1e242292-76be-49a7-b015-1c49e0b03b7c"),
            ("keeper", unknown, "3300d1b2-2273-420d-aac5-dc83a88bc784"),
        ):
            with pytest.raises(ConversationNotResumedError) as lost:
                chat.start_chat(chatbot, conversation_id=requested)
            assert (requested, received) == (lost.value.requested, lost.value.received)
            assert lost.value.sent is True
            assert "" == chat.get_accumulated_content(received)
            with pytest.raises(LocalProtocolError):
                chat.send_message(requested, "this client has never started that one")
    assert [CONNECTED, *[STARTED] * 3, DISCONNECTED] == [
        call for call in log.calls if call[0] == "event"
    ]


@replays("resume_unknown_id")
def test_the_new_conversation_is_usable(write: Write) -> None:
    """The one that was opened instead takes messages under its own id."""
    received = "3300d1b2-2273-420d-aac5-dc83a88bc784"
    message = Exchange(
        {"type": "message", "conversation_id": received, "content": "Hello"},
        (json.dumps({"type": "done", "conversation_id": received}),),
    )
    with (
        RawServer(play(write, exchanges("resume_unknown_id")[2], message)) as server,
        FluxbaseAIChat(server.url) as chat,
    ):
        with pytest.raises(ConversationNotResumedError):
            chat.start_chat("keeper", conversation_id="11111111-1111-4111-8111-111111111111")
        reply = chat.send_message(received, "Hello").result(5)
        assert ("", None) == (reply.text, reply.usage)


@replays("resume_unknown_id")
def test_on_lost_new(write: Write) -> None:
    """A conversation that may be replaced goes on under the new id, with its message."""
    received = "3300d1b2-2273-420d-aac5-dc83a88bc784"
    message = Exchange(
        {"type": "message", "conversation_id": received, "content": "Hello"},
        (json.dumps({"type": "done", "conversation_id": received}),),
    )
    with (
        RawServer(play(write, exchanges("resume_unknown_id")[2], message)) as server,
        FluxbaseAIChat(server.url) as chat,
    ):
        conversation = chat.conversation(
            "keeper", conversation_id="11111111-1111-4111-8111-111111111111", on_lost="new"
        )
        assert received == conversation.ask("Hello").conversation_id == conversation.id


# -- the end of a connection --------------------------------------------------------------------


@replays("cancel_mid_turn")
def test_cancel(write: Write, log: Log) -> None:
    """A cancel ends the turn at once; what the old connection still says surfaces nowhere."""
    said = Said("1585b11f-e9e8-4abe-8ecd-d8d72ad583b2")
    parts = exchanges("cancel_mid_turn")
    again = Exchange(
        {"type": "start_chat", "chatbot": "sql-assistant", "conversation_id": said.cid},
        parts[0].answers,
    )
    message = Exchange(
        {"type": "message", "conversation_id": said.cid, "content": "say new"},
        (
            json.dumps({"type": "content", "conversation_id": said.cid, "delta": "new"}),
            json.dumps({"type": "done", "conversation_id": said.cid}),
        ),
    )
    with (
        RawServer(
            play(write, *parts, end="the stream ends"), play(write, again, message)
        ) as server,
        FluxbaseAIChat(server.url, **log.callbacks()) as chat,
    ):
        cid = chat.start_chat("sql-assistant")
        turn = chat.send_message(cid, "say one two three\npause 2\nsay four five six")
        stream = turn.text_stream
        assert ["one", " two", " three"] == list(islice(stream, 3))
        chat.wait_idle(0)  # the callbacks of these three may still be on their way
        chat.cancel(cid)
        assert (True, True) == (turn.done, turn.cancelled)
        assert [] == list(stream)
        with pytest.raises(TurnCancelledError) as cancelled:
            turn.result()
        assert (True, "one two three") == (cancelled.value.sent, cancelled.value.partial_text)
        assert turn.wait(5)
        server.join(1)  # the old stream has ended, and the client has closed it
        assert "one two three" == turn.text == chat.get_accumulated_content(cid)
        assert "new" == chat.send_message(cid, "say new").result(5).text
        assert "connected" == chat.state
        assert {"type": "cancel", "conversation_id": cid} == server.peer(1).received[-1]
    seen = [call[1] for call in log.calls if call[0] == "content"]
    assert seen[-1:] == ["new"]
    assert seen[:-1] == ["one", " two", " three"][: len(seen) - 1]
    assert [("done", None, cid)] == [call for call in log.calls if call[0] in {"done", "error"}]
    assert [CONNECTED, DISCONNECTED] == [
        call for call in log.calls if call in {CONNECTED, DISCONNECTED, RECONNECTED}
    ]


@replays("cancel_when_idle")
def test_cancel_without_a_turn(write: Write) -> None:
    """It would cost the connection, so nothing is written."""
    parts = exchanges("cancel_when_idle")
    with (
        RawServer(play(write, *parts[:2])) as server,
        FluxbaseAIChat(server.url) as chat,
    ):
        cid = chat.start_chat("sql-assistant")
        chat.cancel(cid)
        turn = chat.send_message(cid, "say One.")
        assert "One." == turn.result(5).text
        chat.cancel(cid)
        turn.cancel()
        assert (False, "connected") == (turn.cancelled, chat.state)


@replays("close_handshake_idle")
def test_close_handshake(write: Write) -> None:
    """Between turns `disconnect` closes politely: a close frame of 1000, and its answer."""
    (start,) = exchanges("close_handshake_idle")

    def script(peer: Peer) -> None:
        peer.accept()
        assert start.asked == peer.recv_json()
        send(peer, write, start.answers)
        assert (CLOSE, (1000).to_bytes(2)) == peer.recv_control()
        peer.close_frame(1000)
        assert [start.asked] == peer.until_closed()

    with RawServer(script) as server, FluxbaseAIChat(server.url) as chat:
        assert "fe81dc31-7be1-4b64-9b5c-82b002e50931" == chat.start_chat("sql-assistant")
        chat.disconnect()
        assert "disconnected" == chat.state
        assert not chat.is_connected()
        with pytest.raises(NotConnectedError):
            chat.start_chat("sql-assistant")


@replays("close_handshake_mid_turn")
def test_disconnect_in_mid_turn(write: Write, log: Log) -> None:
    """In a turn no close frame would be answered: the stream is ended without waiting."""
    said = Said("61204ade-90fe-4e14-97b3-64b8c86571e5")
    seen = Gate("delta")
    callbacks = log.callbacks()

    def on_content(delta: str, conversation_id: str) -> None:
        log.calls.append(("content", delta, conversation_id))
        seen.open()

    callbacks["on_content"] = on_content
    with (
        RawServer(play(write, *exchanges("close_handshake_mid_turn"))) as server,
        # With a handshake it would wait for all of these seconds, and the test would fail.
        FluxbaseAIChat(server.url, **callbacks) as chat,
    ):
        turn = chat.send_message(chat.start_chat("sql-assistant"), "say one\npause 4\nsay two")
        seen.wait()
        chat.disconnect(timeout=60)
        with pytest.raises(NotConnectedError) as gone:
            turn.result()
        assert (True, "one") == (gone.value.sent, gone.value.partial_text)
        assert "one" == chat.get_accumulated_content(said.cid)
    assert [
        CONNECTED,
        STARTED,
        *said.progress(THINKING, GENERATING),
        *said.content("one"),
        DISCONNECTED,
    ] == log.calls


@replays("server_killed_mid_turn")
def test_server_killed(write: Write, log: Log) -> None:
    """The end of the stream fails the turn once, and says that the message was sent."""
    said = Said("55c456a4-ba72-4ce7-9bb6-278af3438724")
    script = play(write, *exchanges("server_killed_mid_turn"), end="the stream ends")
    with (
        RawServer(script) as server,
        FluxbaseAIChat(server.url, reconnect_attempts=0, **log.callbacks()) as chat,
    ):
        turn = chat.send_message(chat.start_chat("sql-assistant"), "say one\npause 3\nsay two")
        with pytest.raises(ConnectionLostError) as lost:
            turn.result(5)
        assert turn.wait(5)
        assert (True, False, "one") == (
            lost.value.sent,
            lost.value.retryable,
            lost.value.partial_text,
        )
        assert turn is lost.value.turn
        with pytest.raises(ConnectionLostError):
            list(turn)
        assert "one" == turn.text == chat.get_accumulated_content(said.cid)
        assert "lost" == chat.state
        server.join()
    assert [
        CONNECTED,
        STARTED,
        *said.progress(THINKING, GENERATING),
        *said.content("one"),
    ] == log.calls[:-2]
    # Which of the two is told first is nobody's business.
    assert [
        ("error", "the connection ended without a close frame", "CONNECTION_LOST", said.cid),
        DISCONNECTED,
    ] == sorted(log.calls[-2:])


@replays("connection_lost_mid_turn_answer_kept")
@replays("connection_lost_between_tool_rounds")
@pytest.mark.parametrize(
    ("name", "text", "results"),
    [
        ("connection_lost_mid_turn_answer_kept", "one two", 0),
        ("connection_lost_between_tool_rounds", "Let me look.", 1),
    ],
)
def test_connection_lost(write: Write, log: Log, name: str, text: str, results: int) -> None:
    """What had come stays readable after the loss; the rest is for the REST side."""
    parts = exchanges(name)
    with (
        RawServer(play(write, *parts, end="the stream ends")) as server,
        FluxbaseAIChat(server.url, reconnect_attempts=0, **log.callbacks()) as chat,
    ):
        cid = chat.start_chat("keeper")
        turn = chat.send_message(cid, parts[1].asked["content"])
        with pytest.raises(ConnectionLostError) as lost:
            turn.result(5)
        assert turn.wait(5)
        assert (True, text) == (lost.value.sent, lost.value.partial_text)
        assert (text, results) == (turn.text, len(turn.query_results))
        assert turn.usage is None
        assert text == chat.get_accumulated_content(cid)
    assert results == sum(call[0] == "query_result" for call in log.calls)
    assert text == "".join(call[1] for call in log.calls if call[0] == "content")
    assert ["CONNECTION_LOST"] == [call[2] for call in log.calls if call[0] == "error"]
    assert [] == [call for call in log.calls if call[0] == "done"]


@replays("resume_in_memory")
def test_resume_by_another_client(write: Write) -> None:
    """Another client goes on with a conversation by its id."""
    cid = "e7c01487-52a6-469e-b427-724e2b05876f"
    scripts = [play(write, *exchanges("resume_in_memory", i)) for i in (0, 1)]
    with RawServer(*scripts) as server:
        with FluxbaseAIChat(server.url) as chat:
            reply = chat.ask("sql-assistant", "say Remember.")
            assert ("Remember.", cid) == (reply.text, reply.conversation_id)
        with FluxbaseAIChat(server.url) as chat:
            assert cid == chat.start_chat("sql-assistant", conversation_id=cid)
            assert "Remembered." == chat.send_message(cid, "say Remembered.").result(5).text


@replays("resume_in_memory")
def test_resume_after_disconnect(write: Write) -> None:
    """`connect` after `disconnect` keeps the conversations: the next message starts it again."""
    scripts = [play(write, *exchanges("resume_in_memory", i)) for i in (0, 1)]
    with RawServer(*scripts) as server, FluxbaseAIChat(server.url) as chat:
        conversation = chat.conversation("sql-assistant")
        assert "Remember." == conversation.ask("say Remember.").text
        chat.disconnect()
        chat.connect()
        assert "Remembered." == conversation.ask("say Remembered.").text


@replays("resume_same_server")
def test_resume_after_a_loss_between_turns(write: Write, log: Log) -> None:
    """Losing the connection loses no conversation, and nobody asks too early (`NO_SESSION`)."""
    said = Said("80c9ef85-0095-4dc8-bc6c-3feaec91b595")
    early, *rest = exchanges("resume_same_server", 1)
    assert "say Too early." == early.asked["content"]
    scripts = [
        play(write, *exchanges("resume_same_server"), end="the stream ends"),
        play(write, *rest),
    ]
    with (
        RawServer(*scripts) as server,
        FluxbaseAIChat(server.url, reconnect_attempts=0, **log.callbacks()) as chat,
    ):
        conversation = chat.conversation("keeper")
        assert "My name is Ann." == conversation.ask("say My name is Ann.").text
        log.wait_for(DISCONNECTED)
        assert "You are Ann." == conversation.ask("say You are Ann.").text
        assert said.cid == conversation.id
    assert [
        CONNECTED,
        STARTED,
        *said.progress(THINKING, GENERATING),
        *said.content("My", " name", " is", " Ann."),
        *said.done(241, 4, 245),
        DISCONNECTED,
        RECONNECTED,
        STARTED,
        *said.progress(THINKING, GENERATING),
        *said.content("You", " are", " Ann."),
        *said.done(249, 3, 252),
        DISCONNECTED,
    ] == log.calls


@replays("resume_same_server")
def test_a_message_that_meets_the_end(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked for when the stream has ended and nobody was told yet, it was never written.

    So it goes over the next connection (promise 1), and no error calls it sent (promise 2).
    """
    _, *rest = exchanges("resume_same_server", 1)
    scripts = [
        play(write, *exchanges("resume_same_server"), end="the stream ends"),
        play(write, *rest),
    ]
    turns: list[Turn] = []
    with (
        RawServer(*scripts) as server,
        FluxbaseAIChat(server.url, reconnect_attempts=0) as chat,
    ):
        conversation = chat.conversation("keeper")
        close = Transport.close

        def send_then_close(transport: Transport) -> None:
            if not turns:
                turns.append(conversation.send("say You are Ann."))
            close(transport)

        monkeypatch.setattr(Transport, "close", send_then_close)
        assert "My name is Ann." == conversation.ask("say My name is Ann.").text
        server.join(1)
        server.wait_for(lambda: bool(turns), "the end of the first connection")
        assert "You are Ann." == turns[0].result(5).text


@replays("resume_same_server")
def test_callbacks_after_a_loss_wait_for_those_before(write: Write, log: Log) -> None:
    """A callback that is slow to hear of the loss is not overtaken by the next connection's."""
    _, *rest = exchanges("resume_same_server", 1)
    scripts = [
        play(write, *exchanges("resume_same_server"), end="the stream ends"),
        play(write, *rest),
    ]
    gate = Gate("callback")
    callbacks = log.callbacks()
    on_event = callbacks["on_event"]

    def slow(event: events.Event) -> None:
        on_event(event)
        if event.type == "disconnected":
            gate.wait()

    callbacks["on_event"] = slow
    with (
        RawServer(*scripts) as server,
        FluxbaseAIChat(server.url, reconnect_attempts=0, **callbacks) as chat,
    ):
        conversation = chat.conversation("keeper")
        assert "My name is Ann." == conversation.ask("say My name is Ann.").text
        log.wait_for(DISCONNECTED)
        turn = conversation.send("say You are Ann.")
        assert "You are Ann." == turn.result(5).text
        # The new connection's callbacks have been posted; none may run yet.
        overtaken = turn.wait(0.05)
        gate.open()
        assert not overtaken
        assert turn.wait(5)
        told = log.calls[log.calls.index(DISCONNECTED) :]
        assert [RECONNECTED, STARTED] == told[1:3]


@replays("resume_while_running")
def test_resume_after_a_loss_in_mid_turn(write: Write) -> None:
    """The lost message is not written again; the next one goes over a new connection."""
    cid = "8aae49ac-1ba8-4227-bfdc-69cd85654f7f"
    scripts = [
        play(write, *exchanges("resume_while_running"), end="the stream ends"),
        play(write, *exchanges("resume_while_running", 1)),
    ]
    with (
        RawServer(*scripts) as server,
        FluxbaseAIChat(server.url, reconnect_attempts=0) as chat,
    ):
        assert cid == chat.start_chat("keeper")
        old = chat.send_message(cid, "say old one\npause 3\nsay old end")
        new = chat.send_message(cid, "say new answer")  # queued: it survives the loss
        with pytest.raises(ConnectionLostError) as lost:
            old.result(5)
        assert (True, "old") == (lost.value.sent, lost.value.partial_text)
        assert "new answer" == new.result(5).text == chat.get_accumulated_content(cid)
        assert Usage(247, 2, 249) == new.usage


@replays("server_shutdown_idle")
def test_server_restarted(write: Write, log: Log) -> None:
    """After a restart the conversation in memory is lost, by name, and the kept one goes on."""
    memory = Said("6a031787-73b0-4a99-ad7f-7b863196b8e6")
    kept = Said("5380ce00-6877-47c7-9bfc-8581a7979d95")
    start_a, start_b, ask_b, ask_a = exchanges("server_shutdown_idle")
    # The recorded client let the wrong chatbot answer; this one starts the conversation again.
    again = Exchange({**start_a.asked, "conversation_id": memory.cid}, start_a.answers)
    scripts = [
        play(write, start_a, start_b, ask_b, again, ask_a, end="the stream ends"),
        play(write, *exchanges("server_shutdown_idle", 1)),
    ]
    with (
        RawServer(*scripts) as server,
        FluxbaseAIChat(server.url, reconnect_attempts=0, **log.callbacks()) as chat,
    ):
        assert memory.cid == chat.start_chat("sql-assistant")
        assert kept.cid == chat.start_chat("keeper")
        assert "Kept on disk." == chat.send_message(kept.cid, "say Kept on disk.").result(5).text
        assert (
            "Kept in memory."
            == chat.ask("sql-assistant", "say Kept in memory.", conversation_id=memory.cid).text
        )
        log.wait_for(DISCONNECTED)
        lost = chat.send_message(memory.cid, "say This must not be answered by a stranger.")
        with pytest.raises(ConversationNotResumedError) as moved:
            lost.result(5)
        assert (memory.cid, "e9f2c6af-d88b-401a-ba5c-494037eb1c23") == (
            moved.value.requested,
            moved.value.received,
        )
        assert moved.value.sent is False
        assert "Still known." == chat.send_message(kept.cid, "say Still known.").result(5).text
    assert [
        CONNECTED,
        STARTED,
        STARTED,
        *kept.progress(THINKING, GENERATING),
        *kept.content("Kept", " on", " disk."),
        *kept.done(240, 3, 243),
        STARTED,
        *memory.progress(THINKING, GENERATING),
        *memory.content("Kept", " in", " memory."),
        *memory.done(240, 3, 243),
        DISCONNECTED,
        RECONNECTED,
        STARTED,
        STARTED,
        *kept.progress(THINKING, GENERATING),
        *kept.content("Still", " known."),
        *kept.done(246, 2, 248),
        DISCONNECTED,
    ] == [call for call in log.calls if call[0] != "error"]
    assert [memory.cid] == [call[3] for call in log.calls if call[0] == "error"]


# -- the handshake ------------------------------------------------------------------------------


def answer_to(label: str) -> tuple[str, bytes, dict[str, str]]:
    """Return the recorded answer to an upgrade."""
    (line,) = [line for line in lines_of("handshakes") if line["label"] == label]
    return f"{line['handshake']} Recorded", line.get("body", "").encode(), line.get("headers", {})


@replays("handshakes")
@pytest.mark.parametrize(
    ("label", "options", "expected", "says"),
    [
        (
            "garbage bearer",
            {"token": "garbage"},
            AuthenticationError,
            {"sent": False, "retryable": False},
        ),
        ("service key garbage", {"service_key": "garbage"}, AuthenticationError, {"sent": False}),
        (
            "garbage in the query",
            {"token": "garbage", "token_in_query": True},
            AuthenticationError,
            {"sent": False},
        ),
        (
            "wrong path",
            {},
            HandshakeError,
            {
                "status": 404,
                "body": '{"error":"Not Found","path":"/ai/ws/nope"}',
                "retryable": False,
            },
        ),
        ("not an upgrade", {}, HandshakeError, {"status": 426, "retryable": False}),
        (
            "chat is switched off on the server (2026.1)",
            {},
            FeatureDisabledError,
            {"status": 404, "sent": False},
        ),
        (
            "chat is switched off on the server (2026.3)",
            {},
            FeatureDisabledError,
            {"status": 503, "sent": False},
        ),
    ],
)
def test_refused_handshakes(
    label: str, options: dict[str, Any], expected: type[FluxbaseChatError], says: dict[str, Any]
) -> None:
    """Each recorded refusal has its class, and what the server said is in the message."""
    status, body, headers = answer_to(label)
    with RawServer(lambda peer: peer.refuse(status, body, headers)) as server:
        chat = FluxbaseAIChat(server.url, reconnect_attempts=0, **options)
        with pytest.raises(expected) as refused:
            chat.connect()
        assert expected is type(refused.value)
        assert says == {name: getattr(refused.value, name) for name in says}
        assert json.loads(body)["error"] in str(refused.value)
        assert status[:3] in str(refused.value)
        assert "garbage" not in str(refused.value)
        assert not chat.is_connected()
        chat.disconnect()


@replays("handshakes")
@pytest.mark.parametrize(
    ("label", "options", "path", "sent"),
    [
        ("no credentials", {}, "/ai/ws", {}),
        (
            "good in the query",
            {"token": "good", "token_in_query": True},
            "/ai/ws?token=good",
            {},
        ),
        (
            "basic",
            {"headers": {"Authorization": "Basic Zm9vOmJhcg=="}},
            "/ai/ws",
            {"authorization": "Basic Zm9vOmJhcg=="},
        ),
        ("trailing slash", {"token": "good"}, "/ai/ws/", {"authorization": "Bearer good"}),
    ],
)
def test_accepted_handshakes(
    label: str, options: dict[str, Any], path: str, sent: dict[str, str]
) -> None:
    """Each recorded upgrade, with the request that it answers."""
    _, _, headers = answer_to(label)
    token = headers.pop("Sec-Websocket-Accept")
    assert {"Upgrade": "websocket", "Connection": "Upgrade"} == headers
    assert 28 == len(token)  # of the recorded key; here the client has made another

    def script(peer: Peer) -> None:
        peer.accept()
        peer.until_closed()

    with RawServer(script) as server:
        url = server.url + ("/" if path.endswith("/") else "")
        with FluxbaseAIChat(url, **options) as chat:
            assert "connected" == chat.state
            peer = server.peer()
            assert f"GET {path} HTTP/1.1" == peer.request.split("\r\n")[0]
            secrets = {"authorization", "x-service-key", "cookie"}
            assert sent == {k: v for k, v in peer.headers.items() if k in secrets}


@replays("handshakes")
def test_an_empty_token_never_leaves() -> None:
    """The server takes an empty bearer for nobody (recorded), so the client refuses it."""
    assert "101 Recorded" == answer_to("empty bearer")[0]
    with pytest.raises(ConfigurationError, match="token"):
        FluxbaseAIChat("ws://127.0.0.1", token="")
