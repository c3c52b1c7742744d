"""Faults of frames (F): what one message is does not depend on how its bytes come."""

from __future__ import annotations

import itertools
import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import trustme
from clocks import FakeClock
from helpers import Heard, run, spy
from hypothesis import given
from hypothesis import strategies as st
from servers import (
    BINARY,
    CLOSE,
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
from fluxbase_aichat._wire import ContentRun, Decoder
from fluxbase_aichat.config import Settings
from fluxbase_aichat.errors import (
    ChatTimeoutError,
    ConnectionLostError,
    FluxbaseChatError,
    RemoteProtocolError,
)

CID = "c-1"
TURN: list[dict[str, Any]] = [
    {"type": "progress", "conversation_id": CID, "step": "thinking", "message": "Thinking..."},
    content(CID, "Grüße, "),
    content(CID, "日本語 🎉"),
    content(CID, ""),
    {
        "type": "query_result",
        "conversation_id": CID,
        "query": "SELECT 1",
        "summary": "Query returned 1 row(s). …",
        "row_count": 1,
        "data": [{"n": 1, "text": "x" * 150}],
    },
    {**content(CID, "with more"), "message_id": "m-1"},
    {"type": "news", "conversation_id": CID, "list": [1, 2.5, None]},
    done(CID, {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}),
]


class Wire:
    """A transport on one end of a socket pair; a test writes to the other end."""

    def __init__(self) -> None:
        settings = Settings(endpoint="ws://127.0.0.1")
        ours, self.theirs = socket.socketpair()
        self.theirs.settimeout(WAIT)
        ours.setblocking(False)
        self._waker = Waker()
        answering = run(self._accept)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_transport, "open_socket", lambda *_: ours)
            self.transport = Transport.open(
                settings, None, Deadline(WAIT), self._waker, lambda: 0.0
            )
        answering.result()

    def _accept(self) -> None:
        request = b""
        while not request.endswith(b"\r\n\r\n"):
            request += self.theirs.recv(65536)
        key = next(
            line.partition(b":")[2].strip()
            for line in request.split(b"\r\n")
            if line.lower().startswith(b"sec-websocket-key:")
        )
        head = "HTTP/1.1 101 OK\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        token = accept_token(key.decode())
        self.theirs.sendall(f"{head}Sec-WebSocket-Accept: {token}\r\n\r\n".encode())

    def feed(self, *pieces: bytes) -> list[bytes]:
        """Write each piece, read behind each; return the payloads that came out."""
        payloads = []
        for piece in pieces:
            self.theirs.sendall(piece)
            payloads += self.transport.receive()
        while self.transport.unread and self.transport.end is None:
            payloads += self.transport.receive()
        return payloads

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


def flat(items: list[Any]) -> list[Any]:
    """Return the events that items stand for: how deltas are grouped is no part of the result."""
    return [e for i in items for e in (i.events() if isinstance(i, ContentRun) else [i])]


# -- F01 ------------------------------------------------------------------------------------

STREAMS = {
    "short": frame(TEXT, b'{"a":1}'),
    "empty": frame(TEXT),
    "125 bytes": frame(TEXT, b"x" * 125),
    "126 bytes": frame(TEXT, b"x" * 126),
    "three at once": frame(TEXT, b"one") + frame(TEXT, b"two" * 50) + frame(TEXT, b"three"),
    "fragments": frame(TEXT, b"on", fin=False)
    + frame(CONTINUATION, fin=False)
    + frame(CONTINUATION, b"e")
    + frame(TEXT, b"two"),
    "control frames between fragments": frame(TEXT, b"on", fin=False)
    + frame(PING, b"ping")
    + frame(CONTINUATION, b"e", fin=False)
    + frame(PONG, b"pong")
    + frame(CONTINUATION)
    + frame(PING)
    + frame(TEXT, b"two"),
    "binary": frame(BINARY, b'{"a":1}') + frame(TEXT, b"{}"),
    "masked by the server": b"\x81\x83\x01\x02\x03\x04"
    + bytes([0x61 ^ 1, 0x62 ^ 2, 0x63 ^ 3])
    + frame(TEXT, b"{}"),
    "64-bit length that fits in 7": b"\x81\x7f" + (3).to_bytes(8) + b"abc" + frame(TEXT, b"{}"),
}


