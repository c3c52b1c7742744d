"""The dev server itself: its life, its faults, its model, its database."""

from __future__ import annotations

import ast
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recordings import BareClient, Gate
from wsproto.events import CloseConnection, TextMessage

import fluxbase_aichat.devserver
from fluxbase_aichat.devserver import DevServer
from fluxbase_aichat.devserver._gojson import NotJSONError, Raw, dumps
from fluxbase_aichat.devserver._model import _RULES
from fluxbase_aichat.errors import ConfigurationError, MissingExtraError, NotConnectedError

PACKAGE = Path(fluxbase_aichat.devserver.__file__).parent
FDS = Path("/proc/self/fd")


@pytest.fixture
def server() -> Iterator[DevServer]:
    """Start a dev server."""
    with DevServer() as server:
        yield server


class Chat:
    """A connection and one conversation on it."""

    def __init__(
        self, server: DevServer, chatbot: str = "sql-assistant", user: str = "ann"
    ) -> None:
        self.client = BareClient(server.ws_url, Authorization=f"Bearer {server.token(user)}")
        assert self.client.status == 101, self.client.body
        self.id = self.start(chatbot)["conversation_id"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()

    def send(self, **frame: Any) -> None:
        """Send a frame."""
        self.client.send(json.dumps(frame))

    def recv(self) -> dict[str, Any]:
        """Return the next frame."""
        return json.loads(self.client.recv())

    def start(self, chatbot: str, **more: str) -> dict[str, Any]:
        """Start a chat; return the answer."""
        self.send(type="start_chat", chatbot=chatbot, **more)
        return self.recv()

    def write(self, content: str) -> None:
        """Send a message, without waiting for the answer."""
        self.send(type="message", conversation_id=self.id, content=content)

    def rest(self) -> list[dict[str, Any]]:
        """Return the frames of a turn, to its end."""
        frames = [self.recv()]
        while frames[-1]["type"] not in ("done", "error"):
            frames.append(self.recv())
        return frames

    def ask(self, content: str) -> list[dict[str, Any]]:
        """Send a message and return the frames of its turn."""
        self.write(content)
        return self.rest()

    def query(self, sql: str) -> dict[str, Any] | None:
        """Run SQL and return the `query_result`, `None` if there was none."""
        frames = self.ask(f"sql {sql}\n---\nsay Done.")
        return next((frame for frame in frames if frame["type"] == "query_result"), None)


def text_of(frames: list[dict[str, Any]]) -> str:
    """Return the prose of a turn."""
    return "".join(frame["delta"] for frame in frames if frame["type"] == "content")


def kinds(frames: list[dict[str, Any]]) -> list[str]:
    """Return what the frames are, in short."""
    return [frame.get("step") or frame["type"] for frame in frames]


def messages(server: DevServer, chat: Chat) -> list[str]:
    """Return what is stored of a conversation."""
    detail = server._runtime.store.detail(chat.id, None)
    return [message["content"] for message in detail["messages"]] if detail else []


# Its life


def test_nothing_is_left_behind() -> None:
    """Closing leaves no thread and no descriptor, whatever the connections were doing."""
    threads = threading.active_count()
    descriptors = len(list(FDS.iterdir())) if FDS.exists() else 0
    for _ in range(3):
        with DevServer() as server, Chat(server) as idle, Chat(server) as busy:
            busy.write("say one\npause 60\nsay two")
            assert server.wait_for(lambda: server.running == 1)
            server.close()
            assert idle.client.next_event() is None

    assert threading.active_count() == threads
    if FDS.exists():
        assert len(list(FDS.iterdir())) == descriptors


def test_closing_twice() -> None:
    """`close` and `kill` are idempotent, also before the start; a closed server stays closed."""
    server = DevServer()
    server.kill()
    server.start()
    server.start()
    server.close()
    server.close()
    server.kill()

    with pytest.raises(NotConnectedError):
        server.start()


def test_addresses() -> None:
    """The addresses are known once the server was started, and stay the same."""
    server = DevServer()
    with pytest.raises(NotConnectedError):
        _ = server.url
    with server:
        url = server.url
        assert urlsplit(url).hostname == "127.0.0.1"
        assert server.ws_url == url.replace("http", "ws") + "/ai/ws"
        server.kill()
        server.start()
        assert server.url == url
        assert repr(server) == f"<DevServer {url}, 0 of 0 connections open>"


@pytest.mark.parametrize("host", ["0.0.0.0", "example.com", "192.0.2.1", ""])  # noqa: S104
def test_only_loopback(host: str) -> None:
    """Any other address is refused: the passwords are public."""
    with pytest.raises(ConfigurationError, match="loopback"):
        DevServer(host)


def test_ipv6() -> None:
    """The loopback of IPv6 will do, where there is one."""
    try:
        server = DevServer("::1")
        server.start()
    except OSError:
        server.close()
        pytest.skip("no IPv6")
    with server, Chat(server) as chat:
        assert text_of(chat.ask("say Hello.")) == "Hello."
        assert server.url.startswith("http://[::1]:")


def test_without_wsproto(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package can be imported without wsproto; creating a server says what to install."""
    monkeypatch.setitem(sys.modules, "wsproto.connection", None)
    for name in ("_http", "_session", "_turn", "_websocket"):
        monkeypatch.delitem(sys.modules, f"fluxbase_aichat.devserver.{name}", raising=False)

    with pytest.raises(MissingExtraError, match=r"pip install 'fluxbase-aichat\[devserver\]'"):
        DevServer()


def test_the_import_needs_no_wsproto() -> None:
    """Importing the package imports no wsproto."""
    code = "import sys, fluxbase_aichat.devserver; print('wsproto' in sys.modules)"
    path = os.pathsep.join([str(PACKAGE.parents[1]), *filter(None, sys.path)])
    output = subprocess.check_output(  # noqa: S603 - our own code
        [sys.executable, "-c", code], env={"PYTHONPATH": path}
    )

    assert output.strip() == b"False"


def test_imports() -> None:
    """The dev server knows nothing of the client but its errors, so that it can judge it."""
    imported = set()
    for path in PACKAGE.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                imported.add(node.module or "")
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 1
            elif isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
    ours = {name for name in imported if name.startswith("fluxbase_aichat")}

    assert ours == {"fluxbase_aichat.errors"}
    assert {name.split(".")[0] for name in imported - ours} <= sys.stdlib_module_names | {"wsproto"}


def test_serving_forever() -> None:
    """`serve_forever` starts the server and returns when it is closed."""
    with DevServer(port=0) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        with Chat(server) as chat:
            assert text_of(chat.ask("say Hello.")) == "Hello."
        server.close()
        serving.join(5)
        assert not serving.is_alive()


def test_a_restart_forgets_the_memory(server: DevServer) -> None:
    """After a restart a kept conversation is resumed, one in memory is not."""
    with Chat(server, "keeper") as kept, Chat(server) as lost:
        server.kill()
        server.start()
    with Chat(server) as chat:
        again = chat.start("keeper", conversation_id=kept.id)
        other = chat.start("sql-assistant", conversation_id=lost.id)

    assert again["conversation_id"] == kept.id
    assert other["conversation_id"] != lost.id


def test_what_is_recorded(server: DevServer) -> None:
    """Requests, frames and connections are recorded, in order, with the connection's number."""
    with Chat(server) as first, Chat(server) as second:
        first.ask("say 1")
        second.client.send("no JSON")
        second.recv()
        assert (server.connections, server.active) == (2, 2)
        assert server.wait_for(lambda: server.turns == 1)  # its last frame is out before
    assert server.wait_for(lambda: server.active == 0)

    assert [(each.connection, each.frame and each.frame["type"]) for each in server.received] == [
        (1, "start_chat"),
        (2, "start_chat"),
        (1, "message"),
        (2, None),
    ]
    assert server.received[-1].text == "no JSON"
    assert [(each.method, each.target) for each in server.requests] == [("GET", "/ai/ws")] * 2
    assert server.requests[0].headers["Authorization"].startswith("Bearer ")
    assert server.wait_for(lambda: False, timeout=0) is False


def test_chunk_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two words the server waits for `chunk_delay`, which may be changed in a turn."""
    with DevServer(chunk_delay=0.25) as server:
        waits: list[float | None] = []
        monkeypatch.setattr(server._runtime.stopping, "wait", waits.append)
        with Chat(server) as chat:
            chat.ask("say one two three")
            server.chunk_delay = 0
            chat.ask("say four")
            assert server.chunk_delay == 0

    assert waits == [0.25] * 3


# Frames


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '"text"',
        "7",
        '{"type":7}',
        '{"type":"message","content":{}}',
        "NaN",
        "[" * 9999,
    ],
)
def test_invalid_frames(server: DevServer, text: str) -> None:
    """A frame that is no object, or has a field of another type, is answered with an error."""
    with Chat(server) as chat:
        chat.client.send(text)
        expected = {"type": "error", "error": "Invalid message format", "code": "INVALID_MESSAGE"}

        assert chat.recv() == expected
        assert text_of(chat.ask("say Still here.")) == "Still here."


@pytest.mark.parametrize("text", ["null", "{}", '{"type":"ping"}', '{"type":null}'])
def test_unknown_types(server: DevServer, text: str) -> None:
    """A frame of another type is answered with an error, and the connection goes on."""
    with Chat(server) as chat:
        chat.client.send(text)

        assert chat.recv() == {
            "type": "error",
            "error": "Unknown message type",
            "code": "UNKNOWN_TYPE",
        }


def test_a_protocol_error(server: DevServer) -> None:
    """A frame that breaks RFC 6455 is answered with a close frame."""
    with Chat(server) as chat:
        chat.client.socket.sendall(b"\x83\x80\x00\x00\x00\x00")  # opcode 3

        event = chat.client.next_event()
        assert isinstance(event, CloseConnection)
        assert event.code == 1002


def test_fragments_and_pipelining(server: DevServer) -> None:
    """A message in fragments is one message; what is sent ahead is answered in order."""
    with Chat(server) as chat:
        frame = json.dumps({"type": "message", "conversation_id": chat.id, "content": "say é 1"})
        chat.client.send_event(TextMessage(frame[:20], message_finished=False))
        chat.client.send_event(TextMessage(frame[20:]))
        chat.write("say 2")

        assert [text_of(chat.rest()), text_of(chat.rest())] == ["é 1", "2"]


def test_what_follows_a_cancel_is_lost(server: DevServer) -> None:
    """A frame behind a cancel is never run, and the end of the stream is a clean one."""
    with Chat(server, "keeper") as chat:
        chat.send(type="cancel", conversation_id=chat.id)
        chat.write("say Never.")

        assert chat.recv()["type"] == "cancelled"
        assert chat.client.next_event() is None
        assert server.wait_for(lambda: server.active == 0)
        assert messages(server, chat) == []


# Scripts


def test_an_error_in_mid_answer(server: DevServer) -> None:
    """`fail` ends the turn with STREAM_ERROR; nothing of it is stored."""
    with Chat(server, "keeper") as chat:
        frames = chat.ask("say one two\nfail\nsay three")

        assert kinds(frames) == ["thinking", "generating", "content", "content", "error"]
        assert frames[-1]["code"] == "STREAM_ERROR"
        assert messages(server, chat) == []
        assert text_of(chat.ask("say More.")) == "More."
        assert messages(server, chat) == ["say More.", "More."]


def test_a_cut_connection(server: DevServer) -> None:
    """`cut` drops the connection in mid-answer; the turn is finished and stored."""
    with Chat(server, "keeper") as chat:
        chat.write("say one\ncut\nsay two")
        assert kinds([chat.recv() for _ in range(3)]) == ["thinking", "generating", "content"]
        assert chat.client.next_event() is None
        assert server.wait_for(lambda: server.turns == 1)

        assert messages(server, chat) == ["say one\ncut\nsay two", "onetwo"]


def test_too_many_rounds(server: DevServer) -> None:
    """The fifth round of tools is the last: `done` without content, and nothing is stored."""
    script = "\n---\n".join(["sql SELECT 1"] * 5 + ["say Never."])
    with Chat(server, "keeper") as chat:
        frames = chat.ask(script)

        assert kinds(frames) == [
            "thinking",
            *["generating", "querying", "query_result"] * 5,
            "done",
        ]
        assert messages(server, chat) == []


def test_a_script_without_an_answer(server: DevServer) -> None:
    """A script that says nothing to its tools' results gives an empty answer."""
    with Chat(server) as chat:
        frames = chat.ask("sql SELECT count(*) FROM users")

    assert kinds(frames) == [
        "thinking",
        "generating",
        "querying",
        "query_result",
        "generating",
        "done",
    ]


def test_lines_that_are_no_instructions(server: DevServer) -> None:
    """They are echoed, as the recorded model did."""
    with Chat(server) as chat:
        assert text_of(chat.ask("say A.\npause for breath\nflood\n\n")) == (
            "A.You said: pause for breathYou said: flood"
        )


def test_text_that_is_no_unicode(server: DevServer) -> None:
    """Half a surrogate pair becomes the replacement character, as in Go."""
    with Chat(server) as chat:
        chat.client.send(
            f'{{"type":"message","conversation_id":"{chat.id}","content":"say \\ud800!"}}'
        )

        assert text_of(chat.rest()) == "\ufffd!"


def test_pauses_are_the_callers(server: DevServer) -> None:
    """With a `pause` of its own a test decides when a script goes on."""
    gate = Gate()
    with DevServer(pause=gate) as gated, Chat(gated) as chat:
        chat.write("say one\npause 3600\nsay two")
        gate.wait_until_reached()
        assert gated.running == 1
        gate.open()

        assert text_of(chat.rest()) == "onetwo"


def test_another_users_identity(server: DevServer) -> None:
    """The service key may impersonate; an impersonated user may not."""
    bob = server.users["bob"].id
    with BareClient(server.ws_url, X_Service_Key=server.service_key) as client:
        answers = []
        for _ in range(2):
            frame = {"type": "start_chat", "chatbot": "keeper", "impersonate_user_id": bob}
            client.send(json.dumps(frame))
            answers.append(json.loads(client.recv()))
    stored = server._runtime.store.detail(answers[0]["conversation_id"], bob)

    assert stored is not None
    assert answers[1]["code"] == "FORBIDDEN"


# Tools


def test_a_tool_of_a_table(server: DevServer) -> None:
    """`query_table` refuses tables that are not the chatbot's, and is stored as a result."""
    with Chat(server, "tools") as chat:
        frames = chat.ask(
            'tool query_table {"table":"users","limit":1}\n'
            'tool query_table {"table":"types"}\n'
            'tool query_table {"table":"users; drop table users"}\n'
            "tool query_table nothing"
        )
    results = [frame for frame in frames if frame["type"] == "tool_result"]

    assert [frame["message"] for frame in results] == ["query_table"]
    assert json.loads(results[0]["data"][0]["result"])[0]["name"] == "Ada"


def test_a_forbidden_tool_once(server: DevServer) -> None:
    """A model that tries a forbidden tool once may go on; without the word it is not forbidden."""
    with Chat(server, "intent") as chat:
        frames = chat.ask("sql SELECT name FROM users\n---\nsay No orders then.")
        allowed = chat.ask("sql SELECT name FROM users LIMIT 1\n---\nsay Fine.")

    assert kinds(frames).count("query_result") == 0
    assert text_of(frames) == "No orders then."
    assert kinds(allowed).count("query_result") == 1


# SQL


@pytest.mark.parametrize(
    ("sql", "summary"),
    [
        ("DELETE FROM users", "Query was rejected due to security validation"),
        ("SELECT 1; SELECT 2", "Query was rejected due to security validation"),
        ("SELECT * FROM products", "Query was rejected due to security validation"),
        ("SELECT count(*) FROM products", "Query was rejected due to security validation"),
        ("SELECT * FROM sqlite_master", "Query was rejected due to security validation"),
        ("SELECT count(*) FROM orders", "Query was rejected due to security validation"),
        ("SELECT (SELECT max(total) FROM orders)", "Query was rejected due to security validation"),
        ("PRAGMA query_only", "Query was rejected due to security validation"),
        ("ATTACH 'x.db' AS x", "Query was rejected due to security validation"),
        ("SELEC name", "Query was rejected due to security validation"),
        ("", "Query was rejected due to security validation"),
        ("SELECT nope FROM users", "Query failed to execute"),
        ("SELECT nope(name) FROM users", "Query failed to execute"),
        ("SELECT lower(name, 1) FROM users", "Query failed to execute"),
    ],
)
def test_bad_sql(server: DevServer, sql: str, summary: str) -> None:
    """SQL that fails, or reads what it may not, gives its summary and nothing else."""
    with Chat(server, "support") as chat:
        result = chat.query(sql)
        whole = chat.query("SELECT count(*) FROM users")

    expected = {
        "type": "query_result",
        "conversation_id": chat.id,
        "query": sql,
        "summary": summary,
    }
    assert result == {name: value for name, value in expected.items() if value}
    assert whole is not None
    assert whole["data"] == [{"count": 5}]


def test_endless_sql(server: DevServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A query that would never end fails."""
    monkeypatch.setattr("fluxbase_aichat.devserver._sql._STEPS", 10_000)
    with Chat(server) as chat:
        result = chat.query(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i FROM n) SELECT * FROM n"
        )

    assert result is not None
    assert result["summary"] == "Query failed to execute"


@pytest.mark.parametrize(
    ("sql", "row", "sample"),
    [
        ("SELECT sum(total) AS s FROM orders", '{"s":2625.00}', "{262500 -2 false finite true}"),
        ("SELECT avg(total) FROM orders", '{"avg":131.25}', "{13125 -2 false finite true}"),
        ("SELECT 0.1 / 3 AS third", '{"third":0.03333333333333333}', "0.03333333333333333"),
        (
            "SELECT max(placed_at) m FROM orders",
            '{"m":"2026-02-01T20:00:00Z"}',
            "2026-02-01T20:00:00Z",
        ),
        ("SELECT NULL AS n, 1 AS a", '{"a":1,"n":null}', "<nil>"),
        ("SELECT x'ff41' AS b", '{"b":"\ufffdA"}', "\ufffdA"),
        ("SELECT date_trunc('month', NULL) AS d", '{"d":null}', "<nil>"),
        ("WITH u AS (SELECT name FROM users) SELECT min(name) FROM u", '{"min":"Ada"}', "Ada"),
    ],
)
def test_values(server: DevServer, sql: str, row: str, sample: str) -> None:
    """SQLite's values arrive as PostgreSQL's and are sampled as Go prints them."""
    with Chat(server) as chat:
        chat.write(f"sql {sql}")
        while '"query_result"' not in (text := chat.client.recv()):
            pass

    assert text.endswith(f'"data":[{row}]}}')
    assert f"values: [{sample}]" in json.loads(text)["summary"]


def test_a_row_that_go_cannot_encode(server: DevServer) -> None:
    """An infinity drops the whole frame, in a tool's result too."""
    with Chat(server) as chat, Chat(server, "tools") as tools:
        frames = chat.ask("sql SELECT 1e999 AS i\n---\nsay Lost.")
        other = tools.ask("sql SELECT 1e999 AS i\n---\nsay Lost.")

    assert kinds(frames) == ["thinking", "generating", "querying", "generating", "content", "done"]
    assert kinds(other) == ["thinking", "generating", "executing", "generating", "content", "done"]


# The model


@pytest.mark.parametrize("rule", _RULES, ids=lambda rule: rule.name)
def test_questions(server: DevServer, rule: Any) -> None:
    """Each example of the help is answered by its own rule, with a table on request."""
    with Chat(server) as chat:
        frames = chat.ask(rule.example)
        table = chat.ask("As a table, please")
    result = next(frame for frame in frames if frame["type"] == "query_result")

    assert result["query"].partition(" LIMIT")[0] == rule.sql.partition(" LIMIT")[0]
    if rule.name == "refunds":
        assert result["summary"] == "Query failed to execute"
        assert "could not" in text_of(frames)
    else:
        assert result["row_count"] == len(result["data"]) > 0
        assert text_of(frames).startswith(rule.intro)
        assert len(text_of(table).splitlines()) == result["row_count"] + 4


def test_a_conversation(server: DevServer) -> None:
    """A short message is taken with the question before it, also behind a restart."""
    with Chat(server, "keeper") as chat:
        first = chat.ask("Show me the top 3 users by order count")
        second = chat.ask("and by revenue?")
    server.kill()
    server.start()
    with Chat(server, "keeper") as chat:
        chat.start("keeper", conversation_id=chat.id)
        third = chat.ask("And by order count?")
    counts = [frame["row_count"] for frame in first + second if frame["type"] == "query_result"]

    assert counts == [3, 3]
    assert "user by revenue" in text_of(second)
    assert text_of(third).startswith("Hello!")  # another conversation: there is no question before


def test_a_conversation_from_the_store(server: DevServer) -> None:
    """A resumed conversation's questions are known after a restart."""
    with Chat(server, "keeper") as chat:
        chat.ask("Show me the top 3 users by order count")
    server.kill()
    server.start()
    with Chat(server, "keeper") as again:
        again.id = again.start("keeper", conversation_id=chat.id)["conversation_id"]

        assert "user by revenue" in text_of(again.ask("and by revenue?"))


@pytest.mark.parametrize("content", ["Hello", "?", "As a table, please", "", "Where am I"])
def test_anything_else(server: DevServer, content: str) -> None:
    """What no rule knows is answered with what can be asked."""
    with Chat(server) as chat:
        frames = chat.ask(content)

    assert all(rule.example in text_of(frames) for rule in _RULES)
    assert "query_result" not in kinds(frames)


def test_a_chatbot_that_may_not(server: DevServer) -> None:
    """A chatbot without the shop's tables says that it cannot answer."""
    with Chat(server, "support") as chat:
        assert "could not" in text_of(chat.ask("How many orders are there?"))


# Faults


def test_refuse(server: DevServer) -> None:
    """The port is closed while the fault is on; open connections stay."""
    address = (urlsplit(server.url).hostname, urlsplit(server.url).port)
    with Chat(server) as chat:
        server.faults.refuse = True
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address, timeout=5)
        assert text_of(chat.ask("say Still here.")) == "Still here."
        server.faults.refuse = False
        socket.create_connection(address, timeout=5).close()


def test_dribble(server: DevServer) -> None:
    """Handshakes and frames arrive whole, one byte at a time."""
    server.faults.dribble = True
    with Chat(server) as chat:
        assert text_of(chat.ask("say Hello wörld")) == "Hello wörld"


def test_stalled_handshake(server: DevServer) -> None:
    """A request is not answered until the fault is off; closing ends it too."""
    server.faults.stall = "handshake"
    parts = urlsplit(server.url)
    with socket.create_connection((parts.hostname, parts.port), timeout=5) as first:
        first.sendall(b"GET /ai/ws HTTP/1.1\r\n\r\n")
        assert server.wait_for(lambda: len(server.requests) == 1)
        server.faults.stall = None
        assert first.recv(12) == b"HTTP/1.1 426"
    server.faults.stall = "handshake"
    with socket.create_connection((parts.hostname, parts.port), timeout=5) as second:
        second.sendall(b"GET /ai/ws HTTP/1.1\r\n\r\n")
        assert server.wait_for(lambda: len(server.requests) == 2)
        server.close()
        assert second.recv(12) == b""


def test_stalled_turn(server: DevServer) -> None:
    """A turn stops after some frames, and goes on when the fault is off."""
    with Chat(server) as chat:
        server.faults.set(stall="turn", after=3)
        chat.write("say one two three")
        assert kinds([chat.recv() for _ in range(3)]) == ["thinking", "generating", "content"]
        server.faults.clear()
        assert text_of(chat.rest()) == " two three"


def test_drop(server: DevServer) -> None:
    """The connection is cut after so many frames, once; the turn is finished and stored."""
    server.faults.set(drop=3, times=1)
    with Chat(server, "keeper") as chat, Chat(server) as other:
        chat.write("say one two")
        assert kinds([chat.recv() for _ in range(3)]) == ["thinking", "generating", "content"]
        assert chat.client.next_event() is None
        assert server.wait_for(lambda: server.turns == 1)

        assert messages(server, chat) == ["say one two", "one two"]
        assert server.faults.drop is None
        assert text_of(other.ask("say three four")) == "three four"


def test_dropping_connections(server: DevServer) -> None:
    """All connections can be cut from outside; the server goes on."""
    with Chat(server) as first, Chat(server) as second:
        server.drop_connections()
        assert first.client.next_event() is None
        assert second.client.next_event() is None
    with Chat(server) as chat:
        assert text_of(chat.ask("say Still here.")) == "Still here."


def test_garbage(server: DevServer) -> None:
    """A frame that is no JSON comes between the others."""
    server.faults.set(garbage="no JSON", after=3)
    with Chat(server) as chat:
        chat.write("say one two")
        texts = [chat.client.recv() for _ in range(6)]

    assert texts[3] == "no JSON"
    assert [json.loads(text)["type"] for text in texts[4:]] == ["content", "done"]


def test_refused_requests(server: DevServer) -> None:
    """Every request gets the status that was set, so many times."""
    seen = []
    for fault in (
        {"unauthorized": True},
        {"status": 503, "retry_after": 5},
        {"status": 429},
        {"status": 799},
    ):
        server.faults.set(**fault, times=1)
        for _ in range(2):
            with BareClient(server.ws_url) as client:
                seen.append((client.status, client.headers.get("Retry-After"), client.body[:12]))

    assert seen == [
        (401, None, b'{"error":"In'),
        (101, None, b""),
        (503, "5", b'{"error":"Se'),
        (101, None, b""),
        (429, None, b'{"code":"RAT'),
        (101, None, b""),
        (799, None, b'{"error":"Un'),
        (101, None, b""),
    ]


def test_faults_of_two_times(server: DevServer) -> None:
    """With `times=2` a fault strikes twice."""
    server.faults.set(status=500, times=2)
    statuses = []
    for _ in range(3):
        with BareClient(server.ws_url) as client:
            statuses.append(client.status)

    assert statuses == [500, 500, 101]


def test_unknown_faults(server: DevServer) -> None:
    """A misspelt fault raises and sets nothing; the repr shows what is on."""
    with pytest.raises(TypeError, match="dorp"):
        server.faults.set(garbage="x", dorp=3)
    with pytest.raises(TypeError, match="dorp"):
        server.faults.dorp = 3
    assert repr(server.faults) == "Faults()"
    server.faults.drop = 3
    assert repr(server.faults) == "Faults(drop=3)"


# JSON

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(VALUES, st.sampled_from(["", "  "]))
def test_json_round_trip(value: Any, indent: str) -> None:
    """What is written can be read again, and has no character that Go escapes."""
    text = dumps(value, indent=indent)

    assert json.loads(text) == value
    assert not set(text) & set("<>&\u2028\u2029")


def test_json_like_go() -> None:
    """Digits, keys and escapes are Go's."""
    value = {"b": Decimal("12.50"), "a": [75.0, 1e21, Raw("1.000")], "<é>": "a&b", "e": [], "d": {}}

    assert dumps(value) == (
        '{"b":12.50,"a":[75,1e+21,1.000],"\\u003cé\\u003e":"a\\u0026b","e":[],"d":{}}'
    )
    with pytest.raises(NotJSONError):
        dumps([Decimal("NaN")])
    with pytest.raises(TypeError):
        dumps({"a": object()})
