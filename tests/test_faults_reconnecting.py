"""Faults of reconnecting (R): what was sent is not sent again, what was not goes on."""

from __future__ import annotations

import contextlib
import itertools
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from clocks import FakeClock, Pauses, Waits
from conftest import join
from helpers import Heard, client_threads, counting, run
from servers import PING, PONG, TEXT, WAIT, Gate, Gone, Peer, RawServer, content, done, error

from fluxbase_aichat import FluxbaseAI, FluxbaseAIChat, Timeouts
from fluxbase_aichat._transport import Transport, _WebSocket
from fluxbase_aichat.errors import (
    AuthenticationError,
    ChatbotNotFoundError,
    ConfigurationError,
    ConnectionLostError,
    ConnectTimeoutError,
    ConversationNotResumedError,
    FluxbaseChatError,
    HandshakeError,
    IdentityConflictError,
    NotConnectedError,
    PermissionDeniedError,
    RateLimitError,
)

CID = "c-1"


def cut_when_idle(peer: Peer) -> None:
    """Start one conversation and cut the stream behind it."""
    peer.accept()
    peer.start(CID)
    peer.cut()


def of_connection(heard: Heard) -> list[str]:
    """Return what `on_event` was told of the connection."""
    return [name for name in heard.types if "connect" in name]


def attempts(heard: Heard) -> list[int]:
    """Return the numbers of the attempts that `on_event` was told of."""
    return [event.attempt for event in heard.items if event.type == "reconnecting"]


# -- R01 ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "end",
    [Peer.cut, Peer.rst, lambda peer: peer.close_frame(1001, b"restart")],
    ids=["end of the stream", "reset", "close frame"],
)
def test_r01_loss_when_idle(end) -> None:
    """A connection that is lost while nothing is asked comes back by itself, and is told of."""
    ready = Gate()

    def first(peer: Peer) -> None:
        peer.accept()
        peer.start(CID)
        ready.wait()
        end(peer)

    heard, failed = Heard(), Heard()
    with (
        RawServer(first, Peer.serve) as server,
        FluxbaseAIChat(server.url, on_event=heard, on_error=failed, reconnect_delay=0.01) as chat,
    ):
        chat.start_chat("support")
        ready.open()
        heard.wait_for_type("reconnected")
        assert ("connected", True) == (chat.state, chat.is_connected())
        assert ["connected", "disconnected", "reconnecting", "reconnected"] == of_connection(heard)
        (told,) = [event for event in heard.items if event.type == "reconnecting"]
        assert 1 == told.attempt
        assert 0.005 <= told.delay <= 0.01
        assert "You said: Hi" == chat.send_message(CID, "Hi").result().text
        assert 2 == server.connections
    assert [] == failed.items


def test_r01_state_while_it_is_away() -> None:
    """Between the loss and the new connection the state says so, and nothing is connected."""
    heard = Heard()
    with RawServer(cut_when_idle) as server:
        chat = FluxbaseAIChat(server.url, on_event=heard, reconnect_delay=60)
        chat.start_chat("support")
        heard.wait_for_type("reconnecting")
        assert ("reconnecting", False) == (chat.state, chat.is_connected())
        chat.disconnect()
        assert "disconnected" == chat.state
        assert 1 == server.connections


def test_r01_switched_off() -> None:
    """Without attempts a lost connection stays lost, until a call opens one."""
    heard = Heard()
    with (
        RawServer(cut_when_idle, Peer.serve) as server,
        FluxbaseAIChat(server.url, on_event=heard, reconnect_attempts=0) as chat,
    ):
        chat.start_chat("support")
        heard.wait_for_type("disconnected")
        assert chat.wait_idle(WAIT)
        assert "lost" == chat.state
        assert 1 == server.connections
        assert "You said: Hi" == chat.send_message(CID, "Hi").result().text
        assert "connected" == chat.state
        assert chat.wait_idle(WAIT)
        assert ["connected", "disconnected", "reconnected"] == of_connection(heard)


def test_r01_one_reconnect_for_all() -> None:
    """However many threads wait when it is lost: one new connection, and one of each event."""
    asked, queued = Gate(), Gate()

    def first(peer: Peer) -> None:
        peer.accept()
        peer.start(CID)
        peer.message()
        asked.open()
        queued.wait()
        peer.cut()

    heard = Heard()
    with (
        RawServer(first, Peer.serve) as server,
        FluxbaseAIChat(server.url, on_event=heard, reconnect_delay=0.05) as chat,
    ):
        lost = chat.conversation("support").send("lost")
        asked.wait()
        registered = counting(chat, "_enqueue")
        calls = [run(chat.ask, "support", f"{n}") for n in range(20)]
        calls += [run(chat.start_chat, "support") for _ in range(10)]
        waiting = [run(lost.result) for _ in range(10)]
        for _ in calls:
            registered()
        queued.open()
        heard.wait_for_type("reconnecting")
        connecting = [run(chat.connect) for _ in range(20)]
        for wait in waiting:
            with pytest.raises(ConnectionLostError):
                wait.result()
        for n, call in enumerate(calls):
            value = call.result()
            assert n >= 20 or f"You said: {n}" == value.text
        for connect in connecting:
            connect.result()
        assert 2 == server.connections
        assert chat.wait_idle(WAIT)
        assert ["connected", "disconnected", "reconnecting", "reconnected"] == of_connection(heard)


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

    with (
        RawServer(first, Peer.serve) as server,
        FluxbaseAIChat(server.url, reconnect_delay=0.01) as chat,
    ):
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
        FluxbaseAIChat(server.url, on_error=heard, reconnect_delay=0.01) as chat,
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

    with (
        RawServer(first, second) as server,
        FluxbaseAIChat(server.url, reconnect_delay=0.01) as chat,
    ):
        chat.start_chat("support")
        with pytest.raises(ConnectTimeoutError) as caught:
            chat.ask("other", "Hi", timeout=0.2)
        assert caught.value.sent is False
        over.open()
        assert chat.wait_idle(WAIT)


