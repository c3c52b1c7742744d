"""TLS: trusted through the given context alone, and a bad certificate is the end of it."""

from __future__ import annotations

import socket
import ssl
import struct
from pathlib import Path
from typing import Any

import pytest
import trustme
from helpers import Heard
from servers import WAIT, Gate, Gone, Peer, RawServer, content, done, frame, text

from fluxbase_aichat import FluxbaseAIChat, Timeouts, _transport
from fluxbase_aichat.errors import (
    ConfigurationError,
    ConnectError,
    ConnectionLostError,
    FluxbaseChatError,
    TLSError,
)

CID = "c-1"


class Authority:
    """An authority, and the contexts of servers and clients."""

    def __init__(self) -> None:
        self._ca = trustme.CA()

    def server(self, name: str = "127.0.0.1", *, clients: bool = False) -> ssl.SSLContext:
        """Return the context of a server of that name; `clients` have to show a certificate."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._ca.issue_cert(name).configure_cert(context)
        if clients:
            context.verify_mode = ssl.CERT_REQUIRED
            self._ca.configure_trust(context)
        return context

    def client(self, *, certificate: bool = False) -> ssl.SSLContext:
        """Return the context of a client that trusts it, with a `certificate` if it is to."""
        context = ssl.create_default_context()
        self._ca.configure_trust(context)
        if certificate:
            self._ca.issue_cert("me@chat.example").configure_cert(context)
        return context

    def write(self, folder: Path) -> str:
        """Write its certificate into a file."""
        path = folder / "authority.pem"
        self._ca.cert_pem.write_to_path(str(path))
        return str(path)


@pytest.fixture(scope="module")
def authority() -> Authority:
    """Give an authority."""
    return Authority()


@pytest.fixture(autouse=True)
def no_variables(monkeypatch) -> None:
    """Hide what the environment says about trust."""
    for name in (
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
        "SSLKEYLOGFILE",
        "WEBSOCKET_CLIENT_CA_BUNDLE",
        "REQUESTS_CA_BUNDLE",
    ):
        monkeypatch.delenv(name, raising=False)


def refused(server: RawServer, **options: Any) -> FluxbaseChatError:
    """Connect in vain and return the error; it was tried once."""
    chat = FluxbaseAIChat(server.url, token="t0k3n", reconnect_delay=0.0, **options)
    before = server.connections
    with pytest.raises(FluxbaseChatError) as caught:
        chat.connect()
    chat.disconnect()
    assert before + 1 == server.connections
    assert caught.value.sent is False
    return caught.value


# -- versions -------------------------------------------------------------------------------

VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


@pytest.mark.parametrize("version", VERSIONS)
def test_large_messages(version, authority) -> None:
    """Over each version large messages go both ways, whole."""
    theirs = authority.server()
    theirs.minimum_version = theirs.maximum_version = version
    words = "0123456789" * 300_000
    spoken = []

    def script(peer: Peer) -> None:
        spoken.append(peer.socket.version())
        peer.serve()

    with (
        RawServer(script, context=theirs) as server,
        FluxbaseAIChat(server.url, ssl_context=authority.client()) as chat,
    ):
        assert f"You said: {words}" == chat.ask("support", words).text
    assert [version.name.replace("_", ".")] == spoken


def test_version_that_is_too_old(authority) -> None:
    """A context's own minimum is kept: the server of an older version is refused."""
    theirs, ours = authority.server(), authority.client()
    theirs.maximum_version = ssl.TLSVersion.TLSv1_2
    ours.minimum_version = ssl.TLSVersion.TLSv1_3
    with RawServer(Peer.serve, context=theirs) as server:
        error = refused(server, ssl_context=ours)
    assert TLSError is type(error)
    assert "alert" in str(error)
    assert "plain port" not in str(error)


