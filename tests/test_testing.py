"""What other people's tests get: the fake server, values without one, fixtures, the demo."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import unittest
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from unittest import mock
from uuid import UUID

import pytest
from helpers import Heard, run
from servers import WAIT

from fluxbase_aichat import (
    ChatbotNotFoundError,
    ChatPool,
    ConfigurationError,
    ConnectionLostError,
    FluxbaseAI,
    FluxbaseAIChat,
    FluxbaseChatError,
    HandshakeError,
    Interval,
    MissingExtraError,
    NoTableError,
    RateLimitError,
    Reply,
    ServerError,
    TurnCancelledError,
    Usage,
    events,
)
from fluxbase_aichat.testing import FakeServer, no_waiting, reply

ROOT = Path(__file__).parent.parent
BOT = "sql-assistant"
UUID_ONE = UUID("00000000-0000-4000-8000-000000000001")

# Every type that has a shape of its own on the wire, and what `data` holds of it.
WIRE: list[tuple[object, object]] = [
    (UUID_ONE, list(UUID_ONE.bytes)),
    (datetime(2026, 2, 28, 10, 34, 56, 999, tzinfo=UTC), "2026-02-28T10:34:56Z"),
    (datetime(2026, 2, 28, 12, 34, 56), "2026-02-28T12:34:56Z"),  # noqa: DTZ001 - on purpose
    (date(2026, 2, 28), "2026-02-28T00:00:00Z"),
    (time(12, 34, 56), {"Microseconds": 45296000000, "Valid": True}),
    (
        timedelta(days=-1, microseconds=5),
        {"Microseconds": 5, "Days": -1, "Months": 0, "Valid": True},
    ),
    (Interval(1, 2, 3), {"Microseconds": 3, "Days": 2, "Months": 1, "Valid": True}),
    ([UUID_ONE, (1, None)], [list(UUID_ONE.bytes), [1, None]]),
    ({"b": 1, "a": {"c": date(2026, 1, 1)}}, {"a": {"c": "2026-01-01T00:00:00Z"}, "b": 1}),
]


# --- The fake server ------------------------------------------------------------------------


def test_an_answer_in_several_rounds(
    fluxbase_server: FakeServer, fluxbase_chat: FluxbaseAIChat
) -> None:
    """Prose, rows and prose come in the order in which they were written down."""
    rows = [{"name": "Ada", "id": UUID_ONE, "n": 1}]
    fluxbase_server.on(BOT, contains="Orders").say("Let me see.").rows(rows).say("One order.")
    answer = fluxbase_chat.ask(BOT, "show me the ORDERS")
    assert ("Let me see.", "One order.") == answer.segments
    assert rows == answer.table.rows
    assert ("name", "id", "n") == answer.table.columns
    assert ["id", "n", "name"] == list(answer.table.data[0])
    assert answer.usage is not None


def test_what_the_server_received(
    fluxbase_server: FakeServer, fluxbase_chat: FluxbaseAIChat
) -> None:
    """The client's messages, as they were on the wire."""
    fluxbase_server.on(BOT).say("Hi")
    conversation_id = fluxbase_chat.start_chat(BOT)
    fluxbase_chat.send_message(conversation_id, "hello").result()
    assert [
        {"type": "start_chat", "chatbot": BOT},
        {"type": "message", "conversation_id": conversation_id, "content": "hello"},
    ] == fluxbase_server.received
    assert "<FakeServer, 2 message(s) received>" == repr(fluxbase_server)


def test_which_answer_fits(fluxbase_server: FakeServer, fluxbase_chat: FluxbaseAIChat) -> None:
    """One for this question before one for all, the older before the newer, `once` only once."""
    fluxbase_server.on(BOT).say("first").once()
    fluxbase_server.on(BOT).say("any")
    fluxbase_server.on(BOT, contains="users").say("users")
    fluxbase_server.on("other", namespace="crm").say("other")
    asked = [fluxbase_chat.ask(BOT, text).text for text in ("a", "users", "b", "c")]
    assert ["first", "users", "any", "any"] == asked
    assert "other" == fluxbase_chat.ask("other", "users", namespace="crm").text


