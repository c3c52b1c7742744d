"""Limits: what a hostile or broken server can make a client keep, wait for or do has an end."""

from __future__ import annotations

import json
import socket
import ssl
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import trustme
from clocks import FakeClock
from helpers import Heard, run
from servers import (
    BINARY,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    WAIT,
    Gate,
    Peer,
    RawServer,
    accept_token,
    content,
    done,
    frame,
    text,
)

from fluxbase_aichat import FluxbaseAIChat, Limits, _transport
from fluxbase_aichat._deadline import Deadline
from fluxbase_aichat._net import Waker
from fluxbase_aichat._transport import Transport
from fluxbase_aichat.config import Settings
from fluxbase_aichat.errors import (
    ChatTimeoutError,
    ConnectionLostError,
    NotConnectedError,
    RemoteProtocolError,
)

CID = "c-1"
LIMIT = 70_000  # its frames need 64 bits for their length


class Clock:
    """Seconds that a test sets."""

    now = 0.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now


class Wire:
    """A transport on one end of a socket pair; a test has the other end."""

    def __init__(self, limit: int = LIMIT) -> None:
        settings = Settings(endpoint="ws://127.0.0.1", limits=Limits(message_bytes=limit))
        self.ours, self.theirs = socket.socketpair()
        self.theirs.settimeout(WAIT)
        self.ours.setblocking(False)
        self.ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        self.clock = Clock()
        self._waker = Waker()
        answering = run(self._accept)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_transport, "open_socket", lambda *_: self.ours)
            self.transport = Transport.open(settings, None, Deadline(WAIT), self._waker, self.clock)
        answering.result()

    def _accept(self) -> None:
        request = b""
        while not request.endswith(b"\r\n\r\n"):
            request += self.theirs.recv(65536)
        (key,) = (
            line.partition(b": ")[2]
            for line in request.split(b"\r\n")
            if line.startswith(b"Sec-WebSocket-Key: ")
        )
        head = "HTTP/1.1 101 OK\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        token = accept_token(key.decode())
        self.theirs.sendall(f"{head}Sec-WebSocket-Accept: {token}\r\n\r\n".encode())

    def feed(self, *pieces: bytes) -> list[bytes]:
        """Write each piece and read behind each; return the payloads that came out."""
        payloads = []
        for piece in pieces:
            self.theirs.sendall(piece)
            payloads += self.transport.receive()
        return payloads

    def take(self) -> bytes:
        """Read all that the transport has written so far."""
        self.theirs.setblocking(False)
        parts = []
        try:
            while part := self.theirs.recv(1 << 20):
                parts.append(part)
        except BlockingIOError:
            pass
        self.theirs.settimeout(WAIT)
        return b"".join(parts)

    def close(self) -> None:
        """Free all of it."""
        self.transport.close()
        self._waker.close()
        self.theirs.close()


@pytest.fixture
def wire() -> Iterator[Wire]:
    """Give a transport without a server."""
    wire = Wire()
    yield wire
    wire.close()


# -- the size of a message ------------------------------------------------------------------


def sized(size: int) -> bytes:
    """Return a delta whose message has so many bytes."""
    message = json.dumps(content(CID, "x" * (size - len(json.dumps(content(CID, "")))))).encode()
    assert size == len(message)
    return message


def fragments(payload: bytes) -> bytes:
    """Return a message in pieces, with a ping among them."""
    cuts = [payload[:1], payload[1:60_000], payload[60_000:-1], payload[-1:]]
    frames = [
        frame(CONTINUATION if n else TEXT, part, fin=n == len(cuts) - 1)
        for n, part in enumerate(cuts)
    ]
    return frame(PING, b"in the midst").join(frames)


def masked(payload: bytes) -> bytes:
    """Return a frame masked as no server should, with a mask that changes nothing."""
    plain = frame(TEXT, payload)
    head = plain[: len(plain) - len(payload)]
    return bytes([head[0], head[1] | 0x80]) + head[2:] + bytes(4) + payload


FORMS = {
    "one frame": text,
    "fragments": fragments,
    "binary": lambda payload: frame(BINARY, payload),
    "masked": masked,
}