def test_r03_loss_while_it_is_written(monkeypatch) -> None:
    """A message that the system refused to take was not sent: it goes over the next one."""
    idle, asked, gone = Gate(), Gate(), Gate()
    flush = Transport.flush

    def late(transport: Transport) -> None:
        if idle.is_open and transport.unsent and not gone.is_open:
            asked.open()
            gone.wait()
        flush(transport)

    monkeypatch.setattr(Transport, "flush", late)

    def first(peer: Peer) -> None:
        peer.accept()
        peer.start(CID)
        idle.open()
        asked.wait()
        peer.rst()

    heard = Heard()
    with (
        RawServer(first, Peer.serve) as server,
        FluxbaseAIChat(server.url, on_error=heard, reconnect_delay=0.01) as chat,
    ):
        cid = chat.start_chat("support")
        idle.wait()
        turn = chat.send_message(cid, "Hi")
        asked.wait()
        server.join(1)
        gone.open()
        assert "You said: Hi" == turn.result().text
        assert 2 == server.connections
    assert [] == heard.items
    assert ["Hi"] == [m["content"] for _, m in server.received if "content" in m]


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


@pytest.mark.parametrize("attempts", [0, 2])
def test_r03_never_written(attempts, monkeypatch) -> None:
    """A message that no connection lives long enough to take is given up, as unsent."""
    Pauses(monkeypatch)
    flush = Transport.flush
    ready = Gate()

    def late(transport: Transport) -> None:
        if transport.unsent and ready.is_open:
            # The server has reset the connection by the time that this is written.
            server.join(server.connections)
        flush(transport)

    monkeypatch.setattr(Transport, "flush", late)

    def script(peer: Peer) -> None:
        assert peer.number < 20, "it is tried without end"
        peer.accept()
        if peer.number == 1:
            peer.start(CID)
            ready.open()
        peer.rst()

    with (
        RawServer(script) as server,
        FluxbaseAIChat(server.url, reconnect_attempts=attempts) as chat,
    ):
        talk = chat.conversation("support")
        talk.start()
        ready.wait()
        with pytest.raises(FluxbaseChatError) as caught:
            talk.ask("never")
        assert caught.value.sent is False
    assert not [m for _, m in server.received if "content" in m]


def test_r03_nobody_is_there_any_more(monkeypatch) -> None:
    """What was queued fails as unsent when the attempts are used up."""
    pauses = Pauses(monkeypatch)
    asked, queued = Gate(), Gate()

    def script(peer: Peer) -> None:
        if peer.number > 1:
            peer.refuse("503 Service Unavailable")
            return
        peer.accept()
        peer.start(CID)
        peer.message()
        asked.open()
        queued.wait()
        peer.cut()

    heard = Heard()
    with (
        RawServer(script) as server,
        FluxbaseAIChat(server.url, on_event=heard, reconnect_attempts=2) as chat,
    ):
        lost = chat.conversation("support").send("lost")
        asked.wait()
        turn = chat.send_message(CID, "queued")
        registered = counting(chat, "_enqueue")
        starting = run(chat.start_chat, "support")
        registered()
        queued.open()
        with pytest.raises(ConnectionLostError):
            lost.result()
        for call in (turn.result, starting.result):
            with pytest.raises(HandshakeError) as caught:
                call()
            assert (False, 2, 503) == (
                caught.value.sent,
                caught.value.attempts,
                caught.value.status,
            )
        assert "lost" == chat.state
        assert 3 == server.connections
        assert 2 == len(pauses.seconds)


# -- R05 ------------------------------------------------------------------------------------