def test_what_no_answer_was_written_for(
    fluxbase_server: FakeServer, fluxbase_chat: FluxbaseAIChat
) -> None:
    """An unknown chatbot is not found, and an unknown question says that the test lacks it."""
    fluxbase_server.on(BOT, contains="orders").say("Hi")
    with pytest.raises(ChatbotNotFoundError):
        fluxbase_chat.ask("nobody", "orders")
    with pytest.raises(ServerError, match="no answer for this question to 'sql-assistant'"):
        fluxbase_chat.ask(BOT, "users")


def test_errors_keep_what_came_before(
    fluxbase_server: FakeServer, fluxbase_chat: FluxbaseAIChat
) -> None:
    """The code decides the exception, as with a real server."""
    fluxbase_server.on(BOT).say("Half").error("Slow down", "RATE_LIMITED")
    with pytest.raises(RateLimitError, match="Slow down") as caught:
        fluxbase_chat.ask(BOT, "hello")
    assert "Half" == caught.value.partial_text


def test_a_failed_query_and_an_empty_one(
    fluxbase_server: FakeServer, fluxbase_chat: FluxbaseAIChat
) -> None:
    """They have no rows, and are told apart."""
    fluxbase_server.on(BOT).failed_query("SELECT x FROM nowhere").rows([])
    failed, empty = fluxbase_chat.ask(BOT, "hello").query_results
    assert ("failed", "SELECT x FROM nowhere") == (failed.status, failed.query)
    assert "empty" == empty.status


def test_a_connection_that_drops(fluxbase_server: FakeServer, fluxbase_no_waiting: None) -> None:
    """The turn fails, and the client comes back at once, without waiting."""
    fluxbase_server.on(BOT).say("Half").drop().once()
    fluxbase_server.on(BOT).say("whole")
    heard = Heard()
    with FluxbaseAIChat(fluxbase_server.url, reconnect_delay=60, on_event=heard) as chat:
        conversation = chat.conversation(BOT)
        with pytest.raises(ConnectionLostError) as caught:
            conversation.ask("hello")
        assert "Half" == caught.value.partial_text
        assert "whole" == conversation.ask("again").text
        heard.wait_for_type("reconnected")
    (reconnecting,) = [item for item in heard.items if isinstance(item, events.Reconnecting)]
    assert 0.0 == reconnecting.delay


def test_no_waiting_ends_with_its_block(fluxbase_server: FakeServer) -> None:
    """It may be nested, and behind it the delays are as they were."""
    with no_waiting(), no_waiting():
        pass
    fluxbase_server.on(BOT).drop()
    heard = Heard()
    with FluxbaseAIChat(fluxbase_server.url, reconnect_delay=50, on_event=heard) as chat:
        with pytest.raises(ConnectionLostError):
            chat.ask(BOT, "hello")
        heard.wait_for_type("reconnecting")
    (reconnecting,) = [item for item in heard.items if isinstance(item, events.Reconnecting)]
    assert 15 <= reconnecting.delay <= 30


def test_an_answer_that_is_held(fluxbase_server: FakeServer, fluxbase_chat: FluxbaseAIChat) -> None:
    """A test can look in the middle of an answer, and let it go on."""
    fluxbase_server.on(BOT).say("Half").hold().say(" and half").hold().say(".")
    turn = fluxbase_chat.conversation(BOT).send("hello")
    assert "Half" == next(turn.text_stream)
    assert not turn.done
    fluxbase_server.release()
    fluxbase_server.release()
    assert "Half and half." == turn.result(WAIT).text


def test_cancelling_what_is_held(
    fluxbase_chat: FluxbaseAIChat, fluxbase_server: FakeServer
) -> None:
    """The server learns of it when the answer goes on, or ends with the server."""
    fluxbase_server.on(BOT).say("Half").hold()
    turn = fluxbase_chat.conversation(BOT).send("hello")
    assert "Half" == next(turn.text_stream)
    turn.cancel()
    with pytest.raises(TurnCancelledError):
        turn.result()
    fluxbase_server.release()
    assert fluxbase_server.wait_for(lambda: fluxbase_server.received[-1]["type"] == "cancel")