@pytest.fixture(scope="module")
def contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Give the contexts of a server and of a client that trusts it."""
    authority = trustme.CA()
    theirs, ours = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(theirs)
    authority.configure_trust(ours)
    return theirs, ours


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("more", [0, 1])
def test_message_bytes(form, tls, more, contexts) -> None:
    """A message of the limit is taken; with one byte more it fails its turn, in every form."""

    def script(peer: Peer) -> None:
        peer.accept()
        peer.start(CID)
        peer.message()
        peer.send_raw(form(sized(LIMIT + more)))
        peer.send_raw(b"" if more else text(done(CID)))
        # What is left unread then resets the connection, so a 1009 may not be seen here.
        peer.until_closed()

    theirs, ours = contexts if tls else (None, None)
    with RawServer(script, Peer.serve, context=theirs) as server:
        chat = FluxbaseAIChat(
            server.url, limits=Limits(message_bytes=LIMIT), ssl_context=ours, reconnect_delay=0.01
        )
        with chat:
            turn = chat.conversation("support").send("Hi")
            if more:
                with pytest.raises(RemoteProtocolError, match="larger than 70,000 bytes"):
                    turn.result()
                assert "You said: on" == chat.ask("support", "on").text
            else:
                assert {"x"} == set(turn.result().text)


@pytest.mark.parametrize("opcode", [TEXT, BINARY, CONTINUATION, PING, 0x3])
@pytest.mark.parametrize("length", [LIMIT + 1, 1 << 40, (1 << 64) - 1])
def test_announced_length(opcode, length, wire) -> None:
    """What a head announces is refused at once, whatever frame it is; nothing is kept."""
    assert [] == wire.feed(frame(opcode, b"{", length=length))
    assert isinstance(wire.transport.end, RemoteProtocolError)
    assert not wire.transport.unread
    wire.transport.flush()
    assert (1009).to_bytes(2) == unmasked(wire.take())[0][1]


def unmasked(data: bytes) -> list[tuple[int, bytes]]:
    """Return the opcodes and payloads of a client's short frames."""
    frames = []
    while data:
        size = data[1] & 0x7F
        mask, payload = data[2:6], data[6 : 6 + size]
        frames.append((data[0] & 0x0F, bytes(b ^ mask[n % 4] for n, b in enumerate(payload))))
        data = data[6 + size :]
    return frames


@pytest.mark.parametrize("size", [0, 1])
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_fragments(size, tls, contexts) -> None:
    """A message may have 4,096 fragments, and not one more."""
    message = json.dumps(content(CID, "x" * (4000 if size else 1))).encode()
    head = b"" if size else frame(TEXT, message, fin=False)
    parts = [message[n : n + 1] for n in range(len(message))] if size else []
    parts += [b""] * (4096 - len(parts) - (0 if size else 1))
    whole = head + b"".join(
        frame(CONTINUATION if n or head else TEXT, part, fin=n == len(parts) - 1)
        for n, part in enumerate(parts)
    )
    endless = frame(TEXT, fin=False) + frame(CONTINUATION, fin=False) * 4096

    def script(peer: Peer) -> None:
        peer.accept()
        peer.start(CID)
        peer.message()
        peer.send_raw(whole + text(done(CID)))
        peer.message()
        peer.send_raw(endless)
        peer.until_closed()
        assert 1009 == peer.close_code

    theirs, ours = contexts if tls else (None, None)
    with (
        RawServer(script, Peer.serve, context=theirs) as server,
        FluxbaseAIChat(server.url, ssl_context=ours, reconnect_delay=0.01) as chat,
    ):
        talk = chat.conversation("support")
        assert "x" * (4000 if size else 1) == talk.ask("Hi").text
        with pytest.raises(RemoteProtocolError, match="4,096 fragments"):
            talk.ask("again")
        server.join()


def test_frame_in_single_bytes_costs_its_length(wire, monkeypatch) -> None:
    """A fragment that comes in single bytes is looked at when it is whole, and not before."""
    looks = []
    library = wire.transport._by_library
    monkeypatch.setattr(
        wire.transport, "_by_library", lambda *args: (looks.append(1), library(*args))
    )
    data = frame(TEXT, b"x" * 5000, fin=False) + frame(CONTINUATION, b"y")
    assert [b"x" * 5000 + b"y"] == wire.feed(*(data[n : n + 1] for n in range(len(data))))
    assert 2 == len(looks)


# -- the size of an answer ------------------------------------------------------------------


def row(size: int) -> dict[str, Any]:
    """Return a query result with so many bytes in its row."""
    return {
        "type": "query_result",
        "conversation_id": CID,
        "query": "SELECT 1",
        "row_count": 1,
        "data": [{"text": "x" * size}],
    }