@pytest.mark.parametrize("stream", STREAMS.values(), ids=STREAMS.keys())
def test_f01_split_at_every_byte(wire, stream) -> None:
    """Frames cut in two anywhere, or into single bytes, give the payloads of whole ones."""
    whole = wire.feed(stream)
    assert wire.transport.end is None
    assert whole
    for cut in range(1, len(stream)):
        assert whole == wire.feed(stream[:cut], stream[cut:]), f"cut at {cut}"
    assert whole == wire.feed(*(stream[i : i + 1] for i in range(len(stream))))
    assert wire.transport.end is None


def test_f01_long_frame_split_in_its_head(wire) -> None:
    """A frame with a 64-bit length may be cut in its head and anywhere in its payload."""
    payload = bytes(range(256)) * 300
    stream = frame(TEXT, payload)
    for cut in [*range(1, 15), 65536, len(stream) - 1]:
        assert [payload] == wire.feed(stream[:cut], stream[cut:])


@given(
    st.lists(st.sampled_from([*STREAMS.values(), *map(text, TURN)]), min_size=1, max_size=6),
    st.data(),
)
def test_f01_any_pieces(streams, data) -> None:
    """Any row of frames in any pieces gives the payloads of each frame alone."""
    stream = b"".join(streams)
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=8).map(sorted))
    wire = Wire()
    try:
        expected = [payload for one in streams for payload in wire.feed(one)]
        edges = [0, *cuts, len(stream)]
        pieces = [stream[a:b] for a, b in itertools.pairwise(edges) if a < b]
        assert expected == wire.feed(*pieces)
    finally:
        wire.close()


def test_f01_batches_do_not_matter_to_the_decoder() -> None:
    """However a turn's messages are split into batches, they are the same events."""
    payloads = [json.dumps(message).encode() for message in TURN]
    expected = flat(Decoder().decode(payloads))
    assert TURN == [event.raw for event in expected]
    for cut in range(1, len(payloads)):
        decoder = Decoder()
        items = decoder.decode(payloads[:cut]) + decoder.decode(payloads[cut:])
        assert expected == flat(items)
    decoder = Decoder()
    assert expected == flat([i for payload in payloads for i in decoder.decode([payload])])


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 1000])
def test_f01_reads_of_any_size(size, monkeypatch) -> None:
    """A client whose every read gives so many bytes hears the same from beginning to end."""
    monkeypatch.setattr(_transport, "_READ_BYTES", size)

    def script(peer: Peer) -> None:
        peer.accept()
        peer.start(CID)
        peer.message()
        peer.send_text(*TURN)
        peer.until_closed()

    heard, deltas = Heard(), Heard()
    with (
        RawServer(script) as server,
        FluxbaseAIChat(server.url, on_event=heard, on_content=deltas) as chat,
    ):
        turn = chat.conversation("support").send("Hi")
        assert TURN == [event.raw for event in turn]
        assert turn.wait(WAIT)
    assert TURN == [event.raw for event in heard.items if event.conversation_id][1:]
    assert [m["delta"] for m in TURN if m["type"] == "content"] == [d for d, _ in deltas.items]
    assert "Grüße, 日本語 🎉with more" == turn.result().text


# -- F03 ------------------------------------------------------------------------------------

LIMIT = 1000


def sized(size: int) -> bytes:
    """Return a delta whose message has so many bytes."""
    empty = json.dumps(content(CID, "")).encode()
    message = json.dumps(content(CID, "x" * (size - len(empty)))).encode()
    assert size == len(message)
    return message