def test_a_pause(fluxbase_server: FakeServer, fluxbase_chat: FluxbaseAIChat) -> None:
    """It takes its time, and none under `no_waiting`; closing the server ends it."""
    fluxbase_server.on(BOT, contains="long").pause(3600).say("at last")
    fluxbase_server.on(BOT).pause(0.001).say("soon")
    assert "soon" == fluxbase_chat.ask(BOT, "short").text
    with no_waiting():
        assert "at last" == fluxbase_chat.ask(BOT, "long").text
    before = len(fluxbase_server.received)
    asking = run(fluxbase_chat.ask, BOT, "longer")
    assert fluxbase_server.wait_for(lambda: len(fluxbase_server.received) == before + 2)
    fluxbase_server.close()
    with pytest.raises(FluxbaseChatError):
        asking.result()


def test_faults_and_lost_connections(fluxbase_server: FakeServer) -> None:
    """Refused openings and cut connections, as of the dev server."""
    fluxbase_server.on(BOT).say("Hi")
    fluxbase_server.faults.status = 400
    with pytest.raises(HandshakeError):
        FluxbaseAIChat(fluxbase_server.url).connect()
    fluxbase_server.faults.clear()
    heard = Heard()
    with FluxbaseAIChat(fluxbase_server.url, reconnect_delay=0, on_event=heard) as chat:
        assert "Hi" == chat.ask(BOT, "hello").text
        fluxbase_server.drop_connections()
        heard.wait_for_type("reconnected")
        assert "Hi" == chat.ask(BOT, "hello").text


@pytest.mark.parametrize("options", [{}, {"token": "any"}, {"service_key": "any"}])
def test_any_credentials_do(fluxbase_server: FakeServer, options: dict[str, Any]) -> None:
    """An application's test needs no token that somebody has signed."""
    fluxbase_server.on(BOT).say("Hi")
    with FluxbaseAIChat(fluxbase_server.url, **options) as chat:
        assert "Hi" == chat.ask(BOT, "hello").text


def test_more_rounds_than_a_server_runs(fluxbase_server: FakeServer) -> None:
    """What could never come is refused where it is written, and changes nothing."""
    answer = fluxbase_server.on(BOT)
    for _ in range(4):
        answer.say("a").rows([])
    answer.say("end")
    with pytest.raises(ConfigurationError, match="5 rounds"):
        answer.rows([])
    assert "<FakeAnswer to any question, 9 step(s)>" == repr(answer)
    assert "<FakeAnswer to questions with 'x', 0 step(s)>" == repr(fluxbase_server.on(BOT, "X"))


@pytest.mark.parametrize(("value", "on_the_wire"), WIRE)
def test_values_travel_as_the_wire_has_them(
    value: object,
    on_the_wire: object,
    fluxbase_server: FakeServer,
    fluxbase_chat: FluxbaseAIChat,
) -> None:
    """Over the socket and without it a value arrives in the same shape."""
    fluxbase_server.on(BOT).rows([{"x": value}])
    sent = fluxbase_chat.ask(BOT, "hello")
    made = reply(rows=[{"x": value}])
    assert [{"x": on_the_wire}] == sent.table.data == made.table.data
    assert sent.table == made.table


def test_exact_numbers_travel_exactly(fluxbase_server: FakeServer) -> None:
    """A `Decimal` keeps its digits."""
    fluxbase_server.on(BOT).rows([{"x": Decimal("12345678901234567890.10")}])
    with FluxbaseAIChat(fluxbase_server.url, exact_numbers=True) as chat:
        assert [{"x": Decimal("12345678901234567890.10")}] == chat.ask(BOT, "hello").table.data


# --- Values without a server ----------------------------------------------------------------


def test_a_reply_without_a_server() -> None:
    """Text, rows and usage; without rows there is no table."""
    answer = reply("Two.", rows=[{"b": 1, "a": 2}, {"b": 3, "a": 4}], usage=Usage(1, 2, 3))
    assert "Two." == str(answer)
    assert ("b", "a") == answer.table.columns
    assert ("ok", 2) == (answer.table.status, answer.table.row_count)
    assert Usage(1, 2, 3) == answer.usage
    assert Reply.from_dict(answer.to_dict()) == answer
    with pytest.raises(NoTableError):
        _ = reply("Hi").table
    assert "empty" == reply(rows=[]).table.status