def test_r05_twenty_failed_attempts(monkeypatch) -> None:
    """Each delay is between half and all of its step; then it is lost, and a call tries once."""
    pauses = Pauses(monkeypatch)
    back = Gate()

    def script(peer: Peer) -> None:
        if peer.number == 1:
            cut_when_idle(peer)
        elif back.is_open:
            peer.serve()
        else:
            peer.refuse("502 Bad Gateway")

    heard, failed = Heard(), Heard()
    with (
        RawServer(script) as server,
        FluxbaseAIChat(server.url, on_event=heard, on_error=failed, reconnect_attempts=20) as chat,
    ):
        chat.start_chat("support")
        server.peer(21)
        heard.wait_for_type("reconnecting", 20)
        for thread in [t for t in threading.enumerate() if "fluxbase-aichat-io" in t.name]:
            join(thread, WAIT)
        assert "lost" == chat.state
        assert 21 == server.connections
        assert list(range(1, 21)) == attempts(heard)
        told = [event.delay for event in heard.items if event.type == "reconnecting"]
        assert pauses.seconds == told
        for n, delay in enumerate(told):
            step = min(30.0, 2.0**n)
            assert step / 2 <= delay <= step
        # Each call tries once more, without waiting, and says so.
        for n in (1, 2):
            with pytest.raises(HandshakeError) as caught:
                chat.send_message(CID, "nobody hears this").result()
            assert (False, 1) == (caught.value.sent, caught.value.attempts)
            assert (21 + n, "lost") == (server.connections, chat.state)
        with pytest.raises(HandshakeError):
            chat.connect()
        assert 24 == server.connections
        back.open()
        assert "You said: Hi" == chat.send_message(CID, "Hi").result().text
        assert ("connected", 25) == (chat.state, server.connections)
        assert 20 == len(pauses.seconds)
    assert ["CONNECTION_LOST"] * 2 == [code for _, code, _ in failed.items]
    assert ["connected", "disconnected", *["reconnecting"] * 20, "reconnected", "disconnected"] == (
        of_connection(heard)
    )


@pytest.mark.parametrize("queue", [False, True], ids=["idle", "with a queue"])
@pytest.mark.parametrize("end", [Peer.cut, Peer.rst])
def test_r05_an_upgrade_is_no_good_connection(end, queue, monkeypatch) -> None:
    """A server that accepts and hangs up uses up the attempts; a mere upgrade resets nothing."""
    Pauses(monkeypatch)
    ready = Gate()

    def script(peer: Peer) -> None:
        assert peer.number < 50, "it is tried without end"
        peer.accept()
        if peer.number == 1:
            peer.start(CID)
            if queue:
                peer.message()
            ready.wait()
        end(peer)

    heard = Heard()
    with (
        RawServer(script) as server,
        FluxbaseAIChat(server.url, on_event=heard, reconnect_attempts=3) as chat,
    ):
        cid = chat.start_chat("support")
        turn = chat.send_message(cid, "Hi") if queue else None
        ready.open()
        heard.wait_for_type("reconnecting", 3)
        if turn is not None:
            with pytest.raises(ConnectionLostError):
                turn.result()
        heard.wait_for_type("disconnected", 4)
        for thread in [t for t in threading.enumerate() if "fluxbase-aichat-io" in t.name]:
            join(thread, WAIT)
        assert "lost" == chat.state
        assert [1, 2, 3] == attempts(heard)
        assert 4 == server.connections
        chat.disconnect()


def test_r05_a_conversation_makes_a_good_connection(monkeypatch) -> None:
    """A connection on which a conversation was started begins to count anew."""
    Pauses(monkeypatch)
    heard = Heard()

    def script(peer: Peer) -> None:
        peer.accept()
        if peer.number % 3 == 1 and peer.number < 10:
            peer.start(f"c-{peer.number}")
            peer.cut()
        elif peer.number < 10:
            peer.cut()
        else:
            peer.serve()

    with (
        RawServer(script) as server,
        FluxbaseAIChat(server.url, on_event=heard, reconnect_attempts=3) as chat,
    ):
        for n in (1, 4, 7):
            assert f"c-{n}" == chat.start_chat("support", timeout=WAIT)
            server.peer(n + 3)
        assert "c-1" == chat.start_chat("support")
        heard.wait_for_type("reconnecting", 9)
        assert [1, 2, 3] * 3 == attempts(heard)


@pytest.mark.parametrize(("lived", "numbers"), [(29.0, [1, 2]), (30.0, [1, 1])])
def test_r05_a_long_life_makes_a_good_connection(lived, numbers) -> None:
    """A connection that lived for 30 s begins to count anew, one second less does not."""
    ends = [Gate(), Gate()]

    def script(peer: Peer) -> None:
        peer.accept()
        if peer.number == 1:
            peer.cut()
        elif peer.number == 2:
            ends[0].wait()
            peer.cut()
        else:
            peer.until_closed()

    heard = Heard()
    with RawServer(script) as server:
        chat = FluxbaseAIChat(server.url, on_event=heard, reconnect_delay=0.0)
        clock = FakeClock().drive(chat)
        with chat:
            heard.wait_for_type("reconnected", 1)
            clock.advance(lived)
            ends[0].open()
            heard.wait_for_type("reconnected", 2)
            assert numbers == attempts(heard)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        ("400 Bad Request", HandshakeError),
        ("403 Forbidden", PermissionDeniedError),
        ("404 Not Found", HandshakeError),
        ("401 Unauthorized", AuthenticationError),
    ],
)
def test_r05_final_refusals(status, kind) -> None:
    """What waiting cannot mend ends it at once: nothing is tried again, callers hear why."""
    queued = Gate()

    def second(peer: Peer) -> None:
        assert peer.number == 2
        queued.wait()
        peer.refuse(status)

    heard = Heard()
    with RawServer(cut_when_idle, second) as server:
        chat = FluxbaseAIChat(server.url, token="t0k3n", on_event=heard, reconnect_delay=0.01)
        chat.start_chat("support")
        heard.wait_for_type("reconnecting")
        turn = chat.send_message(CID, "Hi")
        queued.open()
        with pytest.raises(kind) as caught:
            turn.result()
        assert caught.value.sent is False
        assert "lost" == chat.state
        assert 2 == server.connections
        chat.disconnect()
        assert [1] == attempts(heard)


