"""Secrets stay where they belong: in no error, log line, repr or traceback, also when echoed."""

from __future__ import annotations

import copy
import json
import logging
import pickle
import threading
import time
import traceback
from collections.abc import Iterator
from typing import Any

import pytest
import websocket
from helpers import Heard
from servers import (
    CLOSE,
    WAIT,
    Gate,
    Peer,
    RawServer,
    accept_token,
    content,
    done,
    error,
    frame,
    refusing_port,
)
from websocket._cookiejar import SimpleCookieJar

from fluxbase_aichat import FluxbaseAIChat
from fluxbase_aichat.config import Settings
from fluxbase_aichat.errors import (
    ConfigurationError,
    ConnectionLostError,
    FluxbaseChatError,
    HandshakeError,
    RemoteProtocolError,
)

SECRET = "eyJzM2NyZXQ.c2VjcmV0LXNlY3JldA.s3cr3t"
CID = "c-1"

WAYS: dict[str, dict[str, Any]] = {
    "token": {"token": SECRET},
    "callable token": {"token": lambda: SECRET},
    "token in the query": {"token": SECRET, "token_in_query": True},
    "service key": {"service_key": SECRET},
    "own header": {"headers": {"X-Api-Key": SECRET}},
    "own credentials": {"headers": {"Authorization": f"Bearer {SECRET}"}},
    "cookie": {"headers": {"Cookie": f"a=b; session={SECRET}"}},
    "query of the URL": {"query": f"?v=1&apikey={SECRET}"},
}
ways = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
# Where nothing is quoted at all, it does not matter how the secret went there.
FEW = ["token", "token in the query", "own header"]
few_ways = pytest.mark.parametrize("way", [WAYS[name] for name in FEW], ids=FEW)


def client(server: RawServer, way: dict[str, Any], **options: Any) -> FluxbaseAIChat:
    """Return a client of that server with a secret."""
    options = {**way, **options}
    return FluxbaseAIChat(server.url + options.pop("query", ""), **options)


def shown(problem: BaseException) -> str:
    """Return all that an error shows: its texts and attributes, and those of what led to it."""
    parts = ["".join(traceback.format_exception(problem))]
    one: BaseException | None = problem
    while one is not None:
        parts += [str(one), repr(one), repr(one.args), repr(vars(one))]
        one = one.__cause__ or (None if one.__suppress_context__ else one.__context__)
    if isinstance(problem, FluxbaseChatError):
        again = pickle.loads(pickle.dumps(copy.copy(problem)))
        parts += [repr(again), repr(vars(again))]
    return "\n".join(parts)


def hidden(text: str) -> None:
    """Check that a text has nothing of the secret, not even its beginning."""
    assert SECRET not in text
    assert SECRET[:12] not in text


@pytest.fixture(autouse=True)
def log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """Listen to every logger at DEBUG; in the end no record may show the secret."""
    for name in ("", "fluxbase_aichat", "websocket"):
        caplog.set_level(logging.DEBUG, logger=name)
    yield caplog
    for record in caplog.get_records("call"):
        hidden(record.getMessage() + repr(record.args))
        if record.exc_info:
            hidden("".join(traceback.format_exception(*record.exc_info)))


# -- what a server echoes in the handshake --------------------------------------------------

ECHOES = {
    "JSON": lambda echo: json.dumps({"error": f"bad credentials: {echo}", "code": echo}),
    "HTML": lambda echo: f"<html>{echo}</html>",
    "shortened": lambda echo: json.dumps({"error": f"bad token {echo[:14]}…"}),
    "cut by the limit": lambda echo: "x" * 8175 + echo,
}


@ways
@pytest.mark.parametrize("echo", ECHOES.values(), ids=ECHOES.keys())
@pytest.mark.parametrize("status", [401, 403, 429, 503])
def test_refusals(way, echo, status) -> None:
    """A server that refuses and says all it was told leaks nothing of it."""
    if "headers" in way or "query" in way:
        # Of what may be no secret only the whole is one.
        echo = ECHOES["JSON"] if echo is ECHOES["shortened"] else echo
        echo = ECHOES["HTML"] if echo is ECHOES["cut by the limit"] else echo

    def script(peer: Peer) -> None:
        peer.read_request()
        assert SECRET in peer.request
        peer.refuse(
            f"{status} {SECRET}",
            echo(SECRET).encode(),
            {"X-Echo": SECRET, "Set-Cookie": f"a={SECRET}", "WWW-Authenticate": SECRET},
        )

    with RawServer(script) as server:
        chat = client(server, way)
        with pytest.raises(FluxbaseChatError) as caught:
            chat.connect()
        assert str(status) in str(caught.value)
        hidden(shown(caught.value))
        hidden(repr(chat))
        chat.disconnect()