def test_the_query_of_rows_names_their_columns() -> None:
    """Also those that SQL has to quote; or it is the one that was given."""
    assert ("Größe", 'a"b', "select", "x") == reply(
        rows=[{"Größe": 1, 'a"b': 2, "select": 3, "x": 4}]
    ).table.columns
    assert "SELECT 1" == reply(rows=[{"a": 1}], query="SELECT 1").table.query


def test_what_no_column_holds() -> None:
    """It is told before a test goes wrong in another place."""
    with pytest.raises(ConfigurationError, match="no column holds a object"):
        reply(rows=[{"a": object()}])


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda _: reply(5), "text must be a str, not int"),
        (lambda _: reply(rows="abc"), "rows must be a list of rows"),
        (lambda _: reply(rows={"id": 1}), "rows must be a list of rows"),
        (lambda _: reply(rows=[5]), "rows must be a list of rows"),
        (lambda _: reply(error=5), "error must be a str, not int"),
        (lambda _: reply(error="x", code=5), "code must be a str, not int"),
        (lambda _: reply(txt="x"), "no parameter txt: did you mean text?"),
        (lambda server: server.on(BOT, contain="x"), "did you mean contains?"),
        (lambda server: server.on(BOT, contains=5), "contains must be a str, not int"),
        (lambda server: server.on(BOT, namespace=5), "namespace must be"),
        (lambda server: server.on(BOT).say(5), "text must be a str, not int"),
        (lambda server: server.on(BOT).error(5), "error must be a str, not int"),
        (lambda server: server.on(BOT).pause("1"), "seconds must be a number"),
        (lambda server: server.on(BOT).pause(-1), "seconds must be zero or more"),
        (lambda server: server.on(BOT).pause(None), "hold()"),
        (lambda server: server.on(BOT).rows(5), "rows must be a list of rows"),
        (lambda server: server.on(BOT).rows([], query=5), "query must be a str, not int"),
        (lambda server: server.on(BOT).failed_query(5), "query must be a str, not int"),
    ],
)
def test_what_no_test_meant(call, told) -> None:
    """It is told where it is written, with what would be right."""
    with FakeServer() as server, pytest.raises(ConfigurationError, match=re.escape(told)):
        call(server)


def test_an_error_without_a_server() -> None:
    """It is what `ask` would raise, for a mock's `side_effect`."""
    chat = mock.create_autospec(FluxbaseAIChat, instance=True)
    chat.ask.side_effect = [
        reply("Hi"),
        reply("Half", error="Slow down", code="RATE_LIMITED"),
        reply(error="Odd"),
    ]
    assert "Hi" == chat.ask(BOT, "hello").text
    with pytest.raises(RateLimitError) as caught:
        chat.ask(BOT, "hello")
    assert "Half" == caught.value.partial_text
    with pytest.raises(ServerError, match="Odd"):
        chat.ask(BOT, "hello")


# --- Where it is used -----------------------------------------------------------------------


class InUnittest(unittest.TestCase):
    """The server in a test of the standard library's."""

    def setUp(self) -> None:
        """Have a server and a client, and no waiting."""
        self.enterContext(no_waiting())
        self.server = self.enterContext(FakeServer())
        self.chat = self.enterContext(FluxbaseAIChat(self.server.url))

    def test_asking(self) -> None:
        """It answers."""
        self.server.on(BOT).say("Hi")
        self.assertEqual("Hi", self.chat.ask(BOT, "hello").text)  # noqa: PT009 - it is unittest


PROJECT = """
def test_it(fluxbase_server, fluxbase_chat, fluxbase_no_waiting):
    fluxbase_server.on("bot").say("Hi")
    assert "Hi" == fluxbase_chat.ask("bot", "hello").text

def test_the_shop(fluxbase_devserver):
    from fluxbase_aichat import FluxbaseAIChat
    with FluxbaseAIChat(fluxbase_devserver.ws_url, token=fluxbase_devserver.token) as chat:
        assert "30" in chat.ask("sql-assistant", "How many users are there?").text
"""


