"""Faults of opening a connection (H): each ends in one typed error, by its deadline."""

from __future__ import annotations

import contextlib
import datetime as dt
import select
import socket
import ssl
import threading
import time
from collections.abc import Iterator

import pytest
import trustme
from helpers import Heard, counting, run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from servers import Gate, Peer, RawServer, content, done, refusing_port, text

from fluxbase_aichat import FluxbaseAIChat, Timeouts, _handshake, _net
from fluxbase_aichat.errors import (
    AuthenticationError,
    ConnectError,
    ConnectTimeoutError,
    FeatureDisabledError,
    FluxbaseChatError,
    HandshakeError,
    NotConnectedError,
    PermissionDeniedError,
    RateLimitError,
    TLSError,
)

NO_LIMIT = Timeouts(connect=None)


def failure(server: RawServer, **options) -> FluxbaseChatError:
    """Connect in vain and return the error."""
    with pytest.raises(FluxbaseChatError) as caught, FluxbaseAIChat(server.url, **options):
        pass
    return caught.value


# -- H01 ------------------------------------------------------------------------------------


def test_h01_refused_port() -> None:
    """A refused port is a ConnectError with its cause, without waiting for a timer."""
    with refusing_port() as port:
        chat = FluxbaseAIChat(f"ws://127.0.0.1:{port}", timeouts=NO_LIMIT)
        with pytest.raises(ConnectError) as caught:
            chat.connect()
        chat.disconnect()
    assert ConnectError is type(caught.value)
    assert isinstance(caught.value.__cause__, ConnectionRefusedError)
    assert caught.value.sent is False
    assert caught.value.retryable is True


def test_h01_refused_port_leaves_no_thread() -> None:
    """A client that could not connect and was dropped keeps no thread alive."""
    with refusing_port() as port, pytest.raises(ConnectError):
        FluxbaseAIChat(f"ws://127.0.0.1:{port}", on_event=print).connect()
    # conftest's nothing_left waits for the threads and fails the test if one stays.


def test_h01_refused_port_fails_each_kind_of_call() -> None:
    """start_chat, ask and a turn end with the same error, and on_error hears once of each."""
    heard = Heard()
    with refusing_port() as port:
        url = f"ws://127.0.0.1:{port}"
        chat = FluxbaseAIChat(url, on_error=heard, timeouts=NO_LIMIT)
        with pytest.raises(ConnectError):
            chat.start_chat("support")
        with pytest.raises(ConnectError):
            chat.ask("support", "Hello")
        turn = chat.conversation("support").send("Hello")
        with pytest.raises(ConnectError) as caught:
            turn.result()
        assert turn.wait(5)
        assert "lost" == chat.state
        chat.disconnect()
    assert caught.value.sent is False
    assert ["CONNECTION_LOST"] * 3 == [code for _, code, _ in heard.items]


# -- H05 ------------------------------------------------------------------------------------


def silent(peer: Peer) -> None:
    """Read all that comes, say nothing."""
    while True:
        peer.read_exactly(1)


def dribbling(peer: Peer) -> None:
    """Send an endless header line, a byte every 20 ms, until the client has enough."""
    peer.read_request()
    peer.send_raw(b"HTTP/1.1 101 Switching Protocols\r\nX: ")
    while not select.select([peer.socket], [], [], 0.02)[0]:
        peer.send_raw(b"x")
    peer.read_exactly(1)


@pytest.mark.parametrize("script", [silent, dribbling])
@pytest.mark.parametrize("scheme", ["ws", "wss"])
def test_h05_never_an_answer(script, scheme) -> None:
    """Whatever the server does not finish, the deadline ends it and the socket is closed."""
    if (script, scheme) == (dribbling, "wss"):
        script = silent_then_junk
    with RawServer(script) as server:
        chat = FluxbaseAIChat(f"{scheme}://127.0.0.1:{server.port}")
        began = time.monotonic()
        with pytest.raises(ConnectTimeoutError) as caught:
            chat.connect(timeout=0.2)
        assert 0.2 <= time.monotonic() - began < 2
        server.join()  # the script ends with the connection
        chat.disconnect()
    assert isinstance(caught.value, TimeoutError)
    assert caught.value.sent is False


