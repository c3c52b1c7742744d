"""REST calls on the wire: what is sent, what a bad answer becomes, and what is asked again."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Callable
from typing import Any

import pytest
import trustme
from clocks import Pauses
from helpers import run
from proxies import Tunnel
from servers import WAIT, Gate, Peer, RawServer, refusing_port
from test_secrets import FEW, SECRET, WAYS, hidden, shown

from fluxbase_aichat import FluxbaseAI, Limits
from fluxbase_aichat.errors import (
    ApiError,
    AuthenticationError,
    ChatTimeoutError,
    ConfigurationError,
    ConnectError,
    ConnectionLostError,
    ConnectTimeoutError,
    FeatureDisabledError,
    FluxbaseChatError,
    NotFoundError,
    PermissionDeniedError,
    ProxyError,
    RateLimitError,
    RemoteProtocolError,
    TLSError,
)

NONE = b'{"chatbots":null,"count":0}'
ID = "65ae5306-d9bf-4a2f-9795-a43a24be31f9"


def saying(*answers: bytes) -> Callable[[Peer], None]:
    """Return a script that gives each connection the next of these raw answers."""

    def script(peer: Peer) -> None:
        read_call(peer)
        peer.send_raw(answers[min(peer.number, len(answers)) - 1])

    return script


def head(status: str, body: bytes = b"", *fields: str) -> bytes:
    """Return the bytes of an answer."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *fields, "", ""]
    return "\r\n".join(lines).encode() + body


def read_call(peer: Peer) -> bytes:
    """Read a request with its body; return the body."""
    if not peer.request:
        peer.read_request()
    return peer.read_exactly(int(peer.headers.get("content-length", "0")))


def api(server: RawServer, **options: Any) -> FluxbaseAI:
    """Return the REST side of a server."""
    return FluxbaseAI(server.url, **{"timeout": WAIT, **options})


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> Pauses:
    """Let no retry wait."""
    return Pauses(monkeypatch, "_api")


# -- what is sent ---------------------------------------------------------------------------


def test_request() -> None:
    """A call is one plain request that says who is asking, and asks for JSON."""
    with RawServer(saying(head("200 OK", NONE))) as server:
        assert [] == api(server, token="t0k3n", headers={"X-Own": "a: b"}).list_chatbots()
        peer = server.peer()
        assert "GET /api/v1/ai/chatbots HTTP/1.1" == peer.request.splitlines()[0]
        assert {
            "host": f"127.0.0.1:{server.port}",
            "accept-encoding": "identity",
            "connection": "close",
            "accept": "application/json",
            "x-own": "a: b",
            "authorization": "Bearer t0k3n",
        } == peer.headers


def test_body() -> None:
    """A body is JSON in UTF-8, with its length."""
    bodies = []

    def script(peer: Peer) -> None:
        bodies.append(read_call(peer))
        peer.send_raw(head("200 OK", b'{"title":"\xc3\xa9"}'))

    with RawServer(script) as server:
        assert "é" == api(server).update_conversation(ID, title="é").title
        assert server.peer().request.startswith(f"PATCH /api/v1/ai/conversations/{ID} ")
        assert "application/json" == server.peer().headers["content-type"]
    assert [b'{"title":"\xc3\xa9"}'] == bodies


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("", "/api/v1/ai/chatbots"),
        ("/", "/api/v1/ai/chatbots"),
        ("/ai/ws", "/api/v1/ai/chatbots"),
        ("/ai/ws/", "/api/v1/ai/chatbots"),
        ("/api/v1", "/api/v1/ai/chatbots"),
        ("/api/v1/ai/", "/api/v1/ai/chatbots"),
        ("/flux/ai/ws", "/flux/api/v1/ai/chatbots"),
        ("/flux/", "/flux/api/v1/ai/chatbots"),
        ("/flux?key=a%20b", "/flux/api/v1/ai/chatbots?key=a%20b"),
    ],
)
def test_path(path, expected) -> None:
    """What stands before the chat in the URL stands before the API too; its query stays."""
    with RawServer(saying(head("200 OK", NONE))) as server:
        FluxbaseAI(f"http://127.0.0.1:{server.port}{path}").list_chatbots()
        assert f"GET {expected} HTTP/1.1" == server.peer().request.splitlines()[0]