# -- R07 ------------------------------------------------------------------------------------


@pytest.mark.parametrize("good", [None, 3])
def test_r07_401_on_reconnect(good) -> None:
    """A callable token is asked once more; what is refused twice is final."""
    numbers = itertools.count(1)
    seen = []
    queued = Gate()

    def script(peer: Peer) -> None:
        peer.read_request()
        seen.append(peer.headers["authorization"])
        if peer.number == 1:
            cut_when_idle(peer)
            return
        queued.wait()
        if peer.number == good:
            peer.serve()
        else:
            peer.refuse("401 Unauthorized")

    heard = Heard()
    with RawServer(script) as server:
        chat = FluxbaseAIChat(
            server.url, token=lambda: f"t{next(numbers)}", on_event=heard, reconnect_delay=0.01
        )
        chat.start_chat("support")
        heard.wait_for_type("reconnecting")
        turn = chat.send_message(CID, "Hi")
        queued.open()
        if good:
            assert "You said: Hi" == turn.result().text
        else:
            with pytest.raises(AuthenticationError) as caught:
                turn.result()
            assert caught.value.sent is False
            assert "lost" == chat.state
        chat.disconnect()
        assert [1] == attempts(heard)
    assert ["Bearer t1", "Bearer t2", "Bearer t3"] == seen


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


@pytest.mark.parametrize("problem", [SystemExit("log in first"), KeyboardInterrupt()])
def test_r08_token_callable_exits(problem) -> None:
    """One that ends its thread leaves nobody waiting: it has raised, as any other has."""

    def token() -> str:
        raise problem

    with RawServer(Peer.serve) as server:
        chat = FluxbaseAIChat(server.url, token=token)
        call = run(chat.ask, "support", "Hi")
        with pytest.raises(AuthenticationError) as caught:
            call.result()
        assert caught.value.__cause__ is problem
        assert "lost" == chat.state
        chat.disconnect()
        with pytest.raises(AuthenticationError) as caught:
            FluxbaseAI(server.url, token=token).list_chatbots()
        assert caught.value.__cause__ is problem
        assert 0 == server.connections


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
        FluxbaseAIChat(server.url, token=lambda: next(tokens), reconnect_delay=0.01) as chat,
    ):
        talk = chat.conversation("support")
        with pytest.raises(ConnectionLostError):
            talk.ask("Hi")
        assert "" == talk.ask("Hi").text
    assert ["Bearer one", "Bearer two"] == seen


def test_r08_token_callable_raises_on_reconnect() -> None:
    """What it raises then is final too, and is what those who wait hear."""
    problem = ValueError("s3cret")
    tokens = iter(["one"])
    queued = Gate()

    def token() -> str:
        for value in tokens:
            return value
        queued.wait()
        raise problem

    heard = Heard()
    with RawServer(cut_when_idle) as server:
        chat = FluxbaseAIChat(server.url, token=token, on_event=heard, reconnect_delay=0.01)
        chat.start_chat("support")
        heard.wait_for_type("reconnecting")
        turn = chat.send_message(CID, "Hi")
        queued.open()
        with pytest.raises(AuthenticationError) as caught:
            turn.result()
        assert caught.value.__cause__ is problem
        assert caught.value.sent is False
        assert "lost" == chat.state
        chat.disconnect()
        assert 1 == server.connections


def test_r08_a_new_token_serves_the_next_connection() -> None:
    """`chat.token = …` counts from the next connection on."""
    seen = []

    def script(peer: Peer) -> None:
        peer.read_request()
        seen.append(peer.headers["authorization"])
        if peer.number == 1:
            cut_when_idle(peer)
        else:
            peer.serve()

    heard = Heard()
    with (
        RawServer(script) as server,
        FluxbaseAIChat(server.url, token="old", on_event=heard, reconnect_delay=0.05) as chat,
    ):
        chat.token = "new"
        assert CID == chat.start_chat("support")
        heard.wait_for_type("reconnected")
        assert "You said: Hi" == chat.send_message(CID, "Hi").result().text
    assert ["Bearer old", "Bearer new"] == seen


@pytest.mark.parametrize("old", ["old", lambda: "old"], ids=["text", "callable"])
@pytest.mark.parametrize("new", ["new", lambda: "new"], ids=["text", "callable"])
def test_r08_a_new_token_in_the_delay(old, new, monkeypatch) -> None:
    """One that is set while a reconnect waits out its delay serves that attempt."""
    waiting, replaced = Gate(), Gate()
    seen = []

    def pause(seconds: float, *_: object) -> None:
        if seconds:
            waiting.open()
            replaced.wait()

    monkeypatch.setattr("fluxbase_aichat._connection.pause", pause)

    def script(peer: Peer) -> None:
        peer.read_request()
        seen.append(peer.headers["authorization"])
        if peer.number == 1:
            cut_when_idle(peer)
        else:
            peer.serve()

    with (
        RawServer(script) as server,
        FluxbaseAIChat(server.url, token=old, reconnect_attempts=1) as chat,
    ):
        assert CID == chat.start_chat("support")
        waiting.wait()
        turn = chat.send_message(CID, "Hi")
        chat.token = new
        replaced.open()
        assert "You said: Hi" == turn.result().text
    assert ["Bearer old", "Bearer new"] == seen