def fragmented(payload: bytes, *, opcode: int = TEXT) -> bytes:
    """Return a message in four fragments."""
    parts = [payload[:1], payload[1:500], payload[500:-1], payload[-1:]]
    return b"".join(
        frame(CONTINUATION if n else opcode, part, fin=n == len(parts) - 1)
        for n, part in enumerate(parts)
    )


FORMS = {
    "one frame": text,
    "fragments": fragmented,
    "a binary frame": lambda payload: frame(BINARY, payload),
    "behind a ping": lambda payload: frame(PING) + text(payload),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_f03_message_of_the_limit(form) -> None:
    """A message as long as the limit is accepted, in one frame and in fragments."""

    def script(peer: Peer) -> None:
        peer.accept()
        peer.start(CID)
        peer.message()
        peer.send_raw(form(sized(LIMIT)))
        peer.send_text(done(CID))
        peer.until_closed()

    with (
        RawServer(script) as server,
        FluxbaseAIChat(server.url, limits=Limits(message_bytes=LIMIT)) as chat,
    ):
        assert LIMIT - len(sized(60)) + 60 - len(json.dumps(content(CID, ""))) == len(
            chat.ask("support", "Hi").text
        )


def too_big(form: Any) -> None:
    """Check how a client ends a turn in which such bytes come."""
    closed = Gate()

    def script(peer: Peer) -> None:
        peer.accept()
        peer.start(CID)
        peer.message()
        peer.send_raw(form)
        peer.until_closed()
        assert 1009 == peer.close_code
        closed.open()

    heard = Heard()
    with (
        RawServer(script, Peer.serve) as server,
        FluxbaseAIChat(
            server.url,
            limits=Limits(message_bytes=LIMIT),
            on_event=heard,
            on_error=heard,
            reconnect_delay=0.01,
        ) as chat,
    ):
        turn = chat.conversation("support").send("Hi")
        with pytest.raises(RemoteProtocolError, match="larger than 1,000 bytes") as caught:
            turn.result()
        assert caught.value.sent is True
        closed.wait()
        assert "You said: again" == chat.ask("support", "again").text


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_f03_message_beyond_the_limit(form) -> None:
    """One byte more fails the turn and closes with 1009; what is asked next goes on."""
    too_big(form(sized(LIMIT + 1)))


@pytest.mark.parametrize("length", [LIMIT + 1, 1 << 40, (1 << 63) - 1])
@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_f03_head_of_a_message_beyond_the_limit(length, opcode) -> None:
    """What a frame's head announces is refused before its payload comes."""
    too_big(frame(opcode, b"{", length=length))


def test_f03_fragments_that_add_up() -> None:
    """Fragments within the limit are refused when their sum is beyond it, the last not seen."""
    too_big(
        frame(TEXT, b"x" * 600, fin=False)
        + frame(PING)
        + frame(CONTINUATION, b"x" * 401, fin=False)
    )


# -- F04 ------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1])
def test_f04_endless_fragments(wire, size) -> None:
    """A message of more than 4,096 fragments is refused, also of empty ones."""
    middle = frame(CONTINUATION, b"x" * size, fin=False)
    first = frame(TEXT, b"x" * size, fin=False)
    assert ["x" * 4096 * size] == [
        p.decode() for p in wire.feed(first + middle * 4094 + frame(CONTINUATION, b"x" * size))
    ]
    assert wire.transport.end is None
    assert [] == wire.feed(first + middle * 4095)
    assert wire.transport.end is None
    assert [] == wire.feed(middle)
    assert isinstance(wire.transport.end, RemoteProtocolError)


# -- F06 ------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", ["fragments", "one frame"])
def test_f06_woken_in_mid_frame(cut) -> None:
    """An I/O thread that is woken a hundred times between a frame's bytes loses none."""
    payload = json.dumps(content(CID, "".join(map(chr, range(33, 500))))).encode()
    data = text(payload) if cut == "one frame" else fragmented(payload)
    asked, over = Gate(), Gate()

    def script(peer: Peer) -> None:
        peer.accept()
        peer.start(CID)
        peer.message()
        asked.open()
        over.wait()
        peer.send_text(done(CID))
        peer.until_closed()

    looked = threading.Semaphore(0)
    with RawServer(script) as server, FluxbaseAIChat(server.url) as chat:
        turn = chat.conversation("support").send("Hi")
        asked.wait()
        connection = chat._session._current
        spy(connection._waker, "drain", looked.release)
        step = len(data) // 100 + 1
        for at in range(0, len(data), step):
            connection._waker.wake()
            server.peer().send_raw(data[at : at + step])
            connection._waker.wake()
            assert looked.acquire(timeout=WAIT)
        over.open()
        assert "".join(map(chr, range(33, 500))) == turn.result().text


# -- F07 ------------------------------------------------------------------------------------

BAD_UTF8 = {
    "invalid byte": b"\xff",
    "lone continuation": b"\x80",
    "truncated tail": b"\xe6\x97",
    "overlong": b"\xc0\xaf",
    "a surrogate": b"\xed\xa0\x80",
    "beyond Unicode": b"\xf4\x90\x80\x80",
}


@pytest.mark.parametrize("form", [text, fragmented], ids=["one frame", "fragments"])
@pytest.mark.parametrize("bad", BAD_UTF8.values(), ids=BAD_UTF8.keys())
@pytest.mark.parametrize("where", ["in the middle", "at the end"])
def test_f07_invalid_utf8(form, bad, where) -> None:
    """What is not UTF-8 closes with 1007 and fails the turn, without quoting what came."""
    message = json.dumps(content(CID, "s3cret" + "x" * 600)).encode()
    payload = message[:-2] + bad + (message[-2:] if where == "in the middle" else b"")
    closed = Gate()

    def script(peer: Peer) -> None:
        peer.accept()
        peer.start(CID)
        peer.message()
        peer.send_raw(form(payload))
        peer.until_closed()
        assert 1007 == peer.close_code
        closed.open()

    with RawServer(script) as server, FluxbaseAIChat(server.url) as chat:
        turn = chat.conversation("support").send("Hi")
        with pytest.raises(RemoteProtocolError, match="UTF-8") as caught:
            turn.result()
        closed.wait()
    problem: BaseException | None = caught.value
    while problem is not None:
        assert "s3cret" not in f"{problem} {problem!r}"
        problem = problem.__cause__ or problem.__context__


def test_f07_character_across_fragments() -> None:
    """A character whose bytes are in two fragments is whole."""
    payload = json.dumps(content(CID, "日本"), ensure_ascii=False).encode()
    middle = payload.index("日".encode()) + 1

    def script(peer: Peer) -> None:
        peer.accept()
        peer.start(CID)
        peer.message()
        peer.send_frame(TEXT, payload[:middle], fin=False)
        peer.send_frame(CONTINUATION, payload[middle:])
        peer.send_text(done(CID))
        peer.until_closed()

    with RawServer(script) as server, FluxbaseAIChat(server.url) as chat:
        assert "日本" == chat.ask("support", "Hi").text


# -- F04, F09, F10, F11, F12, F14 -----------------------------------------------------------


def test_f04_empty_fragments_are_no_sign_of_life() -> None:
    """Empty fragments that come for ever do not keep a turn from its idle limit."""
    moved, fed = Gate(), Gate()

    def first(peer: Peer) -> None:
        peer.accept()
        peer.start(CID)
        peer.message()
        peer.send_text(content(CID, "half"))
        moved.wait()
        peer.send_raw(frame(TEXT, fin=False) + frame(CONTINUATION, fin=False) * 100)
        assert [] == peer.settle()
        fed.open()
        assert "cancel" == peer.recv_json()["type"]

    with RawServer(first, Peer.serve) as server:
        chat = FluxbaseAIChat(server.url)
        clock = FakeClock().drive(chat)
        with chat:
            turn = chat.conversation("support").send("Hi")
            assert "half" == next(turn.text_stream)
            clock.advance(200)
            moved.open()
            fed.wait()
            clock.advance(101)
            with pytest.raises(ChatTimeoutError) as caught:
                turn.result()
            assert "idle" == caught.value.phase
            server.join()


def broken_by(data: bytes) -> tuple[FluxbaseChatError, int | None]:
    """Send these bytes in a turn; return how the turn failed, and the client's close code."""
    codes: list[int | None] = []

    def script(peer: Peer) -> None:
        peer.polite = False
        peer.accept()
        peer.start(CID)
        peer.message()
        peer.send_raw(text(content(CID, "half")) + data)
        peer.until_closed()
        codes.append(peer.close_code)

    heard, failed = Heard(), Heard()
    with (
        RawServer(script, Peer.serve) as server,
        FluxbaseAIChat(server.url, on_event=heard, on_error=failed, reconnect_delay=0.01) as chat,
    ):
        turn = chat.conversation("support").send("Hi")
        with pytest.raises(FluxbaseChatError) as caught:
            turn.result()
        server.join()
        assert (True, "half") == (caught.value.sent, caught.value.partial_text)
        assert "You said: again" == chat.ask("support", "again").text
        assert chat.wait_idle(WAIT)
        assert 1 == heard.types.count("disconnected")
    assert 1 == len(failed.items)
    return caught.value, codes[0]


def test_f09_compressed_frame() -> None:
    """A frame with RSV1 fails cleanly, and the error names compression."""
    problem, code = broken_by(frame(TEXT, b"\xaa\x56\x4a", rsv=4))
    assert isinstance(problem, RemoteProtocolError)
    assert "compress" in str(problem)
    assert 1002 == code


def test_f10_ping_flood_while_sending() -> None:
    """Ten thousand pings under a large message cost one pong or few; all data is delivered."""
    words = "x" * 5_000_000

    def script(peer: Peer) -> None:
        peer.accept()
        peer.start(CID)
        peer.send_raw(b"".join(frame(PING, b"%d" % n) for n in range(10_000)))
        assert words == peer.message()["content"]
        peer.send_text(content(CID, "whole"), done(CID))
        assert [] == peer.settle()
        pongs = [payload for opcode, payload in peer.control if opcode == PONG][:-1]
        assert len(pongs) < 10_000
        assert b"9999" == pongs[-1]
        peer.until_closed()

    with RawServer(script) as server, FluxbaseAIChat(server.url) as chat:
        talk = chat.conversation("support")
        talk.start()
        assert "whole" == talk.ask(words).text


VIOLATIONS = {
    "ping of 126 bytes": frame(PING, b"x" * 126),
    "fragmented ping": frame(PING, b"x", fin=False),
    "stray continuation": frame(CONTINUATION, b"x"),
    "opcode 3": frame(0x3, b"x"),
    "opcode 11": frame(0xB, b"x"),
    "RSV2": frame(TEXT, b"{}", rsv=2),
    "RSV3": frame(PING, rsv=1),
    "a message inside another": frame(TEXT, b"{", fin=False) + frame(TEXT, b"{}"),
    "length with its highest bit set": b"\x81\x7f" + b"\xff" * 8,
}


@pytest.mark.parametrize("data", VIOLATIONS.values(), ids=VIOLATIONS.keys())
def test_f11_violations(data) -> None:
    """What RFC 6455 forbids fails the turn, and the connection is closed for it."""
    problem, code = broken_by(data)
    assert isinstance(problem, RemoteProtocolError)
    assert code in ({1002, 1009} if data.startswith(b"\x81\x7f") else {1002})


GOODBYES = {
    "empty": (b"", ""),
    "1000": (b"\x03\xe8", "1000"),
    "1001 with a reason": (b"\x03\xe9going away", "1001 going away"),
    "4999": (b"\x13\x87", "4999"),
    "reason of 123 bytes": (b"\x03\xe8" + b"r" * 123, "r" * 123),
}
BAD_GOODBYES = {
    "1 byte": b"\x03",
    "1005": b"\x03\xed",
    "1006": b"\x03\xee",
    "1015": b"\x03\xf7",
    "999": b"\x03\xe7",
    "5000": b"\x13\x88",
    "reason that is not UTF-8": b"\x03\xe8\xff\xfe",
    "reason of 124 bytes": b"\x03\xe8" + b"r" * 124,
}


@pytest.mark.parametrize(("payload", "said"), GOODBYES.values(), ids=GOODBYES.keys())
def test_f12_close_frames(payload, said) -> None:
    """A close frame in a turn loses the connection; the error has its code and reason."""
    problem, code = broken_by(frame(CLOSE, payload))
    assert isinstance(problem, ConnectionLostError)
    assert said in str(problem)
    assert code is not None


@pytest.mark.parametrize("payload", BAD_GOODBYES.values(), ids=BAD_GOODBYES.keys())
def test_f12_bad_close_frames(payload) -> None:
    """A close frame that RFC 6455 forbids is a violation, or a loss; never anything else."""
    problem, code = broken_by(frame(CLOSE, payload))
    if isinstance(problem, RemoteProtocolError):
        assert 1002 == code
    else:
        assert isinstance(problem, ConnectionLostError)


def ended_by(
    end: Callable[[Peer], object], context: ssl.SSLContext | None = None, **options: Any
) -> ConnectionLostError:
    """End the stream in a turn; return how the turn failed, and check that it did so once."""

    def first(peer: Peer) -> None:
        peer.accept()
        peer.start(CID)
        peer.message()
        peer.send_text(content(CID, "half"))
        got.wait()
        end(peer)

    got = Gate()
    heard, failed = Heard(), Heard()
    with (
        RawServer(first, Peer.serve, context=context) as server,
        FluxbaseAIChat(
            server.url, on_event=heard, on_error=failed, reconnect_delay=0.01, **options
        ) as chat,
    ):
        turn = chat.conversation("support").send("Hi")
        assert "half" == next(turn.text_stream)
        got.open()
        with pytest.raises(ConnectionLostError) as caught:
            turn.result()
        assert (True, "half") == (caught.value.sent, caught.value.partial_text)
        assert "You said: again" == chat.ask("support", "again").text
        assert chat.wait_idle(WAIT)
    assert [("CONNECTION_LOST", CID)] == [(code, cid) for _, code, cid in failed.items]
    # Once for the loss, once for our own disconnect.
    assert ["disconnected", "reconnecting", "reconnected", "disconnected"] == [
        name for name in heard.types if "connect" in name
    ][1:]
    return caught.value


def test_f14_reset() -> None:
    """A reset connection is lost once, with the system's error as the cause."""
    assert isinstance(ended_by(Peer.rst).__cause__, ConnectionResetError)


@pytest.mark.parametrize("part", [b"", b"\x81", b"\x81\x7e\x00", b"\x81\x7dabc", b"\x01\x01a"])
def test_f14_end_in_mid_frame(part) -> None:
    """A stream that ends between frames or within one is lost, and its part is no message."""

    def end(peer: Peer) -> None:
        peer.send_raw(part)
        peer.cut()

    ended_by(end)


def test_f14_ragged_end_of_tls() -> None:
    """A TLS stream that ends without its close alert is lost."""
    authority = trustme.CA()
    theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(theirs)
    ours = ssl.create_default_context()
    authority.configure_trust(ours)

    def end(peer: Peer) -> None:
        socket.socket(fileno=peer.socket.detach()).close()

    ended_by(end, theirs, ssl_context=ours)
