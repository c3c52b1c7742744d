"""Proxies: the way the caller said, all of it under the same deadline, its password never shown."""

from __future__ import annotations

import base64
import os
import select
import socket
import ssl
import sys
import threading
import time
import traceback

import pytest
import trustme
from helpers import Heard, run
from proxies import Tunnel
from servers import Gate, Peer, RawServer, refusing_port

from fluxbase_aichat import FluxbaseAIChat, Timeouts, _net, _proxy
from fluxbase_aichat._deadline import Deadline
from fluxbase_aichat._net import Waker
from fluxbase_aichat.config import Settings
from fluxbase_aichat.errors import (
    ConnectError,
    ConnectTimeoutError,
    FluxbaseChatError,
    MissingExtraError,
    NotConnectedError,
    ProxyError,
    TLSError,
)

NO_LIMIT = Timeouts(connect=None)
SECRET = "pa55w0rd"


@pytest.fixture(autouse=True)
def no_proxy_variables(monkeypatch) -> None:
    """Hide the proxies of the machine that the tests run on."""
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.delenv("REQUEST_METHOD", raising=False)


def failure(proxy: str, url: str = "ws://chat.example", **options) -> FluxbaseChatError:
    """Connect in vain through a proxy and return the error, which shows no password."""
    with (
        pytest.raises(FluxbaseChatError) as caught,
        FluxbaseAIChat(url, proxy=proxy, **options),
    ):
        pass
    error: BaseException | None = caught.value
    assert SECRET not in "".join(traceback.format_exception(error))
    while error is not None:
        assert SECRET not in f"{error} {error!r} {vars(error)}"
        hidden = error.__suppress_context__
        error = error.__cause__ or (None if hidden else error.__context__)
    return caught.value


def url_of(proxy: RawServer, scheme: str = "http", user: str = "") -> str:
    """Return a proxy's URL."""
    return f"{scheme}://{user}127.0.0.1:{proxy.port}"


# -- HTTP CONNECT ---------------------------------------------------------------------------


def test_plain_chat_through_a_proxy() -> None:
    """A ws:// chat goes through CONNECT; the proxy is told the host, the server the token."""
    seen = []

    def script(peer: Peer) -> None:
        peer.read_request()
        seen.append(peer.headers)
        peer.serve()

    with RawServer(script) as server:
        tunnel = Tunnel(server.port)
        with (
            RawServer(tunnel.http) as proxy,
            FluxbaseAIChat(
                "ws://chat.example:8080",
                token="t0k3n",
                allow_insecure=True,
                proxy=url_of(proxy, user="me:pw@"),
            ) as chat,
        ):
            assert "You said: Hi" == chat.ask("support", "Hi").text
    assert [("chat.example", 8080)] == tunnel.targets
    assert "t0k3n" not in tunnel.requests[0]
    assert ["chat.example:8080"] == [headers["host"] for headers in seen]
    assert ["Bearer t0k3n"] == [headers["authorization"] for headers in seen]
    assert "proxy-authorization" not in seen[0]


def contexts(name: str = "chat.example") -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Return the contexts of a server of that name and of a client that trusts it."""
    authority = trustme.CA()
    theirs, ours = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert(name).configure_cert(theirs)
    authority.configure_trust(ours)
    return theirs, ours


def test_tls_through_a_proxy() -> None:
    """A wss:// chat is TLS from end to end: the proxy sees where it goes, and nothing of it."""
    theirs, ours = contexts()
    words = "x" * 500_000
    with RawServer(Peer.serve, context=theirs) as server:
        tunnel = Tunnel(server.port)
        with (
            RawServer(tunnel.http) as proxy,
            FluxbaseAIChat(
                "wss://chat.example", token="t0k3n", proxy=url_of(proxy), ssl_context=ours
            ) as chat,
        ):
            assert f"You said: {words}" == chat.ask("support", words).text
    assert [("chat.example", 443)] == tunnel.targets
    assert b"\x16" == tunnel.passed[:1]
    assert b"GET /ai/ws" not in tunnel.passed
    assert b"t0k3n" not in tunnel.passed