# -- R09 ------------------------------------------------------------------------------------

BUSY = "503 Service Unavailable"


@pytest.mark.parametrize(
    ("status", "value", "low", "high"),
    [
        (BUSY, "5", 5, 5),
        ("429 Too Many Requests", "5", 5, 5),
        (BUSY, "0", 0.5, 2),
        (BUSY, "-1", 0.5, 2),
        (BUSY, "1000000000", 60, 60),
        (BUSY, "Fri, 31 Dec 9999 23:59:59 GMT", 60, 60),
        (BUSY, "Wed, 21 Oct 2015 07:28:00 GMT", 0.5, 2),
        (BUSY, "whenever you like", 0.5, 2),
    ],
)
def test_r09_retry_after(status, value, low, high, monkeypatch) -> None:
    """A server that says when to come back is obeyed within a minute; junk is ignored."""
    pauses = Pauses(monkeypatch)

    def second(peer: Peer) -> None:
        peer.refuse(status, headers={"Retry-After": value})

    heard = Heard()
    with (
        RawServer(cut_when_idle, second, Peer.serve) as server,
        FluxbaseAIChat(server.url, on_event=heard) as chat,
    ):
        chat.start_chat("support")
        heard.wait_for_type("reconnected")
        first, then = pauses.seconds
        assert 0.5 <= first <= 1
        assert low <= then <= high
        assert [1, 2] == attempts(heard)


def test_r09_first_connection() -> None:
    """The first connection is not tried again: its caller hears how long to wait."""

    def script(peer: Peer) -> None:
        assert peer.number == 1
        peer.refuse("429 Too Many Requests", headers={"Retry-After": "7"})

    with RawServer(script) as server:
        chat = FluxbaseAIChat(server.url)
        with pytest.raises(RateLimitError) as caught:
            chat.connect()
        assert (7.0, True) == (caught.value.retry_after, caught.value.retryable)
        chat.disconnect()


# -- R10 ------------------------------------------------------------------------------------


def test_r10_disconnect_while_waiting(monkeypatch) -> None:
    """Disconnecting ends the wait and every call at once; nothing is tried later."""
    waits = Waits(monkeypatch)
    heard = Heard()
    before = threading.enumerate()
    with RawServer(cut_when_idle) as server:
        chat = FluxbaseAIChat(server.url, on_event=heard, reconnect_delay=60)
        chat.start_chat("support")
        heard.wait_for_type("reconnecting")
        registered = counting(chat, "_enqueue")
        turn = chat.send_message(CID, "Hi")
        calls = [
            run(chat.connect, timeout=None),
            run(chat.ask, "support", "Hi"),
            run(chat.start_chat, "support"),
        ]
        for _ in range(3):
            registered()
        waits.wait()
        (current,) = [t for t in threading.enumerate() if t.name == "fluxbase-aichat-io-2"]
        began = time.monotonic()
        chat.disconnect()
        assert time.monotonic() - began < 1
        assert not current.is_alive()
        for call in (*(call.result for call in calls), turn.result):
            with pytest.raises(NotConnectedError):
                call()
        assert "disconnected" == chat.state
        assert "fluxbase-aichat-callbacks-1" not in client_threads(before)
        assert 1 == server.connections
        assert ["disconnected", "reconnecting"] == heard.types[-2:]


def test_r10_connect_behind_it() -> None:
    """What was disconnected while it waited can be connected at once, and knows what it knew."""
    heard = Heard()
    with RawServer(cut_when_idle, Peer.serve) as server:
        chat = FluxbaseAIChat(server.url, on_event=heard, reconnect_delay=60)
        chat.start_chat("support")
        heard.wait_for_type("reconnecting")
        chat.disconnect()
        chat.connect(timeout=WAIT)
        assert "You said: Hi" == chat.send_message(CID, "Hi").result().text
        assert 2 == server.connections
        chat.disconnect()


# -- R11 ------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["in the delay", "in the handshake"])
def test_r11_call_during_a_reconnect(where) -> None:
    """A call waits up to its own deadline, and fails as unsent; the reconnect goes on."""
    over = Gate()

    def second(peer: Peer) -> None:
        peer.read_request()
        over.wait()
        peer.serve()

    heard = Heard()
    with RawServer(cut_when_idle, second) as server:
        chat = FluxbaseAIChat(
            server.url,
            on_event=heard,
            reconnect_delay=60 if where == "in the delay" else 0.001,
        )
        chat.start_chat("support")
        heard.wait_for_type("reconnecting")
        talk = chat.conversation("support", conversation_id=CID)
        calls: list[Callable[..., Any]] = [
            chat.connect,
            lambda timeout: chat.ask("support", "never", timeout=timeout),
            lambda timeout: talk.ask("never", timeout=timeout),
            lambda timeout: chat.start_chat("support", timeout=timeout),
            lambda timeout: chat.conversation("support").start(timeout=timeout),
        ]
        for call in [run(call, timeout=0.2) for call in calls]:
            with pytest.raises(ConnectTimeoutError) as caught:
                call.result()
            assert caught.value.sent is False
        assert "reconnecting" == chat.state
        if where == "in the handshake":
            turn = talk.send("Hi")
            over.open()
            assert "You said: Hi" == turn.result().text
            assert ["Hi"] == [m["content"] for _, m in server.received if "content" in m]
        chat.disconnect()
        assert (1 if where == "in the delay" else 2) == server.connections