HEADS = {
    "redirect": f"HTTP/1.1 302 Found\r\nLocation: ws://evil.example/?token={SECRET}\r\n\r\n",
    "wrong accept": "HTTP/1.1 101 OK\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    f"Sec-WebSocket-Accept: {SECRET}\r\n\r\n",
    "subprotocol": f"HTTP/1.1 101 OK\r\nSec-WebSocket-Protocol: {SECRET}\r\n\r\n",
    "no field": f"HTTP/1.1 101 OK\r\n{SECRET}\r\n\r\n",
    "no HTTP": f"{SECRET}\r\n\r\n",
    "status line": f"HTTP/1.1 {SECRET}\r\n\r\n",
    "not UTF-8": f"HTTP/1.1 101 OK\r\nX: {SECRET}\xff\r\n\r\n",
    "half a head": f"HTTP/1.1 101 OK\r\nX: {SECRET}",
}


@few_ways
@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS.keys())
def test_bad_heads(way, head) -> None:
    """A head that is no answer to us is not quoted, and no redirect is followed."""

    def script(peer: Peer) -> None:
        peer.read_request()
        peer.send_raw(head.encode("latin-1"))

    with RawServer(script) as server:
        with pytest.raises(HandshakeError) as caught, client(server, way):
            pass
        assert 1 == server.connections
    hidden(shown(caught.value))


@ways
def test_connection_that_cannot_be_opened(way) -> None:
    """Errors name the server without the query of its URL."""
    options = dict(way)
    with refusing_port() as port:
        url = f"ws://127.0.0.1:{port}/ai/ws{options.pop('query', '')}"
        with pytest.raises(FluxbaseChatError) as caught, FluxbaseAIChat(url, **options):
            pass
    hidden(shown(caught.value))


# -- what a server echoes later -------------------------------------------------------------


def failed_turn(way: dict[str, Any], *frames: bytes) -> tuple[FluxbaseChatError, Heard, Heard]:
    """Have a server end a turn with these bytes; return the error and what was told."""

    def script(peer: Peer) -> None:
        peer.accept()
        peer.start(CID)
        peer.message()
        peer.send_raw(b"".join(frames))
        peer.until_closed()

    told, events = Heard(), Heard()
    with (
        RawServer(script) as server,
        client(server, way, on_error=told, on_event=events, reconnect_attempts=0) as chat,
    ):
        talk = chat.conversation("support")
        turn = talk.send("Hi")
        with pytest.raises(FluxbaseChatError) as caught:
            turn.result()
        assert turn.wait(WAIT)
        hidden(f"{chat!r} {talk!r} {turn!r} {turn.error!r} {vars(turn.error)!r}")
        with pytest.raises(FluxbaseChatError) as again:
            list(turn)
        hidden(shown(again.value))
    hidden(shown(caught.value))
    return caught.value, told, events


@ways
@pytest.mark.parametrize("code", ["", "STREAM_ERROR", "AUTH_REQUIRED", "CHATBOT_NOT_FOUND", SECRET])
@pytest.mark.parametrize("addressed", [True, False])
def test_error_messages(way, code, addressed) -> None:
    """An `error` that echoes the secret is an error without it, for callbacks too."""
    message = error(f"no access with {SECRET}", code, CID if addressed else "")
    problem, told, events = failed_turn(way, text_frame(message))
    assert "no access with ***" in str(problem)
    hidden(repr(told.items))
    hidden(repr(events.items))


def text_frame(message: Any) -> bytes:
    """Return the frame of a message."""
    return frame(1, json.dumps(message).encode())


@ways
def test_error_of_a_start(way) -> None:
    """A start that is refused with the secret in it is refused without it."""

    def script(peer: Peer) -> None:
        peer.accept()
        peer.recv_json()
        peer.send_text(error(f"no chatbot for {SECRET}", "CHATBOT_NOT_FOUND"))
        peer.until_closed()

    with (
        RawServer(script) as server,
        client(server, way) as chat,
        pytest.raises(FluxbaseChatError) as caught,
    ):
        chat.start_chat("support")
    hidden(shown(caught.value))


@ways
def test_close_reasons(way) -> None:
    """The reason of a close frame is told without the secret."""
    reason = f"bad token {SECRET}"[:123].encode()
    problem, told, events = failed_turn(way, frame(CLOSE, (1008).to_bytes(2) + reason))
    assert isinstance(problem, ConnectionLostError)
    assert "1008 bad token ***" in str(problem)
    hidden(repr(told.items))
    hidden(repr([getattr(event, "reason", "") for event in events.items]))