@pytest.mark.parametrize("size", [1, 7, 1000, None])
@pytest.mark.parametrize("version", VERSIONS)
def test_what_tls_holds_back(size, version, authority, monkeypatch) -> None:
    """Frames that came in one record are all heard at once, however little a read takes."""
    if size is not None:
        monkeypatch.setattr(_transport, "_READ_BYTES", size)
    theirs = authority.server()
    theirs.maximum_version = version
    deltas = [f"{n} " for n in range(150)]
    heard_all = Gate()

    def script(peer: Peer) -> None:
        peer.accept(then=text({"type": "early"}))
        peer.start(CID)
        peer.message()
        peer.send_text(*(content(CID, delta) for delta in deltas))  # less than 16 KiB
        heard_all.wait()
        peer.send_text(done(CID))
        peer.until_closed()

    def on_content(delta: str) -> None:
        if delta == deltas[-1]:
            heard_all.open()

    with (
        RawServer(script, context=theirs) as server,
        FluxbaseAIChat(server.url, ssl_context=authority.client(), on_content=on_content) as chat,
    ):
        assert "".join(deltas) == chat.ask("support", "Hi").text


# -- trust ----------------------------------------------------------------------------------


def test_trust_is_the_contexts(authority) -> None:
    """What the given context trusts is trusted, and nothing else is."""
    with RawServer(Peer.serve, context=authority.server()) as server:
        with FluxbaseAIChat(server.url, ssl_context=authority.client()) as chat:
            assert chat.is_connected()
        assert TLSError is type(refused(server))
        assert TLSError is type(refused(server, ssl_context=ssl.create_default_context()))
        assert TLSError is type(refused(server, ssl_context=Authority().client()))


def test_hint_of_an_own_authority(authority) -> None:
    """The error of an unknown authority says how to trust one."""
    with RawServer(Peer.serve, context=authority.server()) as server:
        error = refused(server)
    assert "ssl.create_default_context(cafile=...)" in str(error)
    assert isinstance(error.__cause__, ssl.SSLCertVerificationError)


@pytest.mark.parametrize("name", ["localhost", "chat.example", "*.0.0.1", "127.0.0.2"])
def test_name_of_the_certificate(name, authority) -> None:
    """A certificate counts for the host of the URL, which is not what it resolves to."""
    with RawServer(Peer.serve, context=authority.server(name)) as server:
        assert TLSError is type(refused(server, ssl_context=authority.client()))


def test_name_of_the_host(authority) -> None:
    """A name in the URL is checked as a name."""
    with (
        RawServer(Peer.serve, context=authority.server("localhost")) as server,
        FluxbaseAIChat(f"https://localhost:{server.port}", ssl_context=authority.client()) as chat,
    ):
        assert "You said: Hi" == chat.ask("support", "Hi").text


def test_context_that_checks_nothing(authority) -> None:
    """A context that trusts everybody is the caller's own word, and is taken."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with (
        RawServer(Peer.serve, context=authority.server("chat.example")) as server,
        FluxbaseAIChat(server.url, ssl_context=context) as chat,
    ):
        assert chat.is_connected()


@pytest.mark.parametrize("value", [True, False, "cert.pem", {"cert_reqs": 0}])
def test_what_is_no_context(value) -> None:
    """There is no shortcut that switches checking off."""
    with pytest.raises(ConfigurationError, match="ssl.SSLContext"):
        FluxbaseAIChat("wss://chat.example", ssl_context=value)


def test_server_that_wants_a_certificate(authority) -> None:
    """A client's own certificate is the context's, too."""
    theirs = authority.server(clients=True)
    with (
        RawServer(Peer.serve, context=theirs) as server,
        FluxbaseAIChat(server.url, ssl_context=authority.client(certificate=True)) as chat,
    ):
        assert "You said: Hi" == chat.ask("support", "Hi").text


@pytest.mark.parametrize("version", VERSIONS)
def test_server_that_misses_a_certificate(version, authority) -> None:
    """Without one the server's alert is a TLSError, also when it comes behind the handshake."""
    theirs = authority.server(clients=True)
    theirs.minimum_version = theirs.maximum_version = version

    def script(peer: Peer) -> None:
        tls = theirs.wrap_socket(peer.socket, server_side=True, do_handshake_on_connect=False)
        with pytest.raises(ssl.SSLError):
            tls.do_handshake()
        # Not closed at once: that would reset the connection, and take the alert away.
        peer._sock = socket.socket(fileno=tls.detach())
        peer.socket.settimeout(WAIT)
        while peer.socket.recv(65536):
            pass

    with RawServer(script) as server:
        url = f"wss://127.0.0.1:{server.port}"
        with (
            pytest.raises(ConnectError) as caught,
            FluxbaseAIChat(url, ssl_context=authority.client()),
        ):
            pass
        assert 1 == server.connections
    error = caught.value
    assert TLSError is type(error)
    assert "alert" in str(error)
    assert isinstance(error.__cause__, ssl.SSLError)


