"""How long things live: dropped clients and turns, many connections, and what is left untouched."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import signal
import threading
import warnings
import weakref

import pytest
import websocket
from conftest import descriptors, join, running
from helpers import Heard
from scripts.process import Script
from servers import WAIT, Gate, Peer, RawServer, content, done, frame

from fluxbase_aichat import FluxbaseAIChat, Timeouts
from fluxbase_aichat._protocol import ChatProtocol
from fluxbase_aichat._telling import Telling
from fluxbase_aichat.config import RenewableToken
from fluxbase_aichat.errors import FluxbaseChatError

CID = "c-1"


def serve(peer: Peer) -> None:
    """Answer everything, until the client goes."""
    peer.serve(f"c-{peer.number}")


def stalling(asked: Gate):
    """Serve a turn that never ends."""

    def script(peer: Peer) -> None:
        peer.accept()
        peer.start(CID)
        peer.message()
        peer.send_text(content(CID, "One"))
        asked.open()
        peer.until_closed()

    return script


def gone(thing: weakref.ref) -> bool:
    """Whether it was collected, with its threads; cycles count as garbage."""
    gc.collect()
    # One of them may just be starting another.
    while left := list(filter(ours, threading.enumerate())):
        for thread in left:
            join(thread, WAIT)
            assert not thread.is_alive()
    gc.collect()
    return thing() is None


def ours(thread: threading.Thread) -> bool:
    """Whether the client has started it."""
    return thread.name.startswith("fluxbase-aichat")


# -- what nobody holds ----------------------------------------------------------------------


@pytest.mark.parametrize("state", ["new", "connected", "answered", "turn", "opening", "waiting"])
def test_dropped_client_is_collected_with_its_threads(state) -> None:
    """The connection of a client that nobody holds ends, whatever it was doing."""
    asked, closed = Gate(), Gate()

    def script(peer: Peer) -> None:
        if state == "opening":
            peer.read_request()
            asked.open()
        elif state == "waiting":
            peer.accept()
            peer.cut()
        elif state == "turn":
            stalling(asked)(peer)
        else:
            serve(peer)
        if state != "waiting":
            peer.until_closed()
        closed.open()

    lost = Heard()
    with RawServer(script) as server:
        chat = FluxbaseAIChat(
            server.url, on_event=lost, reconnect_delay=60, timeouts=Timeouts(close=60, connect=60)
        )
        session = weakref.ref(chat._session)
        if state == "connected":
            chat.connect()
        elif state == "answered":
            chat.ask("support", "Hi")
        elif state in ("turn", "opening"):
            chat.conversation("support").send("Hi")
            asked.wait()
        elif state == "waiting":
            with contextlib.suppress(FluxbaseChatError):
                chat.connect()
            lost.wait_for_type("reconnecting")
        del chat
        assert gone(session)
        if state != "new":
            closed.wait()


def test_dropped_client_whose_callbacks_hold_it() -> None:
    """An object that holds its client, and serves it, is a cycle like any other."""

    class Window:
        def __init__(self, url: str) -> None:
            self.chat = FluxbaseAIChat(
                url, self.token, on_content=self.show, on_event=lambda event: self
            )
            self.shown = Gate()

        def token(self) -> str:
            return "a-token"

        def show(self, _: str) -> None:
            self.shown.open()

    asked = Gate()
    with RawServer(stalling(asked)) as server:
        window = Window(server.url)
        window.chat.conversation("support").send("Hi")
        window.shown.wait()
        session = weakref.ref(window.chat._session)
        del window
        assert gone(session)


def test_dropped_client_whose_source_of_tokens_holds_it() -> None:
    """One that hears of what was refused keeps nothing alive either."""

    class Source(RenewableToken):
        def __init__(self, url: str) -> None:
            self.tokens = ["good", "bad"]
            self.chat = FluxbaseAIChat(url, token=self)

        def __call__(self) -> str:
            return self.tokens[-1]

        def refused(self, token: str) -> None:
            assert token == self.tokens.pop()

    def script(peer: Peer) -> None:
        peer.read_request()
        if peer.headers["authorization"] == "Bearer good":
            peer.serve()
        else:
            peer.refuse("401 Unauthorized")

    with RawServer(script) as server:
        source = Source(server.url)
        source.chat.connect()
        assert ["good"] == source.tokens
        session = weakref.ref(source.chat._session)
        del source
        assert gone(session)


@pytest.mark.parametrize(
    "lock", ["the session's", "the connection's", "that of one whose turn was cancelled"]
)
@pytest.mark.parametrize("says", ["disconnect", "cancel"])
def test_x09_collected_in_the_middle_of_its_own_work(says, lock, monkeypatch) -> None:
    """A `__del__` that the collector runs on a client's own thread, under its lock, may call it."""
    finalized = Gate()

    class Window:
        def __init__(self, url: str) -> None:
            self.chat = FluxbaseAIChat(url, on_content=self.show)
            self.talk = self.chat.conversation("support")

        def show(self, _: str) -> None:
            pass

        def __del__(self) -> None:
            if says == "disconnect":
                self.chat.disconnect()
            else:
                self.talk.cancel()
            finalized.open()

    asked, dropped = Gate(), Gate()

    def script(peer: Peer) -> None:
        peer.accept()
        peer.start(CID)
        peer.message()
        asked.open()
        dropped.wait()
        peer.send_text(content(CID, "One"))
        peer.until_closed()

    of = Telling if lock == "the session's" else ChatProtocol
    name = "post" if lock == "the session's" else "receive"
    method = getattr(of, name)

    def collecting(*arguments: object, **options: object) -> object:
        if dropped.is_open:
            gc.collect()
        return method(*arguments, **options)

    gc.disable()
    try:
        with RawServer(script) as server:
            window = Window(server.url)
            window.talk.send("Hi")
            asked.wait()
            if lock == "that of one whose turn was cancelled":
                window.talk.cancel()
            session = weakref.ref(window.chat._session)
            monkeypatch.setattr(of, name, collecting)
            del window
            dropped.open()
            finalized.wait()
            assert gone(session)
    finally:
        gc.enable()