def test_the_fixtures_in_another_project(tmp_path: Path) -> None:
    """One line of `conftest.py` brings them."""
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["fluxbase_aichat.testing"]\n')
    (tmp_path / "test_it.py").write_text(PROJECT)
    ran = subprocess.run(  # noqa: S603 - our own
        [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", tmp_path],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert 0 == ran.returncode, ran.stdout
    assert "2 passed" in ran.stdout


def test_without_pytest_it_is_not_imported() -> None:
    """Unittest needs nothing of pytest."""
    script = (
        "import sys; from fluxbase_aichat.testing import FakeServer, reply; reply('Hi');"
        " print('pytest' in sys.modules)"
    )
    ran = subprocess.run(  # noqa: S603 - our own
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert "False\n" == ran.stdout


def test_values_need_no_server_and_a_server_its_extra() -> None:
    """Without wsproto `reply` works, and the error of `FakeServer` has the pip line."""
    script = (
        "import sys; sys.modules['wsproto'] = None\n"
        "from fluxbase_aichat import MissingExtraError\n"
        "from fluxbase_aichat.testing import FakeServer, reply\n"
        "print(reply('Hi'))\n"
        "try: FakeServer()\n"
        "except MissingExtraError as error: print(error)\n"
    )
    ran = subprocess.run(  # noqa: S603 - our own
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert ran.stdout.startswith("Hi\n")
    assert "pip install 'fluxbase-aichat[devserver]'" in ran.stdout


# --- The demo -------------------------------------------------------------------------------


def test_the_demo_answers() -> None:
    """A dev server runs in the process, and nobody needs a token."""
    with FluxbaseAIChat("demo:") as chat:
        assert "There are **30** users." in chat.ask(BOT, "How many users are there?").text
        assert 30 == chat.ask(BOT, "sql SELECT name FROM shop.users").table.row_count


def test_clients_share_the_demo() -> None:
    """A conversation that one started another one goes on with; any token will do."""
    with FluxbaseAIChat("demo:") as first, FluxbaseAIChat("demo:", token="my-jwt") as second:
        assert repr(first) == repr(second)
        conversation_id = first.start_chat(BOT)
        assert conversation_id == second.start_chat(BOT, conversation_id=conversation_id)


def test_the_demo_over_rest_and_in_a_pool() -> None:
    """They talk to the same one, which runs as long as one of them is there."""
    api = FluxbaseAI("demo:")
    assert BOT in [chatbot.name for chatbot in api.list_chatbots()]
    with ChatPool("demo:") as pool:
        with pool.chat(user=1, token=None) as chat:
            conversation = chat.conversation("keeper")  # it persists them
            conversation.ask("say Hi")
            assert "Hi" == conversation.history()[-1].content
        with pool.chat(user=2, token="any") as chat:
            assert "Hi" == chat.ask(BOT, "say Hi").text
        assert conversation.id in [stored.id for stored in api.iter_conversations()]
    with api.create_chat() as chat:
        del api
        assert "Hi" == chat.ask(BOT, "say Hi").text


def test_the_demo_lasts_as_long_as_its_clients() -> None:
    """It outlives a disconnect, and ends with the last client."""
    chat = FluxbaseAIChat("demo:")
    conversation = chat.conversation(BOT)
    assert "one" == conversation.ask("say one").text
    chat.disconnect()
    chat.connect()
    assert "two" == conversation.ask("say two").text
    demo = [thread for thread in threading.enumerate() if thread.name == "fluxbase-aichat-demo"]
    chat.disconnect()
    assert 1 == len(demo)
    del chat, conversation
    demo[0].join(WAIT)
    assert not demo[0].is_alive()


@pytest.mark.parametrize("attempt", range(4))
def test_a_script_that_ends_before_the_demos_answer_is_silent(attempt: int) -> None:
    """The dev server ends with the process, and shows no traceback of that."""
    script = f"from fluxbase_aichat import *; c = FluxbaseAIChat('demo:'); c.conversation({BOT!r})"
    ran = subprocess.run(  # noqa: S603 - our own
        [sys.executable, "-c", f"{script}.send('Hi, {attempt}')"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert ("", "") == (ran.stdout, ran.stderr)


def test_the_demo_without_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error has the pip line, and nothing was started."""
    monkeypatch.setitem(sys.modules, "fluxbase_aichat.devserver._http", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'fluxbase-aichat\[devserver\]'"):
        FluxbaseAIChat("demo:")