def test_token_in_the_query() -> None:
    """A token goes into the query where headers are eaten."""
    with RawServer(saying(head("200 OK", b'{"total":0}'))) as server:
        api(server, token="t+k", token_in_query=True).list_conversations(chatbot="a b&c=ü")
        target = server.peer().request.split(" ")[1]
        assert "authorization" not in server.peer().headers
    query = "chatbot=a+b%26c%3D%C3%BC&limit=50&offset=0&token=t%2Bk"
    assert f"/api/v1/ai/conversations?{query}" == target


@pytest.mark.parametrize(
    ("name", "segment"),
    [
        ("a/b", "a%2Fb"),
        ("a b?c#d%", "a%20b%3Fc%23d%25"),
        ("ü\n\0", "%C3%BC%0A%00"),
        ("...", "..."),
        ("a..b", "a..b"),
    ],
)
def test_names_are_percent_encoded(name, segment) -> None:
    """No name or id gets out of its place in the path."""
    with RawServer(saying(head("200 OK", b'{"chatbot":{"name":"x"}}'))) as server:
        assert "x" == api(server).lookup_chatbot(name).name
        assert f"/api/v1/ai/chatbots/by-name/{segment}" == server.peer().request.split(" ")[1]


@pytest.mark.parametrize("name", ["", "  ", ".", "..", "../x", "a/../b", "a\ud800", 5, None, b"x"])
def test_bad_names(name) -> None:
    """What cannot be a name or an id is refused before anything is sent."""
    with RawServer(Peer.serve) as server:
        for method in ("lookup_chatbot", "get_chatbot", "get_conversation", "get_usage"):
            with pytest.raises(ConfigurationError) as caught:
                getattr(api(server), method)(name)
            assert caught.value.sent is False
        with pytest.raises(ConfigurationError):
            api(server).delete_conversation(name)
        with pytest.raises(ConfigurationError):
            api(server).update_conversation(name, title="x")
        assert 0 == server.connections


def test_tls_and_its_refusal() -> None:
    """The connector is the chat's: it trusts whom the caller trusts, and nobody else."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    with RawServer(saying(head("200 OK", NONE)), context=context) as server:
        assert [] == api(server, ssl_context=trusting, token="t0k3n").list_chatbots()
        with pytest.raises(TLSError) as caught:
            api(server, token="t0k3n").list_chatbots()
        assert caught.value.sent is False
        assert 2 == server.connections


def test_proxy() -> None:
    """The way through a proxy is the chat's too."""
    with RawServer(saying(head("200 OK", NONE))) as server:
        tunnel = Tunnel(server.port)
        with RawServer(tunnel.http) as proxy:
            there = FluxbaseAI("http://chat.example", proxy=f"http://127.0.0.1:{proxy.port}")
            assert [] == there.list_chatbots()
        assert [("chat.example", 80)] == tunnel.targets
        assert "chat.example" == server.peer().headers["host"]


def test_proxy_that_refuses() -> None:
    """A proxy that wants a password is told as such, and asked once."""
    with RawServer(saying(head("407 Who?"))) as proxy:
        there = FluxbaseAI("http://chat.example", proxy=f"http://127.0.0.1:{proxy.port}")
        with pytest.raises(ProxyError):
            there.list_chatbots()
        assert 1 == proxy.connections


# -- what a bad answer becomes --------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "kind", "retryable"),
    [
        ("400 Bad Request", ApiError, False),
        ("401 Unauthorized", AuthenticationError, False),
        ("403 Forbidden", PermissionDeniedError, False),
        ("404 Not Found", NotFoundError, False),
        ("405 No", ApiError, False),
        ("409 Conflict", ApiError, False),
        ("418 Teapot", ApiError, False),
        ("429 Slow down", RateLimitError, True),
        ("500 Oops", ApiError, True),
        ("502 Oops", ApiError, True),
        ("503 Oops", ApiError, True),
    ],
)
def test_statuses(status, kind, retryable) -> None:
    """Each status is an error of its kind that says what the server said."""
    body = b'{"error":"It said so","code":"SOME_CODE"}'
    with RawServer(saying(head(status, body))) as server:
        with pytest.raises(kind) as caught:
            api(server).update_conversation(ID, title="x")
        error = caught.value
        assert f"update_conversation failed: {status[:3]} It said so" == error.args[0]
        assert (error.sent, error.retryable) == (True, retryable)
        if isinstance(error, ApiError):
            assert (error.status, error.code) == (int(status[:3]), "SOME_CODE")
            assert error.body == body.decode()
        assert 1 == server.connections
        assert ID not in shown(error)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_not_followed(status) -> None:
    """Where a redirect leads, the credentials do not go."""
    with RawServer(Peer.serve) as elsewhere:
        location = f"Location: {elsewhere.url}"
        with RawServer(saying(head(f"{status} Over there", b"", location))) as server:
            with pytest.raises(ApiError) as caught:
                api(server, token="t0k3n").list_chatbots()
            assert (caught.value.status, server.connections) == (status, 1)
            assert "redirects are not followed" in caught.value.hint
        assert 0 == elsewhere.connections