def test_certificate_is_the_servers_not_the_proxys() -> None:
    """A certificate for another name than the server's is refused behind a proxy too."""
    theirs, ours = contexts("127.0.0.1")
    with RawServer(Peer.serve, context=theirs) as server:
        tunnel = Tunnel(server.port)
        with RawServer(tunnel.http) as proxy:
            error = failure(url_of(proxy), "wss://chat.example", token="t", ssl_context=ours)
    assert isinstance(error, TLSError)
    assert b"GET /ai/ws" not in tunnel.passed


def test_ipv6_target() -> None:
    """An address with colons is asked for in brackets."""
    with RawServer(Peer.serve) as server:
        tunnel = Tunnel(server.port)
        with (
            RawServer(tunnel.http) as proxy,
            FluxbaseAIChat("ws://[fd00::1]:81", proxy=url_of(proxy)) as chat,
        ):
            assert chat.is_connected()
    assert [("[fd00::1]", 81)] == tunnel.targets


def test_user_and_password() -> None:
    """User and password of the URL, percent-decoded, are sent to the proxy, and only to it."""
    with RawServer(Peer.serve) as server:
        tunnel = Tunnel(server.port)
        with RawServer(tunnel.http) as proxy:
            chat = FluxbaseAIChat(
                "ws://chat.example", proxy=url_of(proxy, user="m%C3%A9:p%40ss%3Aw%0Ard@")
            )
            assert "p%40ss" not in repr(chat._session.settings)
            assert "p@ss" not in repr(chat._session.settings)
            with chat:
                pass
    wanted = base64.b64encode("mé:p@ss:w\nrd".encode()).decode()
    assert f"Proxy-Authorization: Basic {wanted}" in tunnel.requests[0].split("\r\n")
    assert b"Proxy-Authorization" not in tunnel.passed


def test_without_a_user_nothing_is_said() -> None:
    """A proxy without user gets no Proxy-Authorization."""
    with RawServer(Peer.serve) as server:
        tunnel = Tunnel(server.port)
        url = "ws://chat.example"
        with RawServer(tunnel.http) as proxy, FluxbaseAIChat(url, proxy=url_of(proxy)):
            pass
    assert ["CONNECT chat.example:80 HTTP/1.1", "Host: chat.example:80"] == tunnel.requests[
        0
    ].split("\r\n")


@pytest.mark.parametrize("reply", [b"HTTP/1.0 200 OK\r\n\r\n", b"HTTP/1.1 204\r\n\r\n"])
def test_any_2xx_is_a_tunnel(reply) -> None:
    """Every answer of success opens the tunnel, of HTTP/1.0 too."""
    with RawServer(Peer.serve) as server:
        tunnel = Tunnel(server.port)
        with (
            RawServer(lambda peer: tunnel.answer_http(peer, reply)) as proxy,
            FluxbaseAIChat("ws://chat.example", proxy=url_of(proxy)) as chat,
        ):
            assert "You said: Hi" == chat.ask("support", "Hi").text


@pytest.mark.parametrize(
    ("user", "hint"), [("", "put user:password@"), (f"me:{SECRET}@", "are its user and password")]
)
def test_407(user, hint) -> None:
    """A proxy that wants to know who is asking is an error that says what to do, once."""
    echo = base64.b64encode(f"me:{SECRET}".encode())

    def script(peer: Peer) -> None:
        peer.refuse("407 Proxy Authentication Required", SECRET.encode() + echo, {"X-Echo": SECRET})

    with RawServer(script) as proxy:
        error = failure(url_of(proxy, user=user))
        assert 1 == proxy.connections
    assert isinstance(error, ProxyError)
    assert hint in str(error)
    assert "407" in str(error)
    assert (False, False) == (error.sent, error.retryable)
    assert echo.decode() not in str(error)


REFUSALS = {
    "502": (b"HTTP/1.1 502 Bad Gateway\r\n\r\n", "refused to connect to chat.example: 502"),
    "403": (b"HTTP/1.1 403 Forbidden\r\n\r\n<html>", "403"),
    "redirect": (b"HTTP/1.1 302 Found\r\nLocation: http://evil.example\r\n\r\n", "302"),
    "100 first": (b"HTTP/1.1 100 Continue\r\n\r\n", "100"),
    "an upgrade": (b"HTTP/1.1 101 Switching Protocols\r\n\r\n", "101"),
    "more behind the head": (b"HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 101 OK\r\n\r\n", "more behind"),
    "junk": (b"\x05\x00hello", "does not speak HTTP"),
    "SSH": (b"SSH-2.0-OpenSSH_9.6\r\n", "does not speak HTTP"),
    "nothing": (b"", "closed without an answer"),
    "half a head": (b"HTTP/1.1 200 OK\r\nVia: a", "closed in the middle"),
    "not text": (b"HTTP/1.1 200 \xff\r\n\r\n", "not text"),
    "an endless line": (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 3_000_000, "64 KiB"),
    "endless lines": (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 10_000, "128 lines"),
}