@pytest.mark.parametrize("kind", ["deltas", "rows"])
@pytest.mark.parametrize("more", [0, 1])
def test_turn_bytes(kind, more) -> None:
    """An answer of the limit is whole; one byte more ends its turn, and only that."""
    messages = [row(900), row(100)] if kind == "rows" else [content(CID, "x" * 400)] * 5
    limit = sum(len(json.dumps(message)) for message in messages) - more
    asked = Gate()

    def script(peer: Peer) -> None:
        peer.accept()
        peer.start(CID)
        peer.message()
        peer.send_text(*messages)
        if not more:
            asked.wait()
            peer.send_text(done(CID))
        peer.until_closed()

    heard = Heard()
    with (
        RawServer(script, Peer.serve) as server,
        FluxbaseAIChat(server.url, limits=Limits(turn_bytes=limit), on_error=heard) as chat,
    ):
        turn = chat.conversation("support").send("Hi")
        if more:
            with pytest.raises(RemoteProtocolError, match="the answer is larger than") as caught:
                turn.result()
            assert caught.value.sent is True
            assert "You said: on" == chat.ask("support", "on").text
            assert [CID] == [cid for _, _, cid in heard.items]
        else:
            events = iter(turn)
            for _ in messages:
                next(events)
            asked.open()
            assert turn.result().text == ("" if kind == "rows" else "x" * 2000)


# -- a server that reads nothing ------------------------------------------------------------


def when_waiting(chat: FluxbaseAIChat, holds: Callable[[Transport], bool]) -> Gate:
    """Return a gate that opens when the I/O thread waits again and this holds."""
    gate = Gate()
    transport = chat._session._current._transport
    wait = transport.wait

    def waits(*args: Any, **options: Any) -> None:
        if holds(transport):
            gate.open()
        wait(*args, **options)

    transport.wait = waits
    return gate


def test_write_stall(wire) -> None:
    """A peer that takes no byte for 10 s is gone; until then its connection is kept."""
    wire.transport.send(b"x" * 1_000_000)
    for now, over in [(0, False), (5, False), (9.99, False), (10, True)]:
        wire.clock.now = now
        wire.transport.flush()
        assert wire.transport.unsent
        assert over == isinstance(wire.transport.end, ConnectionLostError), f"at {now} s"
    assert "takes nothing for 10 s" in str(wire.transport.end)


def test_write_that_crawls(wire) -> None:
    """A peer that takes a little now and then is slow, not gone; all arrives in the end."""
    payload = bytes(1_000_000)
    wire.transport.send(payload)
    came = 0
    while wire.transport.unsent:
        wire.clock.now += 9.9
        wire.transport.flush()
        came += len(wire.take())
        assert wire.transport.end is None
    came += len(wire.take())
    assert len(payload) + 14 == came


def test_stall_begins_anew(wire) -> None:
    """The time counts from when the peer took something last, not from the first stall."""
    wire.transport.send(b"x" * 1_000_000)
    wire.transport.flush()
    wire.clock.now = 9
    wire.take()
    wire.transport.flush()
    wire.clock.now = 18.9
    wire.transport.flush()
    assert wire.transport.end is None
    wire.clock.now = 19
    wire.transport.flush()
    assert isinstance(wire.transport.end, ConnectionLostError)


def test_server_that_never_reads() -> None:
    """What could not be written within 10 s goes over the next connection, once."""
    deaf, over = Gate(), Gate()
    words = "x" * 8_000_000

    def first(peer: Peer) -> None:
        peer.accept()
        peer.start(CID)
        deaf.open()
        over.wait()

    with RawServer(first, Peer.serve) as server:
        chat = FluxbaseAIChat(server.url, reconnect_delay=0.0)
        clock = FakeClock().drive(chat)
        with chat:
            talk = chat.conversation("support")
            talk.start()
            deaf.wait()
            stalled = when_waiting(chat, lambda transport: transport._stalled_since is not None)
            turn = talk.send(words)
            stalled.wait()
            clock.advance(10)
            assert f"You said: {words}" == turn.result(WAIT).text
            over.open()
        assert 2 == server.connections
        assert [2] == [n for n, message in server.received if message["type"] == "message"]


def test_server_that_reads_at_last_and_goes(monkeypatch) -> None:
    """A message that the last write has sent, after it was stuck, is not sent again."""
    deaf, over = Gate(), Gate()
    words = "x" * 8_000_000
    write = Transport.flush

    def flush(transport: Transport) -> None:
        write(transport)
        while transport.end is not None and transport.unsent:
            write(transport)  # the server reads now

    monkeypatch.setattr(Transport, "flush", flush)

    def first(peer: Peer) -> None:
        peer.accept()
        peer.start(CID)
        deaf.open()
        over.wait()
        peer.close_frame(1001)
        assert words == peer.message()["content"]

    with RawServer(first, Peer.serve) as server:
        chat = FluxbaseAIChat(server.url, reconnect_delay=0.0)
        with chat:
            talk = chat.conversation("support")
            talk.start()
            deaf.wait()
            stalled = when_waiting(chat, lambda transport: transport._stalled_since is not None)
            turn = talk.send(words)
            stalled.wait()
            over.open()
            with pytest.raises(ConnectionLostError) as caught:
                turn.result(WAIT)
            assert caught.value.sent is True
            server.join(1)
        assert [1] == [n for n, message in server.received if message["type"] == "message"]