def test_switched_off() -> None:
    """A server without chat is told as such, and not asked again."""
    body = b'{"code":"FEATURE_DISABLED","error":"Feature is not enabled"}'
    with RawServer(saying(head("503 No", body))) as server:
        with pytest.raises(FeatureDisabledError):
            api(server).list_chatbots()
        assert 1 == server.connections


JUNK = {
    "no HTTP": b"SSH-2.0-OpenSSH_9.6\r\n",
    "no status": b"HTTP/1.1 OK\r\n\r\n",
    "a long head": b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000 + b"\r\n\r\n",
    "many lines": b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n",
    "no text": b"HTTP/1.1 200 \xff\r\n\r\n",
    "a line in a line": b"HTTP/1.1 200 OK\r\nX: y\nContent-Length: 2\r\n\r\n{}",
    "not JSON": head("200 OK", b"<html>"),
    "empty": head("200 OK"),
    "an array": head("200 OK", b"[]"),
    "not UTF-8": head("200 OK", b'{"chatbots":"\xff"}'),
    "deep": head("200 OK", b'{"a":' + b"[" * 100_000),
    "NaN": head("200 OK", b'{"chatbots":NaN}'),
    "no list": head("200 OK", b'{"chatbots":5}'),
    "no object in the list": head("200 OK", b'{"chatbots":[5]}'),
    "a number for a name": head("200 OK", b'{"chatbots":[{"name":5}]}'),
    "a text for a flag": head("200 OK", b'{"chatbots":[{"enabled":"yes"}]}'),
    "bad chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n" + b"x" * 99_999,
    "only interim answers": b"HTTP/1.1 103 Early\r\n\r\n" * 20,
}


@pytest.mark.parametrize("answer", JUNK.values(), ids=JUNK.keys())
def test_answers_that_cannot_be_read(answer) -> None:
    """Junk is the server's mistake: told at once, without quoting it, and not asked for again."""

    def staying(peer: Peer) -> None:
        read_call(peer)
        peer.send_raw(answer)
        peer.until_closed()

    for script in (staying, saying(answer)):
        with RawServer(script) as server:
            with pytest.raises(RemoteProtocolError) as caught:
                api(server).list_chatbots()
            assert caught.value.sent is True
            assert 1 == server.connections
        assert "html" not in str(caught.value)
        assert caught.value.__cause__ is None


CUT = {
    "before the head": b"",
    "in the head": b"HTTP/1.1 200 OK\r\nContent-Le",
    "behind the head": head("200 OK", NONE)[: -len(NONE)],
    "in the body": head("200 OK", NONE)[:-1],
    "in a chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\n{}",
    "between chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n",
}


@pytest.mark.parametrize("answer", CUT.values(), ids=CUT.keys())
def test_answers_that_end_too_early(answer, pauses: Pauses) -> None:
    """A part of an answer is none; where that is safe it is asked for again."""
    with RawServer(saying(answer, head("200 OK", NONE))) as server:
        with pytest.raises(ConnectionLostError) as caught:
            api(server).update_conversation(ID, title="x")
        assert caught.value.sent is True
    with RawServer(saying(answer, head("200 OK", NONE))) as server:
        assert [] == api(server).list_chatbots()
        assert 2 == server.connections


def test_resets(pauses: Pauses) -> None:
    """A connection that is reset is lost, with the system's word why."""

    def script(peer: Peer) -> None:
        read_call(peer)
        peer.rst()

    with RawServer(script) as server:
        with pytest.raises(ConnectionLostError) as caught:
            api(server).list_chatbots()
        assert isinstance(caught.value.__cause__, OSError)
        assert caught.value.sent is True
        assert 3 == server.connections


CHUNKED = b"""HTTP/1.1 200 OK\r
Transfer-Encoding: chunked\r
\r
5\r
{"cha\r
16\r
tbots":null,"count":0}\r
0\r
\r
"""