def silent_then_junk(peer: Peer) -> None:
    """Begin a TLS record that never ends."""
    peer.send_raw(b"\x16\x03\x03\x40\x00")
    while not select.select([peer.socket], [], [], 0.02)[0]:
        peer.send_raw(b"x")
    silent(peer)


def test_h05_connection_never_accepted() -> None:
    """A connection that stays in the listener's backlog ends at the deadline too."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"ws://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(ConnectTimeoutError), FluxbaseAIChat(url, timeouts=0.2):
            pass


def test_h05_deadline_of_the_call_that_opens() -> None:
    """Calls that open the connection end by their own deadline, as not sent."""
    with RawServer(silent) as server:
        chat = FluxbaseAIChat(server.url, timeouts=NO_LIMIT)
        with pytest.raises(ConnectTimeoutError) as caught:
            chat.start_chat("support", timeout=0.1)
        assert caught.value.sent is False
        with pytest.raises(ConnectTimeoutError) as caught:
            chat.ask("support", "Hello", timeout=0.1)
        assert caught.value.sent is False
        chat.disconnect()


# -- H07 ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 101 Switching Protocols\r\nX: " + b"x" * 3_000_000 + b"\r\n\r\n",
        b"HTTP/1.1 101 " + b"x" * 3_000_000,
        b"HTTP/1.1 101 Switching Protocols\r\n" + b"X: y\r\n" * 10_000 + b"\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\n" + b"\n" * 100_000,
    ],
    ids=["3 MB header line", "3 MB status line", "10,000 headers", "100,000 bare line feeds"],
)
def test_h07_endless_head(head, monkeypatch) -> None:
    """A head beyond its bounds is refused after at most 64 KiB."""
    taken = []
    recv = _handshake.recv

    def counting(*args) -> bytes:
        taken.append(recv(*args))
        return taken[-1]

    def script(peer: Peer) -> None:
        peer.read_request()
        peer.send_raw(head)
        peer.until_closed()

    monkeypatch.setattr(_handshake, "recv", counting)
    with RawServer(script) as server:
        assert HandshakeError is type(failure(server, timeouts=NO_LIMIT))
    assert 0 < sum(map(len, taken)) <= 64 * 1024


# -- H08 ------------------------------------------------------------------------------------

STATUSES = [
    ("200 OK", HandshakeError, False),
    ("401 Unauthorized", AuthenticationError, False),
    ("403 Forbidden", PermissionDeniedError, False),
    ("404 Not Found", HandshakeError, False),
    ("426 Upgrade Required", HandshakeError, False),
    ("429 Too Many Requests", RateLimitError, True),
    ("500 Internal Server Error", HandshakeError, True),
    ("503 Service Unavailable", HandshakeError, True),
]


@pytest.mark.parametrize(("status", "kind", "retryable"), STATUSES)
def test_h08_statuses(status, kind, retryable) -> None:
    """Each status has its error; what the server said is in it, and nothing was sent."""

    def script(peer: Peer) -> None:
        peer.refuse(status, b'{"error":"The reason"}')
        peer.until_closed()

    with RawServer(script) as server:
        error = failure(server)
    assert kind is type(error)
    assert (False, retryable) == (error.sent, error.retryable)
    assert status[:3] in str(error)
    assert "The reason" in str(error)
    if isinstance(error, HandshakeError):
        assert (int(status[:3]), '{"error":"The reason"}') == (error.status, error.body)


@pytest.mark.parametrize("status", ["401 Unauthorized", "403 Forbidden"])
def test_h08_refused_credentials_are_not_retried(status) -> None:
    """A fixed token that was refused is not shown to the server again."""

    def script(peer: Peer) -> None:
        peer.refuse(status)

    with RawServer(script) as server:
        failure(server, token="t0k3n", reconnect_delay=0.0)
        failure(server, token="t0k3n", reconnect_delay=0.01)
        assert 2 == server.connections


@pytest.mark.parametrize("status", ["429 Too Many Requests", "503 Service Unavailable"])
@pytest.mark.parametrize(
    ("headers", "body", "expected"),
    [
        ({"Retry-After": "900"}, b"", 900.0),
        ({}, b'{"error":"Slow down","retry_after":30}', 30.0),
        ({"Retry-After": "7"}, b'{"error":"Slow down","retry_after":30}', 7.0),
        ({}, b"", None),
    ],
)
def test_h08_retry_after(status, headers, body, expected) -> None:
    """How long to wait is kept: the header's number, else the body's."""

    def script(peer: Peer) -> None:
        peer.refuse(status, body, headers)

    with RawServer(script) as server:
        assert expected == failure(server).retry_after


@pytest.mark.parametrize("status", ["404 Not Found", "503 Service Unavailable"])
def test_h08_chat_switched_off(status) -> None:
    """A server without the feature says so with either status."""

    def script(peer: Peer) -> None:
        peer.refuse(status, b'{"code":"FEATURE_DISABLED","error":"AI chat is disabled"}')

    with RawServer(script) as server:
        assert FeatureDisabledError is type(failure(server))


def test_h08_endless_body() -> None:
    """An error's body is read up to 8 KiB, whatever length it claims."""

    def script(peer: Peer) -> None:
        peer.read_request()
        peer.send_raw(b"HTTP/1.1 500 Oops\r\nContent-Length: 999999999999\r\n\r\n")
        peer.send_raw(b"x" * 1_000_000)
        peer.until_closed()

    with RawServer(script) as server:
        error = failure(server, timeouts=NO_LIMIT)
    assert isinstance(error, HandshakeError)
    assert "x" * 8192 == error.body