MALFORMED = {
    "not JSON": frame(1, SECRET.encode()),
    "a JSON string": frame(1, json.dumps(SECRET).encode()),
    "not UTF-8": frame(1, SECRET.encode() + b"\xff"),
    "unusable field": frame(
        1, json.dumps({**content(CID, ""), "delta": {SECRET: SECRET}}).encode()
    ),
    "bad opcode": frame(0x3, SECRET.encode()),
    "compressed": frame(1, SECRET.encode(), rsv=4),
    "bad close": frame(CLOSE, b"\x03\xe8" + SECRET.encode() + b"\xff"),
    "stray continuation": frame(0x0, SECRET.encode()),
    "long ping": frame(0x9, SECRET.encode() * 4),
}


@few_ways
@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED.keys())
def test_what_breaks_the_protocol(way, data) -> None:
    """What cannot be read is not quoted."""
    problem, told, _ = failed_turn(way, data)
    assert isinstance(problem, (RemoteProtocolError, ConnectionLostError))
    hidden(repr(told.items))


@ways
def test_unknown_types(way, log) -> None:
    """A type of message that is unknown is logged without the secret, and not at any length."""

    def script(peer: Peer) -> None:
        peer.accept()
        peer.start(CID)
        peer.message()
        peer.send_text({"type": f"x-{SECRET}"}, {"type": "y" * 100_000}, done(CID))
        peer.until_closed()

    with RawServer(script) as server, client(server, way) as chat:
        chat.ask("support", "Hi")
    records = [record.getMessage() for record in log.records if "unknown" in record.getMessage()]
    assert records
    assert max(map(len, records)) < 1000


# -- what a client shows of itself ----------------------------------------------------------


@ways
def test_s07_whole_life(way, monkeypatch, log) -> None:
    """In a chat with everything logged, no log, repr or thread's name shows a secret (S07)."""
    traced = []
    monkeypatch.setattr(websocket, "enableTrace", lambda *_, **__: traced.append(1))
    cut = Gate()

    def first(peer: Peer) -> None:
        peer.accept(headers={"Set-Cookie": f"a={SECRET}", "X-Echo": SECRET})
        peer.start(CID)
        peer.answer("one")
        cut.wait()
        peer.rst()

    def fails(*_: object) -> None:
        raise ValueError("a callback's own")

    events = Heard()
    with (
        RawServer(first, Peer.serve) as server,
        client(server, way, on_content=fails, on_event=events, reconnect_delay=0.01) as chat,
    ):
        talk = chat.conversation("support")
        turn = talk.send("Hi")
        turn.result()
        names = " ".join(thread.name for thread in threading.enumerate())
        cut.open()
        events.wait_for_type("reconnected")
        assert "You said: again" == talk.ask("again").text
        assert chat.wait_idle(WAIT)
        hidden(f"{chat!r} {talk!r} {turn!r} {chat._session.settings!r} {names}")
        hidden(repr(events.items))
        assert "fluxbase-aichat-io" in names
    assert [] == traced
    assert not websocket._logging._traceEnabled
    assert log.records  # the callback's failure


def test_settings_show_no_secrets() -> None:
    """No repr of the settings has a secret in it."""
    settings = Settings(
        endpoint=f"wss://h/?apikey={SECRET}",
        token=SECRET,
        headers={"X-Api-Key": SECRET},
        proxy=f"http://me:{SECRET}@proxy.example",
    )
    hidden(f"{settings!r} {settings} {settings.endpoint} {settings.proxy} {settings.proxy!r}")
    hidden(repr(Settings(endpoint="wss://h", service_key=SECRET)))


@pytest.mark.parametrize(
    "options",
    [
        {"ws_url": f"wss://me:{SECRET}"},
        {"ws_url": f"wss://me:{SECRET}@chat.example"},
        {"ws_url": f"wss://me:x@chat.example:{SECRET}"},
        {"ws_url": f"wss://chat.example#{SECRET}"},
        {"ws_url": f"wss://chat.example/?token={SECRET} "},
        {"ws_url": f"{SECRET}://chat.example"},
        {"proxy": f"http://me:{SECRET}"},
        {"proxy": f"http://me:{SECRET}/x@proxy.example"},
        {"proxy": f"ftp://me:{SECRET}@proxy.example"},
        {"proxy": f"http://me:{SECRET}@"},
        {"proxy": f"http://me:{SECRET}@[proxy"},
        {"headers": {"X-Api-Key": f"{SECRET}\n"}},
        {"headers": {f"{SECRET} ": "x"}},
    ],
)
def test_configuration_errors(options) -> None:
    """What is wrong with a parameter is said without it, where it may hold a secret."""
    with pytest.raises(ConfigurationError) as caught:
        FluxbaseAIChat(**{"ws_url": "wss://chat.example", **options})
    hidden(shown(caught.value))