def test_x09_collected_while_nothing_comes(monkeypatch) -> None:
    """What a `__del__` asks for on an idle connection's own thread waits for no message."""
    finalized = Gate()
    cancelling = ChatProtocol.cancelling.fget

    def collecting(protocol: ChatProtocol) -> bool:
        # The I/O thread asks for this under its connection's lock.
        inside = threading.current_thread().name.startswith("fluxbase-aichat-io")
        if inside and not finalized.is_open:
            finalized.open()
            chat.disconnect()
        return cancelling(protocol)

    with RawServer(serve) as server:
        chat = FluxbaseAIChat(server.url)
        chat.start_chat("support")
        monkeypatch.setattr(ChatProtocol, "cancelling", property(collecting))
        chat._session._current.wake()
        server.join()
        assert finalized.is_open
        assert "disconnected" == chat.state


@pytest.mark.parametrize("kind", ["turn", "conversation"])
def test_a_handle_keeps_its_client_alive(kind) -> None:
    """Who holds a turn or a conversation needs not hold the client as well."""
    go_on = Gate()

    def script(peer: Peer) -> None:
        peer.accept()
        peer.start(CID)
        peer.message()
        go_on.wait()
        peer.send_text(content(CID, "One"), done(CID))
        peer.until_closed()

    with RawServer(script) as server:
        conversation = FluxbaseAIChat(server.url).conversation("support")
        turn = conversation.send("Hi")
        session = weakref.ref(turn._session)
        if kind == "turn":
            del conversation
        gc.collect()
        go_on.open()
        assert "One" == turn.result().text
        if kind == "conversation":
            del turn
            gc.collect()
            assert session() is not None
            del conversation
        else:
            del turn
        assert gone(session)


def test_dropped_turn_keeps_no_events() -> None:
    """A turn that nobody holds goes on for its callbacks, and collects nothing for iterators."""
    go_on, heard = Gate(), Heard()

    def script(peer: Peer) -> None:
        peer.accept()
        peer.start(CID)
        peer.message()
        peer.send_text(content(CID, "One"))
        go_on.wait()
        for _ in range(100):
            peer.send_text(content(CID, "x"))
        peer.send_text(done(CID))
        peer.until_closed()

    with RawServer(script) as server, FluxbaseAIChat(server.url, on_content=heard) as chat:
        turn = chat.conversation("support").send("Hi")
        next(turn.text_stream)
        answer, dropped = turn._answer, weakref.ref(turn)
        del turn
        gc.collect()
        assert dropped() is None
        go_on.open()
        heard.wait_for(lambda items: 101 == len(items))
        assert chat.wait_idle(5)
        assert [] == [item for item in answer._log if getattr(item, "deltas", None)]