# -- the environment (S06) ------------------------------------------------------------------


@pytest.mark.parametrize("name", ["WEBSOCKET_CLIENT_CA_BUNDLE", "REQUESTS_CA_BUNDLE"])
def test_s06_other_libraries_variables(name, authority, monkeypatch, tmp_path) -> None:
    """The variables of other libraries change the trust of no client."""
    path = authority.write(tmp_path)
    with RawServer(Peer.serve, context=authority.server()) as server:
        monkeypatch.setenv(name, path)
        assert TLSError is type(refused(server))
        monkeypatch.setenv(name, str(tmp_path / "missing.pem"))
        with FluxbaseAIChat(server.url, ssl_context=authority.client()) as chat:
            assert chat.is_connected()


def test_s06_default_context_is_the_systems(authority, monkeypatch, tmp_path) -> None:
    """Without a context the system's trust holds, which OpenSSL reads from SSL_CERT_FILE."""
    other = Authority().client()
    with RawServer(Peer.serve, context=authority.server()) as server:
        monkeypatch.setenv("SSL_CERT_FILE", authority.write(tmp_path))
        with FluxbaseAIChat(server.url) as chat:
            assert chat.is_connected()
        assert TLSError is type(refused(server, ssl_context=other))


def test_s06_key_log(authority, monkeypatch, tmp_path) -> None:
    """SSLKEYLOGFILE is Python's own switch of a default context: no given context gets it."""
    log = tmp_path / "keys.log"
    ours = authority.client()
    monkeypatch.setenv("SSLKEYLOGFILE", str(log))
    with RawServer(Peer.serve, context=authority.server()) as server:
        with FluxbaseAIChat(server.url, ssl_context=ours):
            pass
        assert not log.exists()
        assert ours.keylog_filename is None
        monkeypatch.setenv("SSL_CERT_FILE", authority.write(tmp_path))
        with FluxbaseAIChat(server.url):
            pass
        assert "CLIENT" in log.read_text()


# -- retries --------------------------------------------------------------------------------


def test_certificate_that_turns_bad(authority) -> None:
    """A bad certificate on reconnecting is final: nobody is asked a second time."""
    lost = Heard()

    def first(peer: Peer) -> None:
        peer.accept()
        server._context = Authority().server()

    def never(peer: Peer) -> None:
        raise AssertionError("TLS has succeeded")

    with RawServer(first, never, context=authority.server()) as server:
        chat = FluxbaseAIChat(
            server.url,
            ssl_context=authority.client(),
            on_event=lost,
            reconnect_delay=0.0,
            reconnect_attempts=10,
        )
        with chat:
            lost.wait_for_type("reconnecting")
            with pytest.raises(TLSError):
                chat.connect(timeout=WAIT)
            assert "lost" == chat.state
            assert 2 <= server.connections <= 3  # the reconnect, and the call's own try


@pytest.mark.parametrize("how", ["end", "reset"])
def test_server_that_restarts_in_the_handshake(how, authority) -> None:
    """A connection that ends in the TLS handshake is no bad certificate: it is tried again."""
    events = Heard()

    def first(peer: Peer) -> None:
        peer._sock = theirs.wrap_socket(peer._sock, server_side=True)
        peer.accept()

    def second(peer: Peer) -> None:
        assert b"\x16" == peer.socket.recv(1)
        if how == "reset":
            peer.rst()
            raise Gone

    def third(peer: Peer) -> None:
        peer._sock = theirs.wrap_socket(peer._sock, server_side=True)
        peer.serve()

    theirs = authority.server()
    with RawServer(first, second, third) as server:
        chat = FluxbaseAIChat(
            f"wss://127.0.0.1:{server.port}",
            ssl_context=authority.client(),
            on_event=events,
            reconnect_delay=0.01,
        )
        with chat:
            events.wait_for_type("reconnected")
            assert "You said: Hi" == chat.ask("support", "Hi").text