@pytest.mark.parametrize(("reply", "why"), REFUSALS.values(), ids=REFUSALS.keys())
def test_refusals(reply, why) -> None:
    """Whatever a proxy answers that is no tunnel is a ProxyError that says why."""

    def script(peer: Peer) -> None:
        peer.read_request()
        peer.send_raw(reply)

    with RawServer(script) as proxy:
        error = failure(url_of(proxy, user=f"me:{SECRET}@"), timeouts=NO_LIMIT)
    assert ProxyError is type(error)
    assert why in str(error)
    assert f"proxy http://127.0.0.1:{proxy.port}" in str(error)
    assert error.sent is False


def test_endless_head_is_not_read(monkeypatch) -> None:
    """Of a proxy's head no more than 64 KiB are read."""
    taken = []
    recv = _proxy.read_head.__globals__["recv"]

    def counting(*args):
        taken.append(recv(*args))
        return taken[-1]

    def script(peer: Peer) -> None:
        peer.read_request()
        peer.send_raw(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 3_000_000)

    monkeypatch.setitem(_proxy.read_head.__globals__, "recv", counting)
    with RawServer(script) as proxy:
        assert ProxyError is type(failure(url_of(proxy)))
    assert 64 * 1024 == sum(map(len, taken))


def test_reset_by_the_proxy() -> None:
    """A proxy that resets the connection is a ProxyError with its cause."""

    def script(peer: Peer) -> None:
        peer.read_request()
        peer.rst()

    with RawServer(script) as proxy:
        error = failure(url_of(proxy))
    assert ProxyError is type(error)
    assert isinstance(error.__cause__, ConnectionResetError)


def test_proxy_is_down() -> None:
    """A proxy that cannot be reached is named, with its cause and without its password."""
    with refusing_port() as port:
        error = failure(f"http://me:{SECRET}@127.0.0.1:{port}", timeouts=NO_LIMIT)
    assert ProxyError is type(error)
    assert f"proxy http://127.0.0.1:{port}" in str(error)
    assert isinstance(error.__cause__, ConnectionRefusedError)
    assert error.retryable is True


def test_no_such_proxy(monkeypatch) -> None:
    """A proxy's name that does not exist is a ProxyError with its cause."""

    def unknown(*args, **options):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    error = failure("http://proxy.example:3128")
    assert ProxyError is type(error)
    assert isinstance(error.__cause__, socket.gaierror)


def test_proxy_whose_name_is_none() -> None:
    """A name that cannot be looked up at all is a ProxyError too."""
    assert ProxyError is type(failure("http://" + "x" * 70 + ".example:3128"))


def silent(peer: Peer) -> None:
    """Read all that comes, say nothing."""
    while True:
        peer.read_exactly(1)


def dribbling(peer: Peer) -> None:
    """Send an endless header line, a byte every 20 ms, until the client has enough."""
    peer.read_request()
    peer.send_raw(b"HTTP/1.1 200 OK\r\nX: ")
    while not select.select([peer.socket], [], [], 0.02)[0]:
        peer.send_raw(b"x")
    peer.read_exactly(1)


@pytest.mark.parametrize("script", [silent, dribbling])
@pytest.mark.parametrize("scheme", ["ws", "wss"])
def test_slow_proxy(script, scheme) -> None:
    """A proxy that does not come to an end is left at the deadline of the connect."""
    with RawServer(script) as proxy:
        chat = FluxbaseAIChat(f"{scheme}://chat.example", proxy=url_of(proxy))
        began = time.monotonic()
        with pytest.raises(ConnectTimeoutError, match="proxy .* did not answer") as caught:
            chat.connect(timeout=0.2)
        assert 0.2 <= time.monotonic() - began < 2
        assert caught.value.sent is False
        proxy.join()
        chat.disconnect()