@pytest.mark.parametrize("other", ["connect", "ask"])
def test_r11_an_impatient_call_fails_alone(other) -> None:
    """What others asked for meanwhile is tried for as long as they, or the settings, allow."""
    waiting = Gate()

    def stuck(peer: Peer) -> None:
        peer.read_request()
        waiting.open()
        peer.until_closed()

    with RawServer(stuck, Peer.serve) as server:
        chat = FluxbaseAIChat(server.url)
        impatient = run(chat.connect, timeout=0.5)
        waiting.wait()
        call = run(chat.connect) if other == "connect" else run(chat.ask, "support", "Hi")
        with pytest.raises(ConnectTimeoutError, match="0.5 s"):
            impatient.result()
        call.result()
        assert chat.is_connected()
        assert 2 == server.connections
        chat.disconnect()


@pytest.mark.parametrize("patience", [60.0, None])
def test_r11_a_patient_call_holds_up_nobody(patience) -> None:
    """What others asked for meanwhile ends after the settings' time; the patient call goes on."""
    asked = Gate()

    def stuck(peer: Peer) -> None:
        peer.read_request()
        asked.open()
        peer.until_closed()

    with RawServer(stuck, Peer.serve) as server:
        chat = FluxbaseAIChat(server.url, timeouts=Timeouts(connect=0.2))
        patient = run(chat.connect, timeout=patience)
        asked.wait()
        with pytest.raises(ConnectTimeoutError, match=r"0\.2 s") as caught:
            chat.ask("support", "Hi")
        assert caught.value.sent is False
        patient.result()
        assert "You said: Hi" == chat.ask("support", "Hi").text
        chat.disconnect()


# -- X16 ------------------------------------------------------------------------------------

EIGHT_HOURS = 8 * 3600.0


def test_x16_clock_jumps_when_idle() -> None:
    """After a suspend a connection that is dead is replaced, once."""
    pinged = Gate()

    def first(peer: Peer) -> None:
        peer.accept()
        peer.start(CID)
        peer.recv_control()
        pinged.open()
        peer.until_closed()

    heard = Heard()
    with RawServer(first, Peer.serve) as server:
        chat = FluxbaseAIChat(
            server.url,
            on_event=heard,
            reconnect_delay=0.0,
            timeouts=Timeouts(connect=None),  # the clock may jump while the next one is opened
        )
        clock = FakeClock().drive(chat)
        with chat:
            chat.start_chat("support")
            clock.advance(EIGHT_HOURS)
            pinged.wait()
            # The ping's time is noted behind its writing: until then nothing is due.
            while "disconnected" not in heard.types and server.connections == 1:
                clock.advance(EIGHT_HOURS)
            heard.wait_for_type("reconnected")
            assert "You said: Hi" == chat.send_message(CID, "Hi").result().text
            assert 2 == server.connections
            assert [1] == attempts(heard)


def test_x16_clock_jumps_and_the_server_is_there() -> None:
    """A connection that outlived the suspend is asked once, answers, and is kept."""
    pinged = Gate()

    def script(peer: Peer) -> None:
        peer.accept()
        peer.start(CID)
        _, payload = peer.recv_control()
        pinged.open()
        peer.send_frame(PONG, payload)
        assert "Hi" == peer.answer("kept")["content"]
        assert 1 == len(peer.control)
        peer.until_closed()

    with RawServer(script) as server:
        chat = FluxbaseAIChat(server.url)
        clock = FakeClock().drive(chat)
        with chat:
            chat.start_chat("support")
            clock.advance(EIGHT_HOURS)
            pinged.wait()
            assert "kept" == chat.send_message(CID, "Hi").result().text
            assert 1 == server.connections


def test_x16_clock_jumps_in_a_delay(monkeypatch) -> None:
    """A suspend in the delay before an attempt is followed by that attempt, and one delay each."""
    waits = Waits(monkeypatch)

    def script(peer: Peer) -> None:
        if peer.number == 1:
            cut_when_idle(peer)
        elif peer.number == 2:
            peer.refuse("503 Service Unavailable")
        else:
            peer.serve()

    heard = Heard()
    with RawServer(script) as server:
        chat = FluxbaseAIChat(server.url, on_event=heard, reconnect_delay=10)
        clock = FakeClock().drive(chat)
        with chat:
            chat.start_chat("support")
            waits.wait()
            clock.advance(EIGHT_HOURS)
            heard.wait_for_type("reconnecting", 2)
            waits.wait()
            assert 2 == server.connections
            clock.advance(EIGHT_HOURS)
            heard.wait_for_type("reconnected")
            assert 3 == server.connections
            assert [1, 2] == attempts(heard)


# -- an old connection's late thread --------------------------------------------------------