# -- cookies --------------------------------------------------------------------------------


@pytest.fixture
def jar(monkeypatch) -> SimpleCookieJar:
    """Give the cookie jar that all of websocket-client's users in a process share, empty."""
    jar = SimpleCookieJar()
    monkeypatch.setattr(websocket._handshake, "CookieJar", jar)
    return jar


SET_COOKIE = [
    "Set-Cookie: a=b; Domain=127.0.0.1",
    "set-cookie:a=b; Domain=127.0.0.1",
    "SET-COOKIE : a=b; Domain=127.0.0.1",
    " Set-Cookie: a=b; Domain=127.0.0.1",
    "\tSet-Cookie: a=b; Domain=127.0.0.1",
    "\u00a0Set-Cookie: a=b; Domain=127.0.0.1",
    "Set-Coo\u212aie: a=b; Domain=127.0.0.1",
    "X: y\nSet-Cookie: a=b; Domain=127.0.0.1",
    "X: y\n Set-Cookie: a=b; Domain=127.0.0.1",
    "Set-Cookie: a=b; Domain=127.0.0.1\r\nSet-Cookie: c=d; Domain=127.0.0.1",
]


@pytest.mark.parametrize("line", SET_COOKIE)
@pytest.mark.parametrize("status", [101, 401, 302])
def test_cookies_are_not_kept(line, status, jar) -> None:
    """However a server sets a cookie, no later client of the process will send it."""

    def script(peer: Peer) -> None:
        peer.read_request()
        peer.accepted = True
        token = accept_token(peer.headers["sec-websocket-key"])
        head = f"HTTP/1.1 {status} OK\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        peer.send_raw(f"{head}Sec-WebSocket-Accept: {token}\r\n{line}\r\n\r\n".encode())
        if status == 101:
            peer.until_closed()

    with RawServer(script) as server:
        try:
            with FluxbaseAIChat(server.url):
                pass
        except FluxbaseChatError:
            assert status != 101 or "\n" in line.replace("\r\n", "")
    assert {} == jar.jar


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        (None, []),
        ({"X": "y"}, []),
        ({"Cookie": "own=1"}, ["own=1"]),
        ({"cookie": "own=1"}, ["own=1"]),
        ({"Cookie": "own=1", "X": "y"}, ["own=1"]),
        ({"X": "y", "Cookie": "own=1"}, ["own=1"]),
    ],
)
@pytest.mark.parametrize("token", [None, "t0k3n"])
def test_cookies_of_others_are_not_sent(own, expected, token, jar) -> None:
    """What another client was told to keep is not sent; the caller's own cookies are."""
    jar.add(f"other={SECRET}; Domain=127.0.0.1")
    assert SECRET in jar.get("127.0.0.1")
    seen = []

    def script(peer: Peer) -> None:
        lines = peer.read_request().split("\r\n")
        seen.extend(line for line in lines if line.lower().startswith("cookie"))
        peer.serve()

    with (
        RawServer(script) as server,
        FluxbaseAIChat(server.url, token=token, headers=own) as chat,
    ):
        assert "You said: Hi" == chat.ask("support", "Hi").text
    assert expected == [line.partition(": ")[2] for line in seen]


# -- the callable ---------------------------------------------------------------------------


def test_token_callable_that_returns_junk() -> None:
    """What a token() returns that is no token is not quoted."""
    with RawServer(Peer.serve) as server:
        chat = FluxbaseAIChat(server.url, token=lambda: SECRET + "\n")
        with pytest.raises(FluxbaseChatError) as caught:
            chat.connect()
        chat.disconnect()
    hidden(shown(caught.value))


def test_token_callable_that_times_out_by_itself() -> None:
    """A TimeoutError of token()'s own is its failure: also without a deadline nobody hangs."""

    def token() -> str:
        raise TimeoutError("no answer of the token server")

    with RawServer(Peer.serve) as server:
        for seconds in (WAIT, None):
            chat = FluxbaseAIChat(server.url, token=token)
            began = time.monotonic()
            with pytest.raises(FluxbaseChatError, match="token") as caught:
                chat.connect(timeout=seconds)
            assert time.monotonic() - began < 2
            assert isinstance(caught.value.__cause__, TimeoutError)
            chat.disconnect()