def test_slow_server_behind_a_proxy() -> None:
    """The deadline goes on behind the proxy."""
    with RawServer(silent) as server:
        tunnel = Tunnel(server.port)
        with RawServer(tunnel.http) as proxy:
            chat = FluxbaseAIChat("ws://chat.example", proxy=url_of(proxy))
            with pytest.raises(ConnectTimeoutError, match="upgrade"):
                chat.connect(timeout=0.2)
            chat.disconnect()


def test_proxy_that_takes_no_connection() -> None:
    """A connection that the proxy does not take ends at the deadline, and says it is the proxy."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        proxy = f"http://127.0.0.1:{listener.getsockname()[1]}"
        error = failure(proxy, timeouts=Timeouts(connect=0.1))
        for filler in fillers:
            filler.close()
    assert ConnectTimeoutError is type(error)
    assert "proxy" in str(error)


@pytest.mark.parametrize("scheme", ["http", "socks5h"])
def test_disconnect_while_a_proxy_hangs(scheme) -> None:
    """A disconnect does not wait for a proxy."""
    if scheme == "socks5h":
        pytest.importorskip("python_socks")
    asked = Gate()

    def script(peer: Peer) -> None:
        peer.read_exactly(1)
        asked.open()
        silent(peer)

    with RawServer(script) as proxy:
        chat = FluxbaseAIChat("ws://chat.example", proxy=url_of(proxy, scheme), timeouts=NO_LIMIT)
        connecting = run(chat.connect)
        asked.wait()
        chat.disconnect(timeout=None)
        with pytest.raises(NotConnectedError):
            connecting.result()


def test_reconnects_through_the_proxy() -> None:
    """A lost connection is replaced by the same way."""
    heard = Heard()

    def cut(peer: Peer) -> None:
        peer.accept()

    with RawServer(cut, Peer.serve) as server:
        tunnel = Tunnel(server.port)
        with (
            RawServer(tunnel.http) as proxy,
            FluxbaseAIChat(
                "ws://chat.example", proxy=url_of(proxy), on_event=heard, reconnect_delay=0.01
            ),
        ):
            heard.wait_for_type("reconnected")
    assert [("chat.example", 80)] * 2 == tunnel.targets


# -- which way ------------------------------------------------------------------------------

PROXY = "http://proxy.example:3128"


def way(url: str, proxy: str | None = "env") -> str | None:
    """Return the proxy that a client of this URL would use."""
    settings = Settings(endpoint=url, proxy=proxy)
    found = _proxy._choose(settings)
    assert (found is None) == (_proxy.opener(settings) is None)
    return None if found is None else str(found).removeprefix("proxy ")


@pytest.mark.parametrize(
    ("name", "plain", "secure"),
    [
        ("http_proxy", PROXY, None),
        ("HTTP_PROXY", PROXY, None),
        ("https_proxy", None, PROXY),
        ("HTTPS_PROXY", None, PROXY),
        ("all_proxy", PROXY, PROXY),
        ("ALL_PROXY", PROXY, PROXY),
        ("ftp_proxy", None, None),
        ("ws_proxy", None, None),
    ],
)
@pytest.mark.parametrize("value", [PROXY, PROXY + "/", "proxy.example:3128"])
def test_environment(name, plain, secure, value, monkeypatch) -> None:
    """`http_proxy` is for ws://, `https_proxy` for wss://, `all_proxy` for both; in either case."""
    monkeypatch.setenv(name, value)
    assert plain == way("ws://chat.example")
    assert secure == way("wss://chat.example")
    assert way("ws://chat.example", None) is None


def test_environment_prefers_the_scheme_and_lower_case(monkeypatch) -> None:
    """The variable of the scheme wins over that for all, and lower case over upper."""
    monkeypatch.setenv("ALL_PROXY", "http://all.example")
    monkeypatch.setenv("HTTP_PROXY", "http://upper.example")
    assert "http://upper.example:80" == way("ws://chat.example")
    monkeypatch.setenv("http_proxy", "http://lower.example")
    assert "http://lower.example:80" == way("ws://chat.example")
    assert "http://all.example:80" == way("wss://chat.example")
    monkeypatch.setenv("http_proxy", "")
    assert "http://all.example:80" == way("ws://chat.example")