def test_an_old_connection_changes_nothing(monkeypatch) -> None:
    """The thread of a connection that was left may end whenever it likes."""
    held, released = Gate(), Gate()
    close = Transport.close

    def late(transport: Transport) -> None:
        if not held.is_open:
            held.open()
            released.wait()
        close(transport)

    def first(peer: Peer) -> None:
        peer.accept()
        peer.start(CID)
        peer.message()
        peer.send_text(content(CID, "half"))
        assert "cancel" == peer.recv_json()["type"]
        peer.cut()

    heard = Heard()
    with (
        RawServer(first, Peer.serve) as server,
        FluxbaseAIChat(server.url, on_event=heard) as chat,
    ):
        turn = chat.conversation("support").send("Hi")
        assert "half" == next(turn.text_stream)
        old = chat._session._current
        assert old is not None
        monkeypatch.setattr(Transport, "close", late)
        turn.cancel()
        held.wait()
        assert "You said: one" == chat.send_message(CID, "one").result().text
        state, types = chat.state, heard.types
        queued = chat.send_message(CID, "two")
        released.open()
        old.join(WAIT)
        assert "You said: two" == queued.result().text
        assert chat.send_message(CID, "three").wait(WAIT)
        assert ("connected", "connected") == (state, chat.state)
        assert 2 == server.connections
        assert not {"disconnected", "reconnecting", "reconnected"} & set(heard.types)
        assert types == heard.types[: len(types)]


# -- promise 6: losing the connection loses no conversation ---------------------------------

BOB = "11111111-1111-4111-8111-111111111111"


def lost_then(*scripts: Callable[[Peer], object]) -> RawServer:
    """Return a server whose first connection starts a conversation and is lost when idle."""
    return RawServer(cut_when_idle, *scripts)


def test_promise_6_started_again_before_its_message() -> None:
    """It is started under its id, with its chatbot, namespace and identity; then it is sent."""
    starts = []

    def second(peer: Peer) -> None:
        peer.accept()
        starts.append(peer.recv_json())
        assert [] == peer.settle(), "the message went before the id was known"
        peer.send_text({"type": "chat_started", "conversation_id": CID, "chatbot": "support"})
        assert {"type": "message", "conversation_id": CID, "content": "Hi"} == peer.message()
        peer.send_text(content(CID, "still here"), done(CID))
        assert "again" == peer.answer("and here")["content"]
        peer.until_closed()

    with (
        lost_then(second) as server,
        FluxbaseAIChat(server.url, impersonate_user_id=BOB, reconnect_delay=0.01) as chat,
    ):
        talk = chat.conversation("support", namespace="help")
        assert CID == talk.start()
        server.peer(2)
        assert "still here" == talk.ask("Hi").text
        assert "and here" == talk.ask("again").text
        assert CID == talk.id
    assert [
        {
            "type": "start_chat",
            "chatbot": "support",
            "namespace": "help",
            "conversation_id": CID,
            "impersonate_user_id": BOB,
        }
    ] == starts


def test_promise_6_another_id_is_given() -> None:
    """A server that lost it is told nothing: the error has both ids, the new one is usable."""

    def second(peer: Peer) -> None:
        peer.accept()
        peer.start("c-2")
        assert "new" == peer.answer("yes")["content"]
        peer.until_closed()

    heard = Heard()
    with (
        lost_then(second) as server,
        FluxbaseAIChat(server.url, on_error=heard, reconnect_delay=0.01) as chat,
    ):
        talk = chat.conversation("support")
        assert CID == talk.start()
        server.peer(2)
        with pytest.raises(ConversationNotResumedError) as caught:
            talk.ask("secret")
        assert (CID, "c-2", False) == (
            caught.value.requested,
            caught.value.received,
            caught.value.sent,
        )
        assert CID == talk.id
        assert "yes" == chat.send_message("c-2", "new").result().text
    assert ["new"] == [m["content"] for _, m in server.received if "content" in m]
    assert [("CONNECTION_LOST", CID)] == [(code, cid) for _, code, cid in heard.items]


def test_promise_6_on_lost_new() -> None:
    """With on_lost="new" it goes on in the new conversation, and is known under its id."""

    def second(peer: Peer) -> None:
        peer.accept()
        assert CID == peer.start("c-2")["conversation_id"]
        assert {"type": "message", "conversation_id": "c-2", "content": "Hi"} == peer.message()
        peer.send_text(content("c-2", "new"), done("c-2"))
        assert "c-2" == peer.answer("newer")["conversation_id"]
        assert "c-2" == peer.answer("newest")["conversation_id"]
        peer.until_closed()

    with lost_then(second) as server, FluxbaseAIChat(server.url, reconnect_delay=0.01) as chat:
        talk = chat.conversation("support", on_lost="new")
        assert CID == talk.start()
        server.peer(2)
        turn = talk.send("Hi")
        assert "new" == turn.result().text
        assert ("c-2", "c-2") == (talk.id, turn.conversation_id)
        assert "newer" == talk.ask("again").text
        assert "newest" == chat.send_message("c-2", "and again").result().text


def test_promise_6_the_start_is_refused() -> None:
    """A start that is answered with an error fails its message as unsent, and no other."""

    def second(peer: Peer) -> None:
        peer.accept()
        peer.recv_json()
        peer.send_text(error("Chatbot not found or disabled", "CHATBOT_NOT_FOUND"))
        peer.start(CID)
        peer.answer("back")
        peer.until_closed()

    with lost_then(second) as server, FluxbaseAIChat(server.url, reconnect_delay=0.01) as chat:
        talk = chat.conversation("support")
        talk.start()
        server.peer(2)
        with pytest.raises(ChatbotNotFoundError) as caught:
            talk.ask("never")
        assert caught.value.sent is False
        assert "back" == talk.ask("Hi").text
    assert ["Hi"] == [m["content"] for _, m in server.received if "content" in m]