def test_dropped_conversation_is_collected() -> None:
    """The client keeps what it needs to start it again, and not the handle or its turns."""
    with RawServer(serve) as server, FluxbaseAIChat(server.url) as chat:
        conversation = chat.conversation("support")
        turn = conversation.send("Hi")
        text, cid = turn.result().text, conversation.id
        answer = weakref.ref(turn._answer)
        handles = weakref.ref(conversation), weakref.ref(turn)
        del conversation, turn
        gc.collect()
        assert [None, None, None] == [thing() for thing in (answer, *handles)]
        assert text == chat.get_accumulated_content(cid)


def test_no_growth_over_dropped_clients() -> None:
    """200 clients, each used and dropped, leave no thread, descriptor or object behind."""
    with RawServer(serve) as server:
        for count in range(200):
            chat = FluxbaseAIChat(server.url, on_content=lambda delta: None)
            chat.ask("support", "Hi")
            if count == 20:
                before = _left(server)
        del chat
        after = _left(server)
    assert after <= before


def _left(server: RawServer) -> int:
    """How many sessions there are that were not collected, once threads have ended."""
    running({t for t in threading.enumerate() if not ours(t)})
    gc.collect()
    return sum(type(thing).__name__ == "Session" for thing in gc.get_objects())


# -- X13 ------------------------------------------------------------------------------------


def test_x13_500_connections() -> None:
    """500 connections, half of them with a fault, leave no thread and no descriptor."""

    def script(peer: Peer) -> None:
        match calls % 12:
            case 1:
                peer.cut()
            case 3:
                peer.refuse("401 Unauthorized")
            case 5:
                peer.accept()
                peer.recv_json()
                peer.rst()
            case 7:
                peer.accept()
                peer.start(CID)
                peer.message()
                peer.send_raw(frame(0x1, b'{"type": "con', length=90))
                peer.cut()
            case 9:
                peer.accept()
                peer.start(CID)
                peer.message()
                peer.send_text("no JSON")
                peer.until_closed()
            case 11:
                peer.accept()
                peer.start(CID)
                peer.message()
                peer.rst()
            case _:
                serve(peer)

    calls = failed = 0
    threads, files = set(threading.enumerate()), len(descriptors())
    with RawServer(script) as server:
        for calls in range(500):  # noqa: B007 - the script looks at it
            chat = FluxbaseAIChat(server.url, reconnect_attempts=0, on_event=lambda event: None)
            try:
                chat.ask("support", "Hi")
            except FluxbaseChatError:
                failed += 1
            chat.disconnect()
    for thread in set(threading.enumerate()) - threads:
        join(thread, WAIT)  # of a connection that has ended by itself, just before
    assert threads == set(threading.enumerate())
    assert files == len(descriptors())
    assert 250 == failed


# -- promise 10 -----------------------------------------------------------------------------


def test_import_and_use_touch_nothing_of_the_process() -> None:
    """No thread, socket, signal handler, logging, cookie or environment variable is theirs."""
    with RawServer(serve) as server, Script("untouched.py", server.url) as script:
        assert (0, "untouched\n", "") == script.end()


def test_no_global_state_after_a_chat(caplog) -> None:
    """What this process has set stays as it is, through a chat and its end."""

    def state():
        jar = websocket._handshake.CookieJar.jar
        return {
            "signals": [signal.getsignal(number) for number in signal.valid_signals()],
            "loggers": (logging.root.level, list(logging.root.handlers)),
            "environment": dict(os.environ),
            "cookies": {host: str(cookie) for host, cookie in jar.items()},
            "warnings": list(warnings.filters),
            "timeout": websocket.getdefaulttimeout(),
            "trace": websocket.isEnabledForTrace(),
            "hooks": (threading.excepthook, threading.gettrace(), threading.getprofile()),
        }

    def script(peer: Peer) -> None:
        peer.accept(headers={"Set-Cookie": "theirs=1; Domain=127.0.0.1"})
        serve(peer)

    before = state()
    with RawServer(script) as server, FluxbaseAIChat(server.url, on_content=len) as chat:
        chat.ask("support", "Hi")
        assert before == state()
    assert before == state()