# -- H10 ------------------------------------------------------------------------------------

ANSWERS = {
    "wrong accept": {"token": "AAAAAAAAAAAAAAAAAAAAAAAAAAA="},
    "accept that is not ASCII": {"token": "\xe4"},
    "no accept": {"token": None},
    "unknown extension": {"headers": {"Sec-WebSocket-Extensions": "permessage-deflate"}},
    "empty extension": {"headers": {"Sec-WebSocket-Extensions": ""}},
    "unknown subprotocol": {"headers": {"Sec-WebSocket-Protocol": "chat"}},
    "wrong upgrade": {"headers": {"Upgrade": "h2c"}},
    "wrong connection": {"headers": {"Connection": "close"}},
}


@pytest.mark.parametrize("options", ANSWERS.values(), ids=ANSWERS.keys())
def test_h10_wrong_answer(options) -> None:
    """A 101 that does not answer our request, or chooses what nobody offered, is refused."""

    def script(peer: Peer) -> None:
        peer.accept(**options)
        assert [] == peer.until_closed()

    with RawServer(script) as server:
        assert HandshakeError is type(failure(server))


@pytest.mark.parametrize("missing", ["Upgrade", "Connection"])
def test_h10_missing_field(missing) -> None:
    """A 101 without one of the fields that make it a switch is refused."""

    def script(peer: Peer) -> None:
        peer.accept(headers={missing: ""})
        peer.until_closed()

    with RawServer(script) as server:
        assert HandshakeError is type(failure(server))


# -- H11 ------------------------------------------------------------------------------------

