"""Faults of closing (X): disconnecting ends everything, in time, whatever the server does."""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from conftest import descriptors, join
from helpers import Heard, client_threads, counting, run
from servers import WAIT, Gate, Peer, RawServer, content, done

from fluxbase_aichat import FluxbaseAIChat, Timeouts
from fluxbase_aichat.errors import (
    ConnectError,
    ConnectionLostError,
    FluxbaseChatError,
    NotConnectedError,
)

CID = "c-1"
FOREVER = Timeouts(close=None)


@contextlib.contextmanager
def within(low: float, high: float) -> Iterator[None]:
    """Check that the block takes that many seconds."""
    began = time.monotonic()
    yield
    taken = time.monotonic() - began
    assert low <= taken < high, f"it took {taken:.3f} s"


@pytest.fixture
def client_left() -> Callable[[], list[str]]:
    """Give a function that names the client's threads that have not ended."""
    return functools.partial(client_threads, threading.enumerate())


# -- X01 ------------------------------------------------------------------------------------


def test_x01_polite_server(client_left) -> None:
    """A server that answers the close frame: no timer is waited for, and it was a clean close."""
    closed = Gate()

    def script(peer: Peer) -> None:
        peer.accept()
        peer.start(CID)
        peer.until_closed()
        assert 1000 == peer.close_code
        closed.open()

    with RawServer(script) as server:
        chat = FluxbaseAIChat(server.url, timeouts=FOREVER)
        chat.start_chat("support")
        before = set(descriptors())
        with within(0, 2):
            chat.disconnect()
        assert [] == client_left()
        assert "disconnected" == chat.state
        assert not chat.is_connected()
        assert before > set(descriptors())
        closed.wait()


def test_x01_silent_server(client_left) -> None:
    """A server that does not answer the close frame is left at the close deadline."""
    over = Gate()

    def script(peer: Peer) -> None:
        peer.polite = False
        peer.accept()
        peer.start(CID)
        over.wait()
        peer.until_closed()
        assert 1000 == peer.close_code

    with RawServer(script) as server:
        chat = FluxbaseAIChat(server.url)
        chat.start_chat("support")
        with within(0.2, 1):
            chat.disconnect(timeout=0.2)
        left = client_left()
        over.open()
        server.join()
        assert [] == left


@pytest.mark.parametrize("timeout", [None, 30, 0])
def test_x01_busy_server(timeout, client_left) -> None:
    """In a turn no close handshake is awaited: the server could not answer it."""
    asked = Gate()

    def script(peer: Peer) -> None:
        peer.polite = False
        peer.accept()
        peer.start(CID)
        peer.message()
        asked.open()
        peer.until_closed()

    with RawServer(script) as server:
        chat = FluxbaseAIChat(server.url)
        turn = chat.conversation("support").send("Hi")
        asked.wait()
        waiting = run(turn.result)
        with within(0, 2):
            chat.disconnect(timeout=timeout)
        assert [] == client_left()
        with pytest.raises(NotConnectedError) as caught:
            waiting.result()
        assert caught.value.sent is True
        assert turn.wait(WAIT)
        server.join()


@pytest.mark.parametrize("in_a_turn", [True, False])
def test_x01_flooding_server(in_a_turn, client_left) -> None:
    """A server that sends without end, and reads nothing, is left at the close deadline."""
    flooding = Heard()

    def script(peer: Peer) -> None:
        peer.accept()
        peer.start(CID)
        if in_a_turn:
            peer.message()
        while True:
            peer.send_text(*[content(CID, "x" * 100)] * 1000)
            flooding(1)

    with RawServer(script) as server:
        chat = FluxbaseAIChat(server.url, on_content=lambda _: None)
        cid = chat.start_chat("support")
        if in_a_turn:
            chat.send_message(cid, "Hi")
        flooding.wait_for(lambda items: len(items) > 3)
        with within(0, 2):
            chat.disconnect(timeout=0.3)
        assert [] == client_left()
        server.join()


