"""What a user sees of the library in a traceback: nothing but the error and its causes."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import traceback
from pathlib import Path

import pytest
from servers import Peer, RawServer

import fluxbase_aichat
from fluxbase_aichat import (
    ChatPool,
    FluxbaseAI,
    FluxbaseAIChat,
    QueryResult,
    Reply,
    ask_many,
)
from fluxbase_aichat.errors import AuthenticationError, ConnectError, FluxbaseChatError

PACKAGE = str(Path(fluxbase_aichat.__file__).parent)
CLOSED = "ws://127.0.0.1:1/ai/ws"
"""Nothing listens there."""
ROWS = QueryResult("SELECT", "Query returned 1 row(s)", 1, [{"month": "2025-03-01T00:00:00Z"}])
FAILED = QueryResult("SELECT", "Query failed to execute", 0, [])


def files(error: BaseException) -> set[str]:
    """Return the files whose lines its traceback and those of its causes show."""
    shown = traceback.TracebackException.from_exception(error)
    found: set[str] = set()
    while shown is not None:
        found |= {frame.filename for frame in shown.stack}
        shown = shown.__cause__ or (None if shown.__suppress_context__ else shown.__context__)
    return found


def chat() -> FluxbaseAIChat:
    """Return a client that cannot connect."""
    return FluxbaseAIChat(CLOSED, reconnect_attempts=0)


def enter() -> None:
    """Enter a client's block."""
    with chat():
        pass


def lend() -> None:
    """Wait for a connection of a pool whose only one is lent, in vain."""
    pool = ChatPool(CLOSED, size=1, acquire_timeout=0.0)
    with pool.chat(user="ann", token=None), pool.chat(user="bob", token=None):
        pass


CALLS = {
    "FluxbaseAIChat()": lambda: FluxbaseAIChat("ftp://127.0.0.1"),
    "from_env": lambda: FluxbaseAIChat.from_env(ws_url="ftp://127.0.0.1"),
    "with chat": enter,
    "connect": lambda: chat().connect(),
    "start_chat": lambda: chat().start_chat("support"),
    "ask": lambda: chat().ask("support", "Hi"),
    "a misspelt name": lambda: chat().ask("support", "Hi", tiemout=1),
    "wait_idle": lambda: chat().wait_idle(-1),
    "result": lambda: chat().conversation("support").send("Hi").result(),
    "recover": lambda: chat().conversation("support").send("Hi").recover(),
    "display": lambda: chat().conversation("support").send("Hi").display(),
    "for event in turn": lambda: list(chat().conversation("support").send("Hi")),
    "text_stream": lambda: list(chat().conversation("support").send("Hi").text_stream),
    "FluxbaseAI": lambda: FluxbaseAI(CLOSED, retries=0).list_chatbots(),
    "ask_many": lambda: ask_many({"ws_url": CLOSED}, "", ["Hi"]),
    "create_chat": lambda: FluxbaseAI(CLOSED).create_chat(ws_url="ftp://127.0.0.1"),
    "chat.token": lambda: setattr(chat(), "token", 5),
    "ChatPool()": lambda: ChatPool(CLOSED, sise=1),
    "pool.chat": lend,
    "reply.table": lambda: Reply().table,
    "from_dict": lambda: Reply.from_dict(5),
    "rows_as": lambda: ROWS.rows_as({"month": "dat"}),
    "to_pandas": FAILED.to_pandas,
    "to_polars": FAILED.to_polars,
}


@pytest.mark.skipif(sys.flags.dev_mode, reason="development mode shows all frames")
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_traceback_ends_at_the_librarys_edge(call) -> None:
    """Its last line of code is the user's; so it is in those of its causes."""
    with pytest.raises(FluxbaseChatError) as caught:
        call()
    assert [] == [file for file in files(caught.value) if file.startswith(PACKAGE)]
    assert traceback.extract_tb(caught.value.__traceback__)[-1].filename in files(caught.value)


def test_user_code_inside_stays_in_it() -> None:
    """What the library has called is the user's as well."""

    def token() -> str:
        raise ZeroDivisionError("no token today")

    with pytest.raises(AuthenticationError) as caught:
        FluxbaseAIChat(CLOSED, token, reconnect_attempts=0).connect()
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    last = traceback.extract_tb(caught.value.__cause__.__traceback__)[-1]
    assert (__file__, "token") == (last.filename, last.name)


def test_an_error_says_what_to_look_at() -> None:
    """The one that people meet first has a hint."""
    with pytest.raises(ConnectError, match=r"Connection refused \(does the server run there"):
        chat().connect()


def test_development_mode_shows_all_frames() -> None:
    """So whoever mends the library sees where an error came to be."""
    script = f"""
        from fluxbase_aichat import FluxbaseAIChat

        FluxbaseAIChat({CLOSED!r}, reconnect_attempts=0).connect()
    """
    shown = {}
    for mode in ([], ["-X", "dev"]):
        done = subprocess.run(  # noqa: S603 - this very Python
            [sys.executable, *mode, "-c", textwrap.dedent(script)],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert 1 == done.returncode
        shown[bool(mode)] = PACKAGE in done.stderr
    assert {False: False, True: True} == shown


def test_an_answer_of_a_cut_connection_is_told_the_same_way() -> None:
    """An error that a thread found, of a turn, ends there too."""

    def script(peer: Peer) -> None:
        peer.accept()
        peer.start("c-1")
        peer.message()

    with RawServer(script) as server, FluxbaseAIChat(server.url, reconnect_attempts=0) as client:
        with pytest.raises(FluxbaseChatError) as caught:
            client.ask("support", "Hi")
        assert str(caught.value).endswith("(the message was sent; error.turn.recover() may help)")
        assert [] == [file for file in files(caught.value) if file.startswith(PACKAGE)]