JUNK = {
    "nothing": b"",
    "a line feed": b"\r\n\r\n",
    "an SSH server": b"SSH-2.0-OpenSSH_9.6\r\n",
    "a mail server": b"220 mail ESMTP\r\n",
    "a TLS alert": b"\x15\x03\x03\x00\x02\x02\x46",
    "HTTP/0.9": b"<html>hello</html>",
    "HTTP/2": b"HTTP/2 101 Switching Protocols\r\n\r\n",
    "EOF in the version": b"HTTP/1",
    "EOF in the status": b"HTTP/1.1 10",
    "EOF in the head": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: webso",
    "no status": b"HTTP/1.1\r\n\r\n",
    "status that is no number": b"HTTP/1.1 abc Hello\r\n\r\n",
    "status of five digits": b"HTTP/1.1 10101 Hello\r\n\r\n",
    "status with a sign": b"HTTP/1.1 -101 Hello\r\n\r\n",
    "line without a colon": b"HTTP/1.1 101 Switching Protocols\r\nnonsense\r\n\r\n",
    "head that is not UTF-8": b"HTTP/1.1 101 Switching Protocols\r\nX: \xff\xfe\r\n\r\n",
    "status line that is not UTF-8": b"HTTP/1.1 101 \xff\r\n\r\n",
    "NUL bytes": b"\0" * 100,
    "only a status line": b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
    "status 100 first": b"HTTP/1.1 100 Continue\r\n\r\n",
}


@pytest.mark.parametrize("answer", JUNK.values(), ids=JUNK.keys())
def test_h11_junk(answer) -> None:
    """What is no HTTP answer, or ends too early, is a HandshakeError."""

    def script(peer: Peer) -> None:
        peer.read_request()
        peer.send_raw(answer)

    with RawServer(script) as server:
        assert HandshakeError is type(failure(server))


def test_h11_reset_in_the_handshake() -> None:
    """A connection that breaks in the handshake is a HandshakeError with its cause."""

    def script(peer: Peer) -> None:
        peer.read_request()
        peer.rst()

    with RawServer(script) as server:
        error = failure(server)
    assert HandshakeError is type(error)
    assert isinstance(error.__cause__, ConnectionResetError)


HEADS = st.one_of(
    st.binary(max_size=200),
    st.binary(max_size=200).map(lambda data: b"HTTP/1.1 101 Switching Protocols\r\n" + data),
    st.binary(max_size=200).map(
        lambda data: b"HTTP/1.1 101 Switching Protocols\r\n" + data + b"\r\n\r\n"
    ),
    st.lists(
        st.text(max_size=20).map(str.encode)
        | st.sampled_from([b"Upgrade: websocket", b"Connection: Upgrade", b"Set-Cookie: a", b":"]),
        max_size=6,
    ).map(lambda lines: b"\r\n".join([b"HTTP/1.1 101 OK", *lines, b"", b""])),
)


def test_h11_any_bytes() -> None:
    """Whatever bytes answer, the error is a HandshakeError."""
    answers: list[bytes] = []

    def script(peer: Peer) -> None:
        peer.read_request()
        peer.send_raw(answers[-1])

    @given(HEADS)
    @settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow])
    def check(server: RawServer, answer: bytes) -> None:
        answers.append(answer)
        assert HandshakeError is type(failure(server))

    with RawServer(script) as server:
        check(server)


# -- H13 ------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [0, 1, 2, 5, 40, None])
def test_h13_first_frame_behind_the_head(cut) -> None:
    """What comes in the packet of the 101, whole or begun, is delivered in order."""
    early = [{"type": "greeting", "n": 1}, {"type": "greeting", "n": 2, "text": "x" * 6000}]
    frames = text(early[0]) + text(early[1])
    gate = Gate()

    def script(peer: Peer) -> None:
        peer.accept(then=frames[:cut])
        gate.wait()
        peer.send_raw(frames[cut:] if cut is not None else b"")
        peer.start("c-1")
        peer.answer("Hello")
        peer.until_closed()

    heard = Heard()
    with RawServer(script) as server, FluxbaseAIChat(server.url, on_event=heard) as chat:
        gate.open()
        heard.wait_for(lambda items: len(items) >= 3)
        assert "Hello" == chat.ask("support", "Hi").text
    assert early == [event.raw for event in heard.items if event.type == "greeting"]
    assert ["connected", "greeting", "greeting"] == heard.types[:3]