def test_x01_callbacks_that_were_received_run(client_left) -> None:
    """Callbacks of what had arrived still run, and disconnect waits for them."""
    entered, over, arrived = Gate(), Gate(), Gate()
    heard = Heard()

    def script(peer: Peer) -> None:
        peer.accept()
        peer.start(CID)
        peer.message()
        peer.send_text(content(CID, "a"))
        entered.wait()
        peer.send_text(content(CID, "b"), done(CID))
        peer.until_closed()

    def on_content(delta: str) -> None:
        heard(delta)
        entered.open()
        over.wait()

    with RawServer(script) as server:
        chat = FluxbaseAIChat(server.url, on_content=on_content, on_done=heard, timeouts=FOREVER)
        turn = chat.conversation("support").send("Hi")
        assert "ab" == turn.result().text
        closing = run(chat.disconnect)
        arrived.open()
        assert not closing.ended
        over.open()
        closing.result()
        assert [] == client_left()
    assert ["a", "b", (None, CID)] == heard.items
    assert turn.wait(0)


def test_x01_callback_that_blocks() -> None:
    """A callback that does not return holds disconnect up for the close deadline only."""
    entered, over = Gate(), Gate()
    heard = Heard()

    def script(peer: Peer) -> None:
        peer.accept()
        peer.start(CID)
        peer.answer("a", "b", "c")
        peer.until_closed()

    def on_content(delta: str) -> None:
        heard(delta)
        entered.open()
        over.wait()

    with RawServer(script) as server:
        chat = FluxbaseAIChat(server.url, on_content=on_content, on_done=heard)
        turn = chat.conversation("support").send("Hi")
        assert "abc" == turn.result().text
        entered.wait()
        with within(0.2, 1):
            chat.disconnect(timeout=0.2)
        assert turn.wait(0)
        over.open()
    assert ["a"] == heard.items


def test_x01_inside_a_callback() -> None:
    """Disconnecting inside a callback returns, and that callback is the last."""
    heard = Heard()
    over = Gate()

    def script(peer: Peer) -> None:
        peer.accept()
        peer.start(CID)
        peer.answer("a", "b", "c")
        peer.until_closed()

    def on_content(delta: str) -> None:
        heard(delta)
        chat.disconnect()
        over.open()

    with RawServer(script) as server:
        chat = FluxbaseAIChat(server.url, on_content=on_content, on_done=heard, timeouts=FOREVER)
        chat.conversation("support").send("Hi")
        over.wait()
        assert "disconnected" == chat.state
        server.join()
    assert ["a"] == heard.items


def test_x01_every_wait_ends(client_left) -> None:
    """A start, an ask, a result, an iterator and a wait all end at once, saying what was sent."""
    asked = Gate()

    def script(peer: Peer) -> None:
        peer.accept()
        peer.start(CID)
        peer.message()
        asked.open()
        peer.until_closed()

    with RawServer(script) as server:
        chat = FluxbaseAIChat(server.url, timeouts=Timeouts(start=None, idle=None))
        turn = chat.conversation("support").send("Hi")
        asked.wait()
        registered = counting(chat, "_enqueue")
        waits = [
            run(turn.result),
            run(list, turn),
            run(list, turn.text_stream),
            run(chat.start_chat, "support"),
            run(chat.ask, "support", "Hi"),
            run(chat.conversation("support").ask, "Hi"),
        ]
        waiting = run(turn.wait)
        for _ in range(3):
            registered()
        with within(0, 2):
            chat.disconnect()
        for wait, sent in zip(waits, [True, True, True, False, False, False], strict=True):
            with pytest.raises(NotConnectedError) as caught:
                wait.result()
            assert sent is caught.value.sent
        assert waiting.result() is True
    assert [] == client_left()


# -- X02 ------------------------------------------------------------------------------------


def test_x02_before_connect() -> None:
    """A client that was never connected can be disconnected; calls then say so."""
    chat = FluxbaseAIChat("ws://127.0.0.1:9")
    chat.disconnect()
    chat.disconnect()
    assert "disconnected" == chat.state
    with pytest.raises(NotConnectedError) as caught:
        chat.start_chat("support")
    assert caught.value.sent is False
    with pytest.raises(NotConnectedError):
        chat.conversation("support").send("Hi")


def test_x02_twice_and_again(client_left) -> None:
    """The second disconnect does nothing; connect opens again and knows the conversations."""
    with RawServer(Peer.serve) as server:
        chat = FluxbaseAIChat(server.url)
        cid = chat.start_chat("support")
        chat.disconnect()
        chat.disconnect()
        assert [] == client_left()
        with pytest.raises(NotConnectedError):
            chat.send_message(cid, "Hi")
        chat.connect()
        assert "connected" == chat.state
        assert "You said: Hi" == chat.send_message(cid, "Hi").result().text
        chat.disconnect()
        chat.disconnect(timeout=0)
        assert [] == client_left()
    assert {"type": "start_chat", "chatbot": "support", "conversation_id": cid} in [
        m for number, m in server.received if number == 2
    ]