def test_environment_of_a_cgi_script(monkeypatch) -> None:
    """In a CGI script HTTP_PROXY is a header of the request (httpoxy), and is not believed."""
    monkeypatch.setenv("REQUEST_METHOD", "GET")
    monkeypatch.setenv("HTTP_PROXY", "http://evil.example")
    assert way("ws://chat.example") is None


@pytest.mark.parametrize("name", ["no_proxy", "NO_PROXY"])
@pytest.mark.parametrize(
    ("value", "direct"),
    [
        ("*", True),
        ("chat.example", True),
        ("CHAT.example", True),
        (".example", True),
        ("example", True),
        ("other.example, chat.example", True),
        ("chat.example:80", True),
        ("chat.example:81", False),
        ("hat.example", False),
        ("example.com", False),
        (",, ,", False),
        ("", False),
    ],
)
def test_no_proxy(name, value, direct, monkeypatch) -> None:
    """Hosts of `no_proxy` are reached directly, unless the caller has said a proxy himself."""
    monkeypatch.setenv("http_proxy", PROXY)
    monkeypatch.setenv(name, value)
    assert (None if direct else PROXY) == way("ws://chat.example")
    assert PROXY == way("ws://chat.example", PROXY)


def test_no_proxy_for_an_ipv6_address(monkeypatch) -> None:
    """An address with colons is known by `no_proxy` too."""
    monkeypatch.setenv("http_proxy", PROXY)
    monkeypatch.setenv("no_proxy", "fd00::1")
    assert way("ws://[fd00::1]") is None
    assert PROXY == way("ws://[fd00::2]")


JUNK = [
    "ftp://proxy.example",
    "https://proxy.example",
    "http://",
    "http://:80",
    "://",
    "http://proxy.example:port",
    "http://proxy.example:99999",
    "http://[::1",
    "\N{SNOWMAN}://\x7f",
    f"http://me:{SECRET}",
    f"me:{SECRET}",
    f"ftp://me:{SECRET}@proxy.example",
    f"http://me:{SECRET}/@proxy.example",
    f"http://me:{SECRET}@proxy.example:{SECRET}",
]


@pytest.mark.parametrize("value", JUNK)
def test_junk_in_the_environment(value, monkeypatch) -> None:
    """What is no proxy's URL is a ProxyError that says where it stands, and not what."""
    monkeypatch.setenv("http_proxy", value)
    error = failure("env")
    assert ProxyError is type(error)
    assert "environment" in str(error)
    assert error.retryable is False