def test_promise_6_lost_again_and_again(monkeypatch) -> None:
    """A message whose start is lost with each connection is given up, as unsent."""
    Pauses(monkeypatch)
    ready = Gate()

    def script(peer: Peer) -> None:
        peer.accept()
        if peer.number == 1:
            peer.start(CID)
            ready.wait()
        else:
            assert CID == peer.recv_json()["conversation_id"]
        peer.cut()

    with (
        RawServer(script) as server,
        FluxbaseAIChat(server.url, reconnect_attempts=2) as chat,
    ):
        talk = chat.conversation("support")
        talk.start()
        ready.open()
        server.peer(2)
        with pytest.raises(ConnectionLostError) as caught:
            talk.ask("never")
        assert (False, True) == (caught.value.sent, caught.value.retryable)
        assert server.connections <= 6
    assert not [m for _, m in server.received if "content" in m]


# -- promise 7: the right chatbot and the right identity ------------------------------------


class Forgetful:
    """A server that hangs up after some messages, and answers with the chatbot started last."""

    def __init__(self, messages: int) -> None:
        self.messages = messages
        self.starts: list[list[dict[str, Any]]] = []

    def __call__(self, peer: Peer) -> None:
        """Serve one connection."""
        peer.accept()
        starts: list[dict[str, Any]] = []
        self.starts.append(starts)
        chatbot, left = "", self.messages
        with contextlib.suppress(Gone):
            while left:
                request = peer.recv_json()
                if request["type"] == "start_chat":
                    starts.append(request)
                    chatbot = request["chatbot"]
                    new = f"c-{peer.number}-{len(starts)}"
                    cid = request.get("conversation_id", new)
                    peer.send_text({"type": "chat_started", "conversation_id": cid})
                elif request["type"] == "message":
                    left -= 1
                    cid = request["conversation_id"]
                    words = f"{chatbot}: {request['content']}"
                    peer.send_text(content(cid, words), done(cid))
            peer.cut()


@pytest.mark.parametrize("identity", [BOB, None])
def test_promise_7_across_reconnects(identity) -> None:
    """Six threads, two chatbots, and a connection that is lost every few messages."""
    serve = Forgetful(7)
    start = threading.Barrier(6)
    lost = Heard()
    with (
        RawServer(serve) as server,
        FluxbaseAIChat(server.url, impersonate_user_id=identity, reconnect_delay=0.001) as chat,
    ):

        def ask(n: int) -> None:
            chatbot = ("sales", "support")[n % 2]
            talk = chat.conversation(chatbot, namespace=chatbot)
            start.wait(WAIT)
            for m in range(20):
                words = f"{n}.{m}"
                try:
                    assert f"{chatbot}: {words}" == talk.ask(words, timeout=20).text
                except ConnectionLostError as problem:
                    lost((words, problem.sent))

        for call in [run(ask, n) for n in range(6)]:
            call.result(30)
        assert 10 < server.connections
    asked = [m["content"] for _, m in server.received if "content" in m]
    assert len(asked) == len(set(asked)), "a message was sent twice"
    assert {True} >= {sent for _, sent in lost.items}, "what was not sent is not lost"
    unheard = {words for words, _ in lost.items}
    assert {f"{n}.{m}" for n in range(6) for m in range(20)} == unheard.union(asked)
    for starts in serve.starts:
        said = [frame.get("impersonate_user_id") for frame in starts]
        # Once per connection, with its first start.
        assert ([identity] * bool(said)) + [None] * (len(said) - 1) == said
        for frame in starts:
            assert frame["chatbot"] == frame["namespace"]


def test_promise_7_identity_conflict_after_a_reconnect() -> None:
    """Who the client acts as is fixed for its life, not for that of a connection."""
    with (
        lost_then(Peer.serve) as server,
        FluxbaseAIChat(server.url, reconnect_delay=0.01) as chat,
    ):
        chat.start_chat("support", impersonate_user_id=BOB)
        server.peer(2)
        with pytest.raises(IdentityConflictError):
            chat.start_chat("support")
        with pytest.raises(IdentityConflictError):
            chat.start_chat("support", impersonate_user_id="another")
        assert "You said: Hi" == chat.send_message(CID, "Hi").result().text
        chat.start_chat("support", impersonate_user_id=BOB)
    starts = [m for n, m in server.received if n == 2 and m["type"] == "start_chat"]
    assert [BOB, None] == [m.get("impersonate_user_id") for m in starts]


def test_promise_7_nobody_impersonated_stays_so() -> None:
    """A client that began as itself stays itself on every connection."""
    with (
        lost_then(Peer.serve) as server,
        FluxbaseAIChat(server.url, reconnect_delay=0.01) as chat,
    ):
        chat.start_chat("support")
        server.peer(2)
        with pytest.raises(IdentityConflictError):
            chat.start_chat("support", impersonate_user_id=BOB)
        assert "You said: Hi" == chat.send_message(CID, "Hi").result().text
    assert not [m for _, m in server.received if "impersonate_user_id" in m]