@pytest.mark.parametrize("busy", [True, False])
def test_x02_from_many_threads(busy, client_left) -> None:
    """Eight threads that disconnect at once all return, and nothing is left."""
    asked = Gate()

    def script(peer: Peer) -> None:
        peer.accept()
        peer.start(CID)
        if busy:
            peer.message()
        asked.open()
        peer.until_closed()

    with RawServer(script) as server:
        chat = FluxbaseAIChat(server.url)
        cid = chat.start_chat("support")
        turn = chat.send_message(cid, "Hi") if busy else None
        asked.wait()
        barrier = threading.Barrier(8)

        def disconnect() -> None:
            barrier.wait(WAIT)
            chat.disconnect()

        for call in [run(disconnect) for _ in range(8)]:
            call.result()
        assert [] == client_left()
        assert turn is None or isinstance(turn.error, NotConnectedError)


def test_x02_after_a_loss() -> None:
    """A client whose connection was lost is disconnected as any other."""
    heard = Heard()

    def script(peer: Peer) -> None:
        peer.accept()
        peer.start(CID)
        peer.message()
        peer.cut()

    with RawServer(script) as server:
        chat = FluxbaseAIChat(server.url, on_event=heard, reconnect_delay=60)
        turn = chat.conversation("support").send("Hi")
        with pytest.raises(ConnectionLostError):
            turn.result()
        heard.wait_for_type("disconnected")
        chat.disconnect()
        chat.disconnect()
    assert "disconnected" == chat.state
    assert 1 == heard.types.count("disconnected")


def test_x02_after_a_loss_with_a_callback_that_blocks() -> None:
    """Also after a loss no callback begins behind the close deadline."""
    entered, over = Gate(), Gate()
    heard = Heard()

    def script(peer: Peer) -> None:
        peer.accept()
        peer.start(CID)
        peer.message()
        peer.send_text(content(CID, "a"), content(CID, "b"))
        entered.wait()
        peer.cut()

    def on_content(delta: str) -> None:
        heard(delta)
        entered.open()
        over.wait()

    with RawServer(script) as server:
        chat = FluxbaseAIChat(server.url, on_content=on_content, reconnect_delay=60)
        turn = chat.conversation("support").send("Hi")
        with pytest.raises(ConnectionLostError):
            turn.result()
        with within(0.2, 1):
            chat.disconnect(timeout=0.2)
        over.open()
        assert turn.wait(WAIT)
    assert ["a"] == heard.items


def test_x02_after_a_failed_connect(client_left) -> None:
    """A with block that could not connect has disconnected, and may be entered again."""

    def script(peer: Peer) -> None:
        if peer.number == 1:
            peer.refuse("500 Oops")
        else:
            peer.serve()

    with RawServer(script) as server:
        chat = FluxbaseAIChat(server.url)
        with pytest.raises(FluxbaseChatError), chat:
            pass
        with chat:
            assert "You said: Hi" == chat.ask("support", "Hi").text
        assert [] == client_left()


def test_x02_while_connecting(client_left) -> None:
    """Disconnecting ends a connect in another thread without waiting for its deadline."""
    asked = Gate()

    def script(peer: Peer) -> None:
        peer.read_request()
        asked.open()
        peer.until_closed()

    with RawServer(script) as server:
        chat = FluxbaseAIChat(server.url, timeouts=Timeouts(connect=None))
        connecting = run(chat.connect)
        starting = run(chat.start_chat, "support")
        asked.wait()
        with within(0, 2):
            chat.disconnect()
        assert [] == client_left()
        for call in (connecting, starting):
            with pytest.raises(NotConnectedError):
                call.result()
        server.join()


