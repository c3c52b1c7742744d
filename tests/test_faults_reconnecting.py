"""Faults of reconnecting (R): what was sent is not sent again, what was not goes on."""

from __future__ import annotations

import socket
import threading
import time
from typing import Any

import pytest
from helpers import Heard
from servers import PING, PONG, TEXT, WAIT, Gate, Peer, RawServer, content, done

from fluxbase_aichat import FluxbaseAIChat
from fluxbase_aichat._transport import _WebSocket
from fluxbase_aichat.errors import (
    AuthenticationError,
    ConfigurationError,
    ConnectionLostError,
    ConnectTimeoutError,
)

CID = "c-1"

# -- R02, R03 -------------------------------------------------------------------------------


@pytest.mark.parametrize("arrived", [[], ["half"]])
def test_r02_loss_in_a_turn(arrived) -> None:
    """The turn fails as sent, and its message is not sent again."""

    def first(peer: Peer) -> None:
        peer.accept()
        peer.start(CID)
        peer.message()
        peer.send_text(*(content(CID, delta) for delta in arrived))
        peer.cut()

    with RawServer(first, Peer.serve) as server, FluxbaseAIChat(server.url) as chat:
        talk = chat.conversation("support")
        turn = talk.send("once")
        seen = []
        with pytest.raises(ConnectionLostError) as caught:
            seen.extend(turn.text_stream)
        assert arrived == seen
        assert (True, "".join(arrived)) == (caught.value.sent, caught.value.partial_text)
        assert caught.value.turn is turn
        assert not caught.value.retryable
        assert "You said: other" == talk.ask("other").text
    assert ["once", "other"] == [m["content"] for _, m in server.received if "content" in m]
    assert {"type": "start_chat", "chatbot": "support", "conversation_id": CID} == next(
        message for number, message in server.received if number == 2
    )


def test_r03_loss_before_the_message_was_written() -> None:
    """A message whose start was lost goes over the next connection, started again."""

    def first(peer: Peer) -> None:
        peer.accept()
        peer.start(CID)
        assert "start_chat" == peer.recv_json()["type"]
        peer.cut()

    heard = Heard()
    with (
        RawServer(first, Peer.serve) as server,
        FluxbaseAIChat(server.url, on_error=heard) as chat,
    ):
        chat.start_chat("support")
        assert "You said: Hi" == chat.conversation("other").send("Hi").result().text
    assert [] == heard.items
    assert ["Hi"] == [m["content"] for _, m in server.received if "content" in m]


def test_r03_no_connection_in_time() -> None:
    """A message that finds no connection by its deadline fails as unsent."""
    over = Gate()

    def second(peer: Peer) -> None:
        peer.read_request()
        over.wait()

    def first(peer: Peer) -> None:
        peer.accept()
        peer.start(CID)
        peer.recv_json()
        peer.cut()

    with RawServer(first, second) as server, FluxbaseAIChat(server.url) as chat:
        chat.start_chat("support")
        with pytest.raises(ConnectTimeoutError) as caught:
            chat.ask("other", "Hi", timeout=0.2)
        assert caught.value.sent is False
        over.open()


# -- R08 ------------------------------------------------------------------------------------


def test_r08_token_callable_raises() -> None:
    """What a token callable raises is the cause of an AuthenticationError; nothing is sent."""
    problem = ValueError("s3cret")

    def token() -> str:
        raise problem

    heard = Heard()
    with RawServer(Peer.serve) as server:
        chat = FluxbaseAIChat(server.url, token=token, on_error=heard)
        with pytest.raises(AuthenticationError) as caught:
            chat.connect()
        assert caught.value.__cause__ is problem
        assert caught.value.sent is False
        with pytest.raises(AuthenticationError):
            chat.ask("support", "Hi")
        assert chat.wait_idle(WAIT)
        chat.disconnect()
        assert 0 == server.connections
    assert "s3cret" not in str(caught.value)
    assert ["AUTH_FAILED"] == [code for _, code, _ in heard.items]


def test_r08_token_callable_blocks() -> None:
    """A token callable that does not return is left behind at the deadline."""
    over = Gate()

    def token() -> str:
        over.wait()
        return "t0k3n"

    with RawServer(Peer.serve) as server:
        chat = FluxbaseAIChat(server.url, token=token)
        began = time.monotonic()
        with pytest.raises(ConnectTimeoutError):
            chat.connect(timeout=0.2)
        assert 0.2 <= time.monotonic() - began < 2
        chat.disconnect()
        over.open()
        assert 0 == server.connections


@pytest.mark.parametrize("value", ["s3cret\n", "", "s3 cret", None, b"s3cret"])
def test_r08_token_callable_returns_no_token(value) -> None:
    """What cannot be a token is refused before the wire, and not quoted."""
    with RawServer(Peer.serve) as server:
        chat = FluxbaseAIChat(server.url, token=lambda: value)
        with pytest.raises(AuthenticationError) as caught:
            chat.connect()
        chat.disconnect()
        assert 0 == server.connections
    assert "s3c" not in f"{caught.value} {caught.value!r} {caught.value.__cause__!r}"
    assert not isinstance(caught.value, ConfigurationError)


def test_r08_token_callable_is_asked_for_each_connection() -> None:
    """Each connection asks for a token of its own."""
    tokens = iter(["one", "two"])
    seen = []

    def script(peer: Peer) -> None:
        peer.read_request()
        seen.append(peer.headers["authorization"])
        peer.accept()
        peer.start(CID)
        peer.message()
        if peer.number == 1:
            peer.cut()
        else:
            peer.send_text(done(CID))
            peer.until_closed()

    with (
        RawServer(script) as server,
        FluxbaseAIChat(server.url, token=lambda: next(tokens)) as chat,
    ):
        talk = chat.conversation("support")
        with pytest.raises(ConnectionLostError):
            talk.ask("Hi")
        assert "" == talk.ask("Hi").text
    assert ["Bearer one", "Bearer two"] == seen


def test_r03_loss_behind_a_written_message(monkeypatch) -> None:
    """A message that was written whole is not written again because a pong behind it was not."""
    started, blocked, pinged = Gate(), Gate(), Gate()
    send, pong = socket.socket.send, _WebSocket.pong

    def crowded(sock: socket.socket, data: bytes, *flags: int) -> int:
        """Take the message when a pong waits behind it, and never that pong."""
        ours = threading.current_thread().name.startswith("fluxbase-aichat-io")
        if ours and started.is_open and data[0] == 0x80 | TEXT and not pinged.is_open:
            blocked.open()
            raise BlockingIOError
        if ours and data[0] == 0x80 | PONG:
            raise BlockingIOError
        return send(sock, data, *flags)

    def noting(ws: Any, payload: Any = b"") -> None:
        pong(ws, payload)
        pinged.open()

    monkeypatch.setattr(socket.socket, "send", crowded)
    monkeypatch.setattr(_WebSocket, "pong", noting)

    def first(peer: Peer) -> None:
        peer.accept()
        peer.start(CID)
        blocked.wait()
        peer.send_frame(PING, b"behind it")
        peer.message()
        peer.cut()

    with (
        RawServer(first, Peer.serve) as server,
        FluxbaseAIChat(server.url, reconnect_delay=0.01) as chat,
    ):
        cid = chat.start_chat("support")
        started.open()
        turn = chat.send_message(cid, "Hi")
        with pytest.raises(ConnectionLostError) as caught:
            turn.result()
        assert caught.value.sent is True
    assert ["Hi"] == [m["content"] for _, m in server.received if "content" in m]
