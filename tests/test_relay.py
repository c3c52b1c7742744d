"""The relay's eight switches, each with a client and the dev server at its ends."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from helpers import run
from relay import SWITCHES, Relay
from servers import WAIT

from fluxbase_aichat import FluxbaseAIChat, Timeouts
from fluxbase_aichat.devserver import DevServer
from fluxbase_aichat.errors import ChatTimeoutError, ConnectError, ConnectionLostError

QUESTION = "say Hello there, wörld"
ANSWER = "Hello there, wörld"


@pytest.fixture
def server() -> Iterator[DevServer]:
    with DevServer() as server:
        yield server


@pytest.fixture
def relay(server: DevServer) -> Iterator[Relay]:
    with Relay(server.ws_url) as relay:
        yield relay


@pytest.fixture
def chat(server: DevServer, relay: Relay) -> Iterator[FluxbaseAIChat]:
    with FluxbaseAIChat(relay.url, server.token(), reconnect_attempts=0) as chat:
        yield chat


def test_it_relays(relay: Relay, chat: FluxbaseAIChat) -> None:
    """With all switches off it is as if it was not there, and it ends with what it relays."""
    assert ANSWER == chat.ask("sql-assistant", QUESTION).text
    assert 1 == relay.connections
    chat.disconnect()
    assert relay.wait_for(lambda: not relay.open)


def test_it_carries_much(chat: FluxbaseAIChat) -> None:
    """More than it holds at once goes through in both directions."""
    long = "ä" * 1_000_000
    reply = chat.ask("sql-assistant", f"flood 5000 400\nsql SELECT '{long}' AS it", timeout=30)
    assert "x" * 2_000_000 == reply.text
    assert [{"it": long}] == reply.query_results[0].data


def test_latency(relay: Relay, chat: FluxbaseAIChat) -> None:
    """Every byte is late, in both directions."""
    talk = chat.conversation("sql-assistant")
    talk.start()
    relay.set(latency=0.1)
    began = time.monotonic()
    assert ANSWER == talk.ask(QUESTION).text
    assert 0.2 <= time.monotonic() - began


def test_down(relay: Relay, chat: FluxbaseAIChat) -> None:
    """What is open is cut, what is new is refused; up again it is where it was."""
    turn = chat.conversation("sql-assistant").send("say Hello\npause 60")
    next(turn.text_stream)
    relay.set(down=True)
    with pytest.raises(ConnectionLostError) as lost:
        turn.result(WAIT)
    assert lost.value.sent is True
    with pytest.raises(ConnectError) as refused:
        chat.connect()
    assert isinstance(refused.value.__cause__, ConnectionRefusedError)
    relay.clear()
    assert ANSWER == chat.ask("sql-assistant", QUESTION).text


def test_bandwidth(relay: Relay, chat: FluxbaseAIChat) -> None:
    """No more bytes a second go through than that."""
    talk = chat.conversation("sql-assistant")
    talk.start()
    relay.set(bandwidth=10_000)
    began = time.monotonic()
    assert talk.ask("flood 10 400").text == "x" * 4000
    assert 0.4 <= time.monotonic() - began


def test_slow_close(server: DevServer, relay: Relay, chat: FluxbaseAIChat) -> None:
    """The end of a stream is late, what came before it is not."""
    turn = chat.conversation("sql-assistant").send("say Hello\npause 60")
    relay.set(slow_close=0.2)
    assert "Hello" == next(turn.text_stream)
    began = time.monotonic()
    server.drop_connections()
    with pytest.raises(ConnectionLostError):
        turn.result(WAIT)
    assert 0.2 <= time.monotonic() - began


def test_swallow(server: DevServer, relay: Relay, chat: FluxbaseAIChat) -> None:
    """Nothing goes through, and nobody is told; a stream with a hole is not mended but cut."""
    talk = chat.conversation("sql-assistant")
    talk.start()
    relay.set(swallow=True)
    turn = talk.send(QUESTION)
    assert relay.wait_for(lambda: relay.swallowed > 0)
    with pytest.raises(ChatTimeoutError):
        turn.result(0.05)
    assert ["start_chat"] == [m.frame["type"] for m in server.received]
    relay.clear()
    with pytest.raises(ConnectionLostError):
        turn.result(WAIT)
    assert ANSWER == chat.ask("sql-assistant", QUESTION).text


def test_swallow_opening(server: DevServer, relay: Relay) -> None:
    """A connection that is opened while it swallows never gets an answer."""
    relay.set(swallow=True)
    limits = Timeouts(connect=0.1)
    with (
        pytest.raises(TimeoutError),
        FluxbaseAIChat(relay.url, server.token(), timeouts=limits),
    ):
        pass
    assert not server.requests


def test_reset(relay: Relay, chat: FluxbaseAIChat) -> None:
    """What is open is reset at once, what is new with its first byte."""
    turn = chat.conversation("sql-assistant").send("say Hello\npause 60")
    next(turn.text_stream)
    relay.set(reset=True)
    with pytest.raises(ConnectionLostError) as lost:
        turn.result(WAIT)
    assert isinstance(lost.value.__cause__, ConnectionResetError)
    with pytest.raises(ConnectError):
        chat.connect()
    relay.clear()
    assert ANSWER == chat.ask("sql-assistant", QUESTION).text


@pytest.mark.parametrize("size", [1, 3])
def test_slicer(relay: Relay, chat: FluxbaseAIChat, size: int) -> None:
    """The stream comes in tiny pieces, and is the same, from the handshake on."""
    relay.set(slicer=size)
    chat.disconnect()
    chat.connect()
    assert ANSWER == chat.ask("sql-assistant", QUESTION).text


def test_limit(relay: Relay, chat: FluxbaseAIChat) -> None:
    """After so many bytes a connection is cut; what came before has arrived."""
    relay.set(limit=5_000)
    with pytest.raises(ConnectionLostError) as lost:
        chat.ask("sql-assistant", "flood 1000 100")
    assert 100 <= len(lost.value.partial_text) < 5_000
    relay.clear()
    assert ANSWER == chat.ask("sql-assistant", QUESTION).text


def test_server_restarts(server: DevServer, relay: Relay, chat: FluxbaseAIChat) -> None:
    """A server that is gone is a connection that ends at once; it may come back."""
    server.kill()
    assert relay.wait_for(lambda: not relay.open)
    while chat.is_connected():
        pass  # it has yet to hear of it
    with pytest.raises(ConnectError):
        chat.connect()
    server.start()
    assert ANSWER == chat.ask("sql-assistant", QUESTION).text


def test_turned_in_use(relay: Relay, chat: FluxbaseAIChat) -> None:
    """Switches that only slow the stream may be turned in the middle of it."""
    call = run(chat.ask, "sql-assistant", "flood 2000 20")
    for _ in range(50):
        for switches in ({"slicer": 700}, {"latency": 0.01}, {"bandwidth": 500_000}):
            relay.clear()
            relay.set(**switches)
    relay.clear()
    assert "x" * 40_000 == call.result(30).text


def test_unknown_switch(relay: Relay) -> None:
    """There are eight."""
    assert 8 == len(SWITCHES)
    with pytest.raises(TypeError, match="lag"):
        relay.set(lag=1)