def test_x02_connect_while_it_still_tells_its_end() -> None:
    """A connect behind a disconnect is not told the end of the opening before it."""
    told, telling, over = Gate(), Gate(), Gate()

    def stuck(peer: Peer) -> None:
        peer.read_request()
        over.wait()
        peer.until_closed()

    def second(peer: Peer) -> None:
        peer.read_request()
        told.open()
        over.wait()
        peer.serve()

    with RawServer(stuck, second) as server:
        chat = FluxbaseAIChat(server.url)
        first = run(chat.connect)
        server.wait_for(lambda: 1 == server.connections)
        opening = chat._session._opening
        fail = opening.fail

        def late(error: FluxbaseChatError) -> bool:
            telling.open()
            told.wait()
            return fail(error)

        opening.fail = late  # type: ignore[method-assign]
        leaving = run(chat.disconnect)
        telling.wait()
        again = run(chat.connect)
        leaving.result()
        with pytest.raises(NotConnectedError):
            first.result()
        over.open()
        again.result()
        assert "connected" == chat.state
        chat.disconnect()


def test_x02_while_the_threads_start() -> None:
    """A disconnect may come at any moment of a connect, also while its threads start."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with RawServer(Peer.serve) as server:
            for _ in range(400):
                chat = FluxbaseAIChat(server.url, on_event=lambda _: None)
                opening = counting(chat, "_open")
                connecting = run(chat.connect)
                opening()
                chat.disconnect()
                with contextlib.suppress(NotConnectedError):
                    connecting.result()
                assert "disconnected" == chat.state
    finally:
        sys.setswitchinterval(before)


@pytest.mark.parametrize("which", ["callbacks", "io"])
def test_x09_thread_cannot_be_started(which, monkeypatch) -> None:
    """Where no thread starts, at the exit or the system's limit, it is a ConnectError."""
    start = threading.Thread.start

    def refusing(thread: threading.Thread) -> None:
        if thread.name.startswith(f"fluxbase-aichat-{which}"):
            raise RuntimeError("can't start new thread")
        start(thread)

    with RawServer(Peer.serve) as server:
        chat = FluxbaseAIChat(server.url)
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refusing)
            with pytest.raises(ConnectError) as caught:
                chat.connect()
            with pytest.raises(ConnectError):
                chat.ask("support", "Hi")
        assert isinstance(caught.value.__cause__, RuntimeError)
        assert "You said: Hi" == chat.ask("support", "Hi").text
        chat.disconnect()


# -- X04, X13 -------------------------------------------------------------------------------


@pytest.mark.parametrize("timeout", [None, 0.3])
def test_x04_write_is_blocked(timeout, client_left) -> None:
    """A server that reads nothing holds up neither a disconnect nor a cancel."""
    asked, over = Gate(), Gate()

    def script(peer: Peer) -> None:
        peer.accept()
        peer.start(CID)
        peer.read_exactly(2)
        asked.open()
        over.wait()

    with RawServer(script) as server:
        chat = FluxbaseAIChat(server.url)
        turn = chat.conversation("support").send("x" * 20_000_000)
        asked.wait()
        assert not turn.done
        with within(0, 2):
            chat.disconnect(timeout=timeout)
        left = client_left()
        over.open()
        with pytest.raises(NotConnectedError):
            turn.result()
    assert [] == left


FAULTS: list[Callable[[Peer], object]] = [
    lambda peer: peer.refuse("500 Oops"),
    lambda peer: peer.rst(),
    lambda peer: peer.accept(token=None),
    lambda peer: peer.accept(then=b"\xff\xff"),
    lambda peer: (peer.accept(), peer.start(CID), peer.message(), peer.rst()),
    lambda peer: (peer.accept(), peer.start(CID), peer.message(), peer.send_text("junk")),
    lambda peer: (peer.accept(), peer.recv_json(), peer.close_frame(1011, b"oops")),
]


def test_x13_many_cycles() -> None:
    """After 500 connections, half of them with faults, no thread and no descriptor is left."""

    def script(peer: Peer) -> None:
        if peer.number % 2:
            FAULTS[peer.number // 2 % len(FAULTS)](peer)
        else:
            peer.serve()

    with RawServer(script) as server:
        before = len(descriptors())
        threads = set(threading.enumerate())
        whole = 0
        while server.connections < 500:
            with (
                contextlib.suppress(FluxbaseChatError),
                FluxbaseAIChat(server.url, reconnect_delay=0.001) as chat,
            ):
                whole += chat.ask("support", "Hi").text == "You said: Hi"
        assert 200 < whole
        # The server's threads as well: the last connections may just be ending there.
        while left := set(threading.enumerate()) - threads:
            for thread in left:
                join(thread, WAIT)
                assert not thread.is_alive()
        assert before >= len(descriptors())