def test_h13_whole_turn_behind_the_head() -> None:
    """A frame that came before anybody asked is nobody's, and answers no later request."""

    def script(peer: Peer) -> None:
        peer.accept(then=text(content("c-1", "early")) + text(done("c-1")))
        peer.serve()

    with RawServer(script) as server, FluxbaseAIChat(server.url) as chat:
        assert "You said: Hi" == chat.ask("support", "Hi").text


# -- H02, H04 -------------------------------------------------------------------------------


def test_h02_name_lookup_hangs(monkeypatch) -> None:
    """A look-up that does not return is left behind, on a daemon thread, at the deadline."""
    over, names = Gate(), []
    getaddrinfo = socket.getaddrinfo

    def hanging(host, *args, **options):
        if options.get("flags", 0) & socket.AI_NUMERICHOST:
            return getaddrinfo(host, *args, **options)
        names.append((host, threading.current_thread().daemon))
        over.wait()
        raise socket.gaierror(socket.EAI_NONAME, "no such name")

    monkeypatch.setattr(socket, "getaddrinfo", hanging)
    chat = FluxbaseAIChat("wss://chat.example")
    began = time.monotonic()
    with pytest.raises(ConnectTimeoutError):
        chat.connect(timeout=0.2)
    assert 0.2 <= time.monotonic() - began < 2
    chat.disconnect()
    over.open()
    assert [("chat.example", True)] == names


def test_h02_disconnect_while_a_lookup_hangs(monkeypatch) -> None:
    """disconnect() does not wait for a look-up either."""
    asked, over = Gate(), Gate()
    getaddrinfo = socket.getaddrinfo

    def hanging(host, *args, **options):
        if options.get("flags", 0) & socket.AI_NUMERICHOST:
            return getaddrinfo(host, *args, **options)
        asked.open()
        over.wait()
        return []

    monkeypatch.setattr(socket, "getaddrinfo", hanging)
    chat = FluxbaseAIChat("ws://chat.example", timeouts=NO_LIMIT)
    connecting = run(chat.connect)
    asked.wait()
    chat.disconnect(timeout=None)
    with pytest.raises(NotConnectedError):
        connecting.result()
    over.open()


def test_h02_no_such_name(monkeypatch) -> None:
    """A name that does not exist is a ConnectError with its cause."""

    def unknown(*args, **options):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(ConnectError) as caught, FluxbaseAIChat("ws://chat.example"):
        pass
    assert isinstance(caught.value.__cause__, socket.gaierror)


@pytest.fixture
def full_backlog() -> Iterator[int]:
    """Give a port that takes no connection and refuses none."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


@pytest.mark.parametrize("first", ["unreachable", "refusing", "swallowing", "no such family"])
def test_h04_first_address_fails(first, monkeypatch, full_backlog) -> None:
    """Of a host's addresses the first that answers is taken, whatever befalls those before."""
    monkeypatch.setattr(_net, "_ADDRESS_SECONDS", 0.1)
    getaddrinfo = socket.getaddrinfo
    with refusing_port() as refusing, RawServer(Peer.serve) as server:
        bad = {
            "unreachable": ("255.255.255.255", 9),
            "refusing": ("127.0.0.1", refusing),
            "swallowing": ("127.0.0.1", full_backlog),
            "no such family": ("127.0.0.1", 9),
        }[first]
        family = 77 if first == "no such family" else socket.AF_INET

        def two(host, *args, **options):
            if options.get("flags", 0) & socket.AI_NUMERICHOST:
                return getaddrinfo(host, *args, **options)
            kind = (socket.SOCK_STREAM, socket.IPPROTO_TCP, "")
            return [(family, *kind, bad), (socket.AF_INET, *kind, ("127.0.0.1", server.port))]

        monkeypatch.setattr(socket, "getaddrinfo", two)
        with FluxbaseAIChat("ws://chat.example") as chat:
            assert "You said: Hi" == chat.ask("support", "Hi").text