def test_the_environment_is_used() -> None:
    """A client that was told so goes through the environment's proxy, as it is when it connects."""
    with RawServer(Peer.serve) as server:
        tunnel = Tunnel(server.port)
        with RawServer(tunnel.http) as proxy, pytest.MonkeyPatch.context() as patch:
            chat = FluxbaseAIChat("ws://chat.example", proxy="env")
            patch.setenv("http_proxy", url_of(proxy))
            with chat:
                assert "You said: Hi" == chat.ask("support", "Hi").text
    assert [("chat.example", 80)] == tunnel.targets


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.0.0.2"])
@pytest.mark.parametrize("how", ["env", "url"])
def test_s05_loopback_is_reached_directly(host, how, monkeypatch) -> None:
    """No proxy is asked for this machine itself, whoever has named it."""
    with refusing_port() as port:
        proxy = f"http://127.0.0.1:{port}"
        for name in ("http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.setenv(name, proxy)
        assert way(f"ws://{host}", "env" if how == "env" else proxy) is None
        if host != "127.0.0.2":
            with (
                RawServer(Peer.serve) as server,
                FluxbaseAIChat(
                    f"ws://{host}:{server.port}",
                    token="t0k3n",
                    proxy="env" if how == "env" else proxy,
                ) as chat,
            ):
                assert "You said: Hi" == chat.ask("support", "Hi").text


def test_s05_ipv6_loopback() -> None:
    """The other loopback is one, too."""
    assert way("ws://[::1]", PROXY) is None
    assert PROXY == way("ws://[::2]", PROXY)


# -- SOCKS ----------------------------------------------------------------------------------


@pytest.fixture
def lookup(monkeypatch) -> None:
    """Have chat.example in the name service, for who asks it."""
    getaddrinfo = socket.getaddrinfo

    def known(host, port, *args, **options):
        if host == "chat.example":
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.7", port or 0))]
        return getaddrinfo(host, port, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", known)


@pytest.mark.parametrize(
    ("scheme", "host", "user"),
    [
        ("socks5", "192.0.2.7", ""),
        ("socks5", "192.0.2.7", "me:pw@"),
        ("socks5h", "chat.example", ""),
        ("socks5h", "chat.example", "me:pw@"),
        ("socks4", "192.0.2.7", ""),
        ("socks4", "192.0.2.7", "me@"),
        ("socks4a", "chat.example", ""),
        ("socks4a", "chat.example", "me@"),
    ],
)
@pytest.mark.parametrize("tls", [False, True], ids=["ws", "wss"])
def test_socks(scheme, host, user, tls, lookup) -> None:
    """A chat goes through SOCKS; with an h or an a the proxy looks the name up."""
    pytest.importorskip("python_socks")
    theirs, ours = contexts() if tls else (None, None)
    with RawServer(Peer.serve, context=theirs) as server:
        name, _, password = user.rstrip("@").partition(":")
        tunnel = Tunnel(server.port, user=name, password=password)
        script = tunnel.socks5 if "5" in scheme else tunnel.socks4
        with (
            RawServer(script) as proxy,
            FluxbaseAIChat(
                f"{'wss' if tls else 'ws'}://chat.example:8443",
                token="t0k3n",
                allow_insecure=True,
                ssl_context=ours,
                proxy=url_of(proxy, scheme, user),
            ) as chat,
        ):
            assert "You said: Hi" == chat.ask("support", "Hi").text
    assert [(host, 8443)] == tunnel.targets


def test_socks_without_its_extra(monkeypatch) -> None:
    """Without python-socks the error has the pip line."""
    monkeypatch.setitem(sys.modules, "python_socks", None)
    error = failure(f"socks5://me:{SECRET}@proxy.example")
    assert MissingExtraError is type(error)
    assert isinstance(error, ImportError)
    assert "pip install 'fluxbase-aichat[socks]'" in str(error)


SOCKS_REFUSALS = {
    "refused by its rules": (b"\x05\x00", b"\x05\x02\x00\x01" + bytes(6), "not allowed"),
    "host unreachable": (b"\x05\x00", b"\x05\x04\x00\x01" + bytes(6), "unreachable"),
    "code that is none": (b"\x05\x00", b"\x05\x63\x00\x01" + bytes(6), "0X63"),
    "no method": (b"\x05\xff", b"", "No acceptable authentication"),
    "method that was not offered": (b"\x05\x01", b"", "method"),
    "not SOCKS": (b"HTTP/1.1 400 Bad Request\r\n\r\n", b"", "version"),
    "end before the method": (b"\x05", b"", "closed"),
    "end before the answer": (b"\x05\x00", b"\x05\x00", "closed"),
    "name that is no text": (b"\x05\x00", b"\x05\x00\x00\x03\x02\xff\xfe\x00\x50", "no sense"),
}


@pytest.mark.parametrize(
    ("method", "answer", "why"), SOCKS_REFUSALS.values(), ids=SOCKS_REFUSALS.keys()
)
def test_socks_refusals(method, answer, why) -> None:
    """What a SOCKS proxy answers that is no tunnel is a ProxyError that says why."""
    pytest.importorskip("python_socks")

    def script(peer: Peer) -> None:
        peer.read_exactly(3)
        peer.send_raw(method)
        if answer:
            peer.read_exactly(10)
            peer.send_raw(answer)

    with RawServer(script) as proxy:
        error = failure(url_of(proxy, "socks5h"), timeouts=NO_LIMIT)
    assert ProxyError is type(error)
    assert why in str(error)
    assert f"proxy socks5h://127.0.0.1:{proxy.port}" in str(error)


@pytest.mark.parametrize("scheme", ["socks5", "socks4"])
def test_socks_wrong_user(scheme, lookup) -> None:
    """Credentials that a SOCKS proxy refuses are a ProxyError without them."""
    pytest.importorskip("python_socks")
    tunnel = Tunnel(user="somebody", password="else")
    script = tunnel.socks5 if scheme == "socks5" else tunnel.socks4
    with RawServer(script) as proxy:
        error = failure(url_of(proxy, scheme, f"{SECRET}:{SECRET}@"))
    assert ProxyError is type(error)
    assert [] == tunnel.targets


@pytest.mark.parametrize("user", [f"me:{SECRET}%C3%A9@", f"me:{SECRET}{'x' * 256}@"])
def test_socks_password_that_cannot_be_sent(user) -> None:
    """A password that SOCKS cannot carry is told before the proxy is asked."""
    pytest.importorskip("python_socks")
    with refusing_port() as port:
        error = failure(f"socks5://{user}127.0.0.1:{port}")
    assert ProxyError is type(error)
    assert "ASCII" in str(error)
    assert error.retryable is False


def test_socks_proxy_is_down() -> None:
    """A SOCKS proxy that cannot be reached is a ProxyError with its cause."""
    pytest.importorskip("python_socks")
    with refusing_port() as port:
        error = failure(f"socks5h://me:{SECRET}@127.0.0.1:{port}")
    assert ProxyError is type(error)
    assert isinstance(error.__cause__, ConnectionRefusedError)


def test_socks_reset() -> None:
    """A SOCKS proxy that resets the connection is a ProxyError with its cause."""
    pytest.importorskip("python_socks")

    def script(peer: Peer) -> None:
        peer.read_exactly(3)
        peer.rst()

    with RawServer(script) as proxy:
        error = failure(url_of(proxy, "socks5h"))
    assert ProxyError is type(error)
    assert isinstance(error.__cause__, ConnectionResetError)


def test_socks_name_that_does_not_exist(monkeypatch) -> None:
    """A server's name that we have to look up ourselves, and that is none, is no proxy's fault."""
    pytest.importorskip("python_socks")
    getaddrinfo = socket.getaddrinfo

    def unknown(host, *args, **options):
        if host == "chat.example":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return getaddrinfo(host, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with RawServer(Tunnel().socks5) as proxy:
        error = failure(url_of(proxy, "socks5"))
    assert ConnectError is type(error)
    assert isinstance(error.__cause__, socket.gaierror)


def test_slow_socks_proxy() -> None:
    """A SOCKS proxy that does not answer is left at the deadline."""
    pytest.importorskip("python_socks")
    with RawServer(silent) as proxy:
        chat = FluxbaseAIChat("ws://chat.example", proxy=url_of(proxy, "socks5h"))
        began = time.monotonic()
        with pytest.raises(ConnectTimeoutError, match="did not answer"):
            chat.connect(timeout=0.2)
        assert 0.2 <= time.monotonic() - began < 2
        chat.disconnect()


def test_socks_that_comes_too_late() -> None:
    """A tunnel that opens when nobody wants it any more is closed again."""
    pytest.importorskip("python_socks")
    asked, over = Gate(), Gate()

    def script(peer: Peer) -> None:
        peer.read_exactly(3)
        asked.open()
        over.wait()
        peer.send_raw(b"\x05\x00")
        peer.read_exactly(19)
        peer.send_raw(b"\x05\x00\x00\x01" + bytes(6))
        silent(peer)  # ends with the connection

    waker = Waker()
    try:
        with RawServer(script) as proxy:
            opener = _proxy.opener(
                Settings(endpoint="ws://chat.example", proxy=url_of(proxy, "socks5h"))
            )
            assert opener is not None
            opening = run(opener, Deadline(None), waker)
            asked.wait()
            waker.stop()
            with pytest.raises(NotConnectedError):
                opening.result()
            assert "fluxbase-aichat-socks" in [thread.name for thread in threading.enumerate()]
            over.open()
            proxy.join()
    finally:
        waker.close()


def test_socks_that_comes_in_the_last_moment(monkeypatch) -> None:
    """A tunnel that is open while its opener is told to stop is closed, too."""
    pytest.importorskip("python_socks")
    call = _net.call

    def stopped(function, *args):
        call(function, *args)
        raise NotConnectedError("the client was disconnected")

    monkeypatch.setattr(_proxy, "call", stopped)
    waker = Waker()
    try:
        with RawServer(Peer.serve) as server:
            tunnel = Tunnel(server.port)
            with RawServer(tunnel.socks5) as proxy:
                opener = _proxy.opener(
                    Settings(endpoint="ws://chat.example", proxy=url_of(proxy, "socks5h"))
                )
                assert opener is not None
                with pytest.raises(NotConnectedError):
                    opener(Deadline(None), waker)
                proxy.join()
    finally:
        waker.close()