@pytest.mark.parametrize(
    "answer",
    [
        CHUNKED,
        b"HTTP/1.0 200 OK\r\n\r\n" + NONE,
        b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 100 Go on\r\n\r\n"
        + head("200 OK", NONE),
        head("200 OK", NONE + b" " * 100_000),
        head("206 Odd", NONE),
    ],
    ids=["chunked", "to the end of the stream", "behind interim answers", "long", "206"],
)
def test_answers_in_other_shapes(answer) -> None:
    """Whatever HTTP allows is read, also one byte at a time."""
    with RawServer(saying(answer)) as server:
        assert [] == api(server).list_chatbots()

    def dribble(peer: Peer) -> None:
        read_call(peer)
        for byte in answer[:400]:
            peer.send_raw(bytes([byte]))
        peer.send_raw(answer[400:])

    with RawServer(dribble) as server:
        assert [] == api(server).list_chatbots()


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_beyond_the_limit(chunked) -> None:
    """No more than the limit is read."""
    size = 5_000_000
    full = threading.Event()

    def script(peer: Peer) -> None:
        read_call(peer)
        field = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {size}"
        peer.send_raw(f"HTTP/1.1 200 OK\r\n{field}\r\n\r\n".encode())
        for _ in range(size // 1000):
            peer.send_raw(b"3e8\r\n" + b"x" * 1000 + b"\r\n" if chunked else b"x" * 1000)
        full.set()

    with RawServer(script) as server:
        with pytest.raises(RemoteProtocolError, match="larger than 1,000 bytes"):
            api(server, limits=Limits(message_bytes=1000)).list_chatbots()
        server.join()
    assert not full.is_set()


def test_a_body_of_the_limit() -> None:
    """What is as large as the limit is not too large."""
    with RawServer(saying(head("200 OK", NONE))) as server:
        assert [] == api(server, limits=Limits(message_bytes=len(NONE))).list_chatbots()


def test_the_body_of_an_error() -> None:
    """Of an error's body 8 KiB are kept; the rest is not waited for."""

    def script(peer: Peer) -> None:
        read_call(peer)
        peer.send_raw(b"HTTP/1.1 400 No\r\nContent-Length: 90000\r\n\r\n" + b"x" * 10_000)
        peer.until_closed()

    with RawServer(script) as server:
        with pytest.raises(ApiError) as caught:
            api(server).list_chatbots()
        assert "x" * 8192 == caught.value.body


def test_the_body_of_an_error_that_breaks() -> None:
    """The status tells what is wrong, also when its body does not come."""

    def script(peer: Peer) -> None:
        read_call(peer)
        peer.send_raw(b"HTTP/1.1 404 No\r\nTransfer-Encoding: chunked\r\n\r\nff\r\nxyz")

    with RawServer(script) as server, pytest.raises(NotFoundError):
        api(server).get_conversation(ID)


# -- deadlines ------------------------------------------------------------------------------


def test_no_answer() -> None:
    """A server that does not answer ends the call at its deadline, once."""

    def script(peer: Peer) -> None:
        read_call(peer)
        peer.until_closed()

    with RawServer(script) as server:
        with pytest.raises(ChatTimeoutError) as caught:
            api(server).list_chatbots(timeout=0.1)
        assert (caught.value.phase, caught.value.sent) == ("wait", True)
        assert 1 == server.connections


def test_half_an_answer() -> None:
    """The deadline counts to the last byte."""

    def script(peer: Peer) -> None:
        read_call(peer)
        peer.send_raw(head("200 OK", NONE)[:-1])
        peer.until_closed()

    with RawServer(script) as server, pytest.raises(ChatTimeoutError):
        api(server, timeout=0.1).list_chatbots()


def test_the_token_takes_too_long() -> None:
    """A token that does not come is left behind at the deadline."""
    over = Gate()

    def token() -> str:
        over.wait()
        return "t0k3n"

    with RawServer(Peer.serve) as server:
        with pytest.raises(ConnectTimeoutError):
            api(server, token=token, timeout=0.1).list_chatbots()
        over.open()
        assert 0 == server.connections


@pytest.mark.parametrize("timeout", [0, -1, "5", float("nan"), True])
def test_bad_timeouts(timeout) -> None:
    """What is no number of seconds is refused, in the constructor and in a call."""
    with pytest.raises(ConfigurationError, match="timeout"):
        FluxbaseAI("https://chat.example", timeout=timeout)
    with pytest.raises(ConfigurationError, match="timeout"):
        FluxbaseAI("https://chat.example").list_chatbots(timeout=timeout)


# -- what is asked again --------------------------------------------------------------------


def test_retries(pauses: Pauses) -> None:
    """What changes nothing is asked three times, after jittered delays that grow."""
    with RawServer(saying(head("503 Later"))) as server:
        with pytest.raises(ApiError) as caught:
            api(server).list_chatbots()
        assert (caught.value.status, server.connections) == (503, 3)
    first, second = pauses.seconds
    assert 0.25 <= first <= 0.5
    assert 0.5 <= second <= 1.0


def test_a_retry_that_helps(pauses: Pauses) -> None:
    """The answer of a later attempt is the answer."""
    with RawServer(saying(head("502 Later"), b"", head("200 OK", NONE))) as server:
        assert [] == api(server).list_chatbots()
        assert 3 == server.connections


def test_a_refused_port_is_tried_again(pauses: Pauses) -> None:
    """Nothing was sent, and the error says how often it was tried."""
    with refusing_port() as port, pytest.raises(ConnectError) as caught:
        FluxbaseAI(f"http://127.0.0.1:{port}").list_chatbots()
    assert (caught.value.attempts, caught.value.sent) == (3, False)
    assert f"cannot connect to http://127.0.0.1:{port}/api/v1" in str(caught.value)
    assert 2 == len(pauses.seconds)


def test_what_changes_something_is_asked_once(pauses: Pauses) -> None:
    """A new title is not sent twice, whatever happens."""
    for answer in (head("503 Later"), head("429 Slow", b"", "Retry-After: 0"), b""):
        with RawServer(saying(answer)) as server:
            with pytest.raises(FluxbaseChatError):
                api(server).update_conversation(ID, title="x")
            assert 1 == server.connections
    assert [] == pauses.seconds


def test_a_deletion_whose_answer_was_lost(pauses: Pauses) -> None:
    """What is gone at the second attempt was deleted by the first."""
    gone = head("404 Not Found", b'{"error":"Conversation not found"}')
    with RawServer(saying(b"", gone)) as server:
        api(server).delete_conversation(ID)
        assert 2 == server.connections
    for first in (gone, head("429 Slow down", b"", "Retry-After: 0")):
        with RawServer(saying(first, gone)) as server, pytest.raises(NotFoundError):
            api(server).delete_conversation(ID)


@pytest.mark.parametrize(
    ("retry_after", "waited"), [("2", 2.0), ("0", None), ("junk", None), ("1000000", 60.0)]
)
def test_retry_after(retry_after, waited, pauses: Pauses) -> None:
    """Retry-After is waited for, within reason."""
    limited = head("429 Slow down", b"", f"Retry-After: {retry_after}")
    with RawServer(saying(limited, head("200 OK", NONE))) as server:
        assert [] == api(server, timeout=None).list_chatbots()
    (seconds,) = pauses.seconds
    assert seconds == waited if waited else 0.25 <= seconds <= 0.5


def test_no_retry_beyond_the_deadline(pauses: Pauses) -> None:
    """An error is told now, when its time to try again is behind the deadline."""
    with RawServer(saying(head("503 Later", b"", "Retry-After: 30"))) as server:
        with pytest.raises(ApiError) as caught:
            api(server).list_chatbots()
        assert (caught.value.retry_after, server.connections) == (30.0, 1)
    assert [] == pauses.seconds


def test_an_odd_id_is_not_asked_for_again(pauses: Pauses) -> None:
    """A server answers 500 to an id that is no UUID; that is told as what it is."""
    body = b'{"error":"Failed to get conversation"}'
    with RawServer(saying(head("500 Oops", body))) as server:
        with pytest.raises(NotFoundError, match="no UUID") as caught:
            api(server).get_conversation("not-a-uuid")
        assert (caught.value.status, server.connections) == (500, 1)
        with pytest.raises(ApiError) as caught_again:
            api(server).get_conversation(ID)
        assert not isinstance(caught_again.value, NotFoundError)
        assert 4 == server.connections


@pytest.mark.parametrize("call", ["lookup_chatbot", "get_chatbot", "get_usage"])
def test_a_chatbot_of_a_server_that_fails(call, pauses: Pauses) -> None:
    """A name is no UUID either: its 500 is told as a failure, asked again, and found by then."""
    with RawServer(saying(head("500 Oops"))) as server:
        with pytest.raises(ApiError, match=f"{call} failed: 500") as caught:
            getattr(api(server), call)("support")
        assert not isinstance(caught.value, NotFoundError)
        assert (True, 3) == (caught.value.retryable, server.connections)
    with RawServer(saying(head("500 Oops"), head("200 OK", b'{"name":"support"}'))) as server:
        getattr(api(server), call)("support")
        assert 2 == server.connections


# -- the token ------------------------------------------------------------------------------


def test_a_callable_token_is_asked_for_each_call() -> None:
    """And once more when it was refused: also for what must not be done twice."""
    tokens = iter(["one", "two", "three"])

    def script(peer: Peer) -> None:
        read_call(peer)
        good = peer.headers["authorization"] != "Bearer two"
        peer.send_raw(head("200 OK", b"{}") if good else head("401 No"))

    with RawServer(script) as server:
        there = api(server, token=lambda: next(tokens))
        there.list_chatbots()
        there.update_conversation(ID, title="x")
        seen = [server.peer(number).headers["authorization"] for number in (1, 2, 3)]
    assert ["Bearer one", "Bearer two", "Bearer three"] == seen


def test_a_token_that_stays_refused() -> None:
    """Two refusals are final."""
    with RawServer(saying(head("401 No"))) as server:
        with pytest.raises(AuthenticationError):
            api(server, token=lambda: "t0k3n").list_chatbots()
        with pytest.raises(AuthenticationError):
            api(server, token="t0k3n").list_chatbots()
        assert 3 == server.connections


# -- secrets --------------------------------------------------------------------------------

ECHOES = {
    "in the error": lambda said: json.dumps({"error": f"bad {said}", "code": said}).encode(),
    "in the body": lambda said: f"<p>{said}</p>".encode(),
}


@pytest.mark.parametrize("way", [WAYS[name] for name in FEW], ids=FEW)
@pytest.mark.parametrize("echo", ECHOES.values(), ids=ECHOES.keys())
@pytest.mark.parametrize("status", ["400 No", "401 No", "404 No", "429 No", "500 No"])
def test_an_echoed_secret(way, echo, status) -> None:
    """What the server echoes of the credentials is in no error."""
    with RawServer(saying(head(status, echo(SECRET)))) as server:
        with pytest.raises(FluxbaseChatError) as caught:
            api(server, **way).update_conversation(ID, title="x")
        hidden(shown(caught.value))


def test_a_secret_in_the_url_s_query() -> None:
    """The query of the URL is in no error and no repr either."""
    with refusing_port() as port:
        there = FluxbaseAI(f"http://127.0.0.1:{port}?key={SECRET}", token=SECRET, timeout=0.1)
        hidden(repr(there))
        with pytest.raises(ConnectError) as caught:
            there.list_chatbots()
    hidden(shown(caught.value))


@pytest.mark.parametrize(
    "options",
    [{"token": "t0k3n"}, {"service_key": "t0k3n"}, {"headers": {"Authorization": "Basic x"}}],
)
def test_credentials_do_not_cross_the_network_in_the_open(options) -> None:
    """As for a chat, unless that is allowed."""
    with pytest.raises(ConfigurationError, match="allow_insecure=True"):
        FluxbaseAI("http://chat.example", **options)
    FluxbaseAI("http://chat.example", allow_insecure=True, **options)
    FluxbaseAI("https://chat.example", **options)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"url": "chat.example"}, "url must begin with"),
        ({"url": ""}, "url must be the server's URL"),
        ({"url": f"https://u:{SECRET}@chat.example"}, "url must not hold a user name"),
        ({"url": "https://chat.example", "token": "a", "service_key": "b"}, "token or service_key"),
        ({"url": "https://chat.example", "ssl_context": 5}, "ssl_context"),
        ({"url": "https://chat.example", "serviceKey": "b"}, "did you mean service_key"),
    ],
)
def test_bad_parameters(options, said) -> None:
    """A wrong parameter is named at construction."""
    with pytest.raises(ConfigurationError, match=said) as caught:
        FluxbaseAI(**options)
    hidden(shown(caught.value))


# -- threads --------------------------------------------------------------------------------


def test_many_threads() -> None:
    """One object serves any number of threads at once."""
    together = threading.Barrier(8)

    def script(peer: Peer) -> None:
        read_call(peer)
        together.wait(WAIT)  # all are under way
        peer.send_raw(head("200 OK", NONE))

    with RawServer(script) as server:
        there = api(server)
        calls = [run(there.list_chatbots) for _ in range(8)]
        assert [[]] * 8 == [call.result() for call in calls]