# -- H14 ------------------------------------------------------------------------------------


def tls(name: str = "127.0.0.1", **options) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Return the contexts of a server with such a certificate and of a client that trusts it."""
    authority = trustme.CA()
    theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name, **options).configure_cert(theirs)
    ours = ssl.create_default_context()
    authority.configure_trust(ours)
    return theirs, ours


def test_h14_trusted() -> None:
    """With the right authority a chat works over TLS, with large messages both ways."""
    theirs, ours = tls()
    words = "x" * 3_000_000
    with (
        RawServer(Peer.serve, context=theirs) as server,
        FluxbaseAIChat(server.url, token="t0k3n", ssl_context=ours) as chat,
    ):
        assert f"You said: {words}" == chat.ask("support", words).text


YESTERDAY = dt.datetime.now(dt.UTC) - dt.timedelta(days=1)
CERTIFICATES = {
    "unknown authority": ({}, False),
    "wrong host": ({"name": "chat.example"}, True),
    "expired": ({"not_after": YESTERDAY, "not_before": YESTERDAY.replace(year=2020)}, True),
    "not valid yet": ({"not_before": YESTERDAY.replace(year=2090)}, True),
}


@pytest.mark.parametrize(("options", "trusted"), CERTIFICATES.values(), ids=CERTIFICATES.keys())
def test_h14_bad_certificate(options, trusted) -> None:
    """A certificate that is not right is a TLSError; it is not tried again, nothing is sent."""
    theirs, ours = tls(**options)

    def script(peer: Peer) -> None:
        raise AssertionError("the handshake of TLS has succeeded")

    with RawServer(script, context=theirs) as server:
        error = failure(
            server, token="t0k3n", ssl_context=ours if trusted else None, reconnect_delay=0.01
        )
        assert TLSError is type(error)
        assert (False, False) == (error.sent, error.retryable)
        assert isinstance(error.__cause__, ssl.SSLCertVerificationError)
        assert 1 == server.connections


def test_h14_tls_to_a_plain_port() -> None:
    """A port without TLS is a TLSError, and sees no plain text."""
    seen = []

    def script(peer: Peer) -> None:
        seen.append(peer.socket.recv(65536))
        peer.send_raw(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        peer.until_closed()

    with RawServer(script) as server:
        chat = FluxbaseAIChat(f"wss://127.0.0.1:{server.port}", token="t0k3n")
        with pytest.raises(TLSError, match="plain port"), chat:
            pass
        assert 1 == server.connections
    assert b"\x16" == seen[0][:1]
    assert b"GET" not in seen[0]
    assert b"t0k3n" not in seen[0]


def test_h14_plain_to_a_tls_port() -> None:
    """A plain client at a TLS port gets a HandshakeError."""
    theirs, _ = tls()
    with RawServer(Peer.serve, context=theirs) as server:
        url = f"ws://127.0.0.1:{server.port}"
        with pytest.raises(HandshakeError), FluxbaseAIChat(url):
            pass


# -- H16 ------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["tcp", "tls", "upgrade"])
def test_h16_disconnect_during_connect(where, full_backlog) -> None:
    """A disconnect in another thread ends a connect in whatever step, without a timer."""
    asked = Gate()

    def script(peer: Peer) -> None:
        peer.read_exactly(1)
        asked.open()
        silent(peer)

    with RawServer(script) as server:
        port = full_backlog if where == "tcp" else server.port
        scheme = "wss" if where == "tls" else "ws"
        chat = FluxbaseAIChat(f"{scheme}://127.0.0.1:{port}", timeouts=NO_LIMIT)
        opening = counting(chat, "_start")
        connecting = run(chat.connect)
        opening()
        if where != "tcp":
            asked.wait()
        assert "connecting" == chat.state
        chat.disconnect(timeout=None)
        with pytest.raises(NotConnectedError) as caught:
            connecting.result()
        assert "disconnected" == chat.state
    assert isinstance(caught.value, ConnectionError)