def test_connection_that_ends_in_the_handshake() -> None:
    """Its error is a ConnectError that may be tried again; no plain text was sent."""
    seen = []

    def script(peer: Peer) -> None:
        seen.append(peer.socket.recv(65536))
        peer.finish()
        while peer.socket.recv(65536):
            pass

    with RawServer(script) as server:
        chat = FluxbaseAIChat(
            f"wss://127.0.0.1:{server.port}", token="t0k3n", timeouts=Timeouts(connect=None)
        )
        with pytest.raises(ConnectError) as caught:
            chat.connect()
        chat.disconnect()
    assert ConnectError is type(caught.value)
    assert caught.value.retryable is True
    assert "ended in TLS" in str(caught.value)
    assert b"t0k3n" not in seen[0]
    assert b"\x16" == seen[0][:1]


# -- the end --------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_close_of_tls_in_a_turn(version, authority) -> None:
    """A stream that TLS ends properly is lost as any other that has no close frame."""
    theirs = authority.server()
    theirs.maximum_version = version
    got = Gate()

    def script(peer: Peer) -> None:
        peer.accept()
        peer.start(CID)
        peer.message()
        peer.send_text(content(CID, "half"))
        got.wait()
        peer.socket.setblocking(False)
        try:
            peer.socket.unwrap()
        except (ssl.SSLWantReadError, OSError):
            pass
        peer.socket.setblocking(True)
        peer.until_closed()

    with RawServer(script, Peer.serve, context=theirs) as server:
        chat = FluxbaseAIChat(server.url, ssl_context=authority.client(), reconnect_delay=0.0)
        with chat:
            turn = chat.conversation("support").send("Hi")
            assert "half" == next(turn.text_stream)
            got.open()
            with pytest.raises(ConnectionLostError, match="without a close frame") as caught:
                turn.result()
            assert (True, "half") == (caught.value.sent, caught.value.partial_text)
            assert "You said: again" == chat.ask("support", "again").text


def test_reset_under_tls(authority) -> None:
    """A reset connection is lost, with the system's error as the cause."""
    got = Gate()

    def script(peer: Peer) -> None:
        peer.accept()
        peer.start(CID)
        peer.message()
        peer.send_text(content(CID, "half"))
        got.wait()
        peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.socket.close()

    with RawServer(script, Peer.serve, context=authority.server()) as server:
        chat = FluxbaseAIChat(server.url, ssl_context=authority.client(), reconnect_delay=0.0)
        with chat:
            turn = chat.conversation("support").send("Hi")
            assert "half" == next(turn.text_stream)
            got.open()
            with pytest.raises(ConnectionLostError) as caught:
                turn.result()
            assert isinstance(caught.value.__cause__, (ConnectionResetError, ssl.SSLEOFError))


def test_junk_under_tls(authority) -> None:
    """Bytes that are no TLS record lose the connection, and nothing of them is taken."""
    got = Gate()

    def script(peer: Peer) -> None:
        peer.accept()
        peer.start(CID)
        peer.message()
        peer.send_text(content(CID, "half"))
        got.wait()
        raw = socket.socket(fileno=peer.socket.detach())
        raw.sendall(frame(1, b'{"type":"done","conversation_id":"c-1"}') * 10)
        raw.close()

    with RawServer(script, Peer.serve, context=authority.server()) as server:
        chat = FluxbaseAIChat(server.url, ssl_context=authority.client(), reconnect_delay=0.0)
        with chat:
            turn = chat.conversation("support").send("Hi")
            assert "half" == next(turn.text_stream)
            got.open()
            with pytest.raises(ConnectionLostError) as caught:
                turn.result()
            assert isinstance(caught.value.__cause__, (ssl.SSLError, ConnectionResetError))


def test_goodbye(authority) -> None:
    """A disconnect says goodbye inside TLS."""

    def script(peer: Peer) -> None:
        peer.serve()
        assert 1000 == peer.close_code

    with RawServer(script, context=authority.server()) as server:
        with FluxbaseAIChat(server.url, ssl_context=authority.client()) as chat:
            assert "You said: Hi" == chat.ask("support", "Hi").text
        server.join()