def test_disconnect_from_a_server_that_never_reads() -> None:
    """Whether a message that is stuck was sent, nobody can say."""
    over = Gate()

    def first(peer: Peer) -> None:
        peer.accept()
        peer.start(CID)
        over.wait()

    with RawServer(first) as server:
        chat = FluxbaseAIChat(server.url)
        talk = chat.conversation("support")
        talk.start()
        stalled = when_waiting(chat, lambda transport: transport._stalled_since is not None)
        turn = talk.send("x" * 8_000_000)
        stalled.wait()
        chat.disconnect()
        over.open()
        with pytest.raises(NotConnectedError) as caught:
            turn.result()
        assert caught.value.sent is None


# -- pings ----------------------------------------------------------------------------------


def test_ping_flood_of_a_server_that_never_reads(wire) -> None:
    """Ten thousand pings, each in a read of its own, leave one pong to be sent."""
    wire.transport.send(b"x" * 1_000_000)
    for n in range(10_000):
        wire.feed(frame(PING, b"%d" % n))
        wire.transport.flush()
        assert 1 == len(wire.transport._guard.outgoing)
    taken = b""
    while wire.transport.unsent:
        taken += wire.take()
        wire.transport.flush()
    taken += wire.take()
    assert [(PONG, b"9999")] == unmasked(taken[1_000_014:])


def test_pings_while_nothing_is_sent(wire) -> None:
    """A ping is answered at once when nothing else is being written."""
    for n in range(3):
        wire.feed(frame(PING, b"%d" % n))
        assert wire.transport.unsent
        wire.transport.flush()
        assert [(PONG, b"%d" % n)] == unmasked(wire.take())
        assert not wire.transport.unsent


def test_no_pong_behind_a_close_frame(wire) -> None:
    """Nothing follows our close frame."""
    wire.feed(frame(PING, b"late"))
    wire.transport.say_goodbye()
    wire.transport.say_goodbye(1002)
    wire.transport.flush()
    assert [(0x8, (1000).to_bytes(2))] == unmasked(wire.take())
    assert not wire.transport.unsent


# -- frames without an end ------------------------------------------------------------------

BEGUN = {
    "half a head": b"\x81",
    "half a message": b"\x81\x7e\x10\x00{",
    "half a fragment": b"\x01\x01{\x80\x7e\x10\x00x",
    "half a ping": b"\x89\x05p",
}


@pytest.mark.parametrize("begun", BEGUN.values(), ids=BEGUN.keys())
def test_frame_without_an_end_in_a_turn(begun) -> None:
    """A frame that is begun and not ended leaves the turn to its idle limit."""
    go = Gate()
    left = len(begun.removeprefix(b"\x01\x01{"))  # a whole fragment is the library's

    def script(peer: Peer) -> None:
        peer.accept()
        peer.start(CID)
        peer.message()
        peer.send_text(content(CID, "half"))
        go.wait()
        for at in range(len(begun)):
            peer.send_raw(begun[at : at + 1])
        peer.until_closed()

    with RawServer(script, Peer.serve) as server:
        chat = FluxbaseAIChat(server.url)
        clock = FakeClock().drive(chat)
        with chat:
            turn = chat.conversation("support").send("Hi")
            assert "half" == next(turn.text_stream)
            came = when_waiting(chat, lambda transport: transport.buffered == left)
            go.open()
            came.wait()
            clock.advance(301)
            with pytest.raises(ChatTimeoutError) as caught:
                turn.result(WAIT)
            assert "idle" == caught.value.phase
            assert "half" == caught.value.partial_text
            assert "You said: on" == chat.ask("support", "on").text


def test_frame_without_an_end_between_turns() -> None:
    """Between turns the keepalive gives such a connection up."""
    go = Gate()

    def script(peer: Peer) -> None:
        peer.accept()
        peer.start(CID)
        go.wait()
        peer.send_raw(BEGUN["half a message"])
        peer.recv_control()
        pinged.open()
        peer.until_closed()

    heard, pinged = Heard(), Gate()
    with RawServer(script, Peer.serve) as server:
        chat = FluxbaseAIChat(server.url, on_event=heard, reconnect_delay=0.0)
        clock = FakeClock().drive(chat)
        with chat:
            chat.start_chat("support")
            came = when_waiting(chat, lambda transport: transport.buffered == 5)
            go.open()
            came.wait()
            clock.advance(20)
            pinged.wait()
            clock.advance(20)
            heard.wait_for_type("reconnected")
            assert 2 == server.connections
