"""The opening handshake's head: read within its bounds, explained without its secrets."""

from __future__ import annotations

import base64
import datetime as dt
import email.utils
import json
import socket
import time
from collections.abc import Iterator

import pytest
from helpers import Running, run
from hypothesis import given
from hypothesis import strategies as st
from servers import Peer, RawServer

from fluxbase_aichat import FluxbaseAIChat, _handshake
from fluxbase_aichat._deadline import Deadline
from fluxbase_aichat._handshake import Redactor, read_body, read_head, refusal, request_headers
from fluxbase_aichat._net import Waker
from fluxbase_aichat.config import Settings
from fluxbase_aichat.errors import (
    AuthenticationError,
    FeatureDisabledError,
    HandshakeError,
    NotConnectedError,
    RateLimitError,
)

OK = b"HTTP/1.1 101 OK\r\n"


class Answer:
    """One end of a socket pair that a server writes an answer to."""

    def __init__(self) -> None:
        self.ours, self.theirs = socket.socketpair()
        self.ours.setblocking(False)
        self.waker = Waker()
        self._sending: Running[None] | None = None

    def send(self, data: bytes, *, end: bool = True) -> None:
        """Write it all, from a thread; then end the stream."""

        def write() -> None:
            try:
                self.theirs.sendall(data)
                if end:
                    self.theirs.shutdown(socket.SHUT_WR)
            except OSError:
                pass  # it was refused before all of it was read

        self._sending = run(write)

    def head(self, data: bytes, seconds: float | None = 5.0) -> _handshake.Head:
        """Read the head of that answer."""
        self.send(data)
        return read_head(self.ours, Deadline(seconds), self.waker)

    def close(self) -> None:
        """Free all of it."""
        self.ours.close()
        if self._sending is not None:
            self._sending.result()
        self.theirs.close()
        self.waker.close()


@pytest.fixture
def answer() -> Iterator[Answer]:
    """Give an answer to write."""
    one = Answer()
    yield one
    one.close()


def line_of(size: int) -> bytes:
    """Return a field of so many bytes, its end included."""
    return b"X: " + b"x" * (size - 5) + b"\r\n"


# -- the head -------------------------------------------------------------------------------


def test_head_and_what_is_behind_it(answer) -> None:
    """A head is its status, its fields and the bytes that came with it."""
    head = answer.head(OK + b"Upgrade:  websocket \r\nA: 1\r\na: 2\r\nEmpty:\r\n\r\n\x81\x00")
    assert 101 == head.status
    assert b"\x81\x00" == head.rest
    assert "websocket" == head.get("upgrade")
    assert "1" == head.get("a")
    assert head.get("empty") == ""
    assert head.get("http/1.1 101 ok") is None


@pytest.mark.parametrize(
    "status", ["HTTP/1.1 101 Switching Protocols", "HTTP/1.0 200", "HTTP/1.1 503 "]
)
def test_status_lines(status, answer) -> None:
    """The reason may be missing."""
    assert int(status[9:12]) == answer.head(status.encode() + b"\r\n\r\n").status


def test_largest_head(answer) -> None:
    """A head of 64 KiB is read."""
    size = 64 * 1024 - len(OK) - 2
    head = answer.head(OK + line_of(size) + b"\r\n")
    assert size - 5 == len(head.get("x") or "")


def test_head_that_is_too_large(answer) -> None:
    """One byte more is refused, and no more than 64 KiB were read."""
    with pytest.raises(HandshakeError, match="64 KiB"):
        answer.head(OK + line_of(64 * 1024 - len(OK) - 1) + b"\r\n")


@pytest.mark.parametrize(("fields", "good"), [(127, True), (128, False)])
def test_number_of_lines(fields, good, answer) -> None:
    """A head has at most 128 lines."""
    data = OK + b"X: y\r\n" * fields + b"\r\n"
    if good:
        assert 128 == len(answer.head(data).lines)
    else:
        with pytest.raises(HandshakeError, match="128 lines"):
            answer.head(data)


@pytest.mark.parametrize("sign", [b"\n", b"\r", b"\0", b"\x1b", b"\x7f"])
def test_control_characters(sign, answer) -> None:
    """A line with a bare line feed in it is two to others: it is refused, as all controls are."""
    with pytest.raises(HandshakeError, match="not text"):
        answer.head(OK + b"X: y" + sign + b"Set-Cookie: a=b\r\n\r\n")


def test_tab_and_utf8_are_text(answer) -> None:
    """A tab and what is UTF-8 may stand in a field."""
    assert "a\tü" == answer.head(OK + "X: a\tü\r\n\r\n".encode()).get("x")


def test_head_byte_by_byte(answer) -> None:
    """However it is cut, it is the same head."""
    data = OK + b"A: b\r\n\r\n"
    reading = run(read_head, answer.ours, Deadline(5), answer.waker)
    for at in range(len(data)):
        answer.theirs.sendall(data[at : at + 1])
    head = reading.result()
    assert answer.head(data) == head


def test_head_at_the_deadline(answer) -> None:
    """What does not come in time is a TimeoutError, for whoever knows what it was waiting for."""
    answer.send(OK, end=False)
    with pytest.raises(TimeoutError):
        read_head(answer.ours, Deadline(0.05), answer.waker)


def test_head_when_told_to_stop(answer) -> None:
    """A stop ends the reading."""
    reading = run(read_head, answer.ours, Deadline(None), answer.waker)
    answer.waker.stop()
    with pytest.raises(NotConnectedError):
        reading.result()


@given(st.binary(max_size=300), st.booleans())
def test_any_head(data, begun) -> None:
    """Whatever comes is a head, or a HandshakeError."""
    one = Answer()
    try:
        head = one.head(OK + data if begun else data)
    except HandshakeError:
        pass
    else:
        assert 100 <= head.status < 600
    finally:
        one.close()


# -- the body of an error -------------------------------------------------------------------


def body(answer: Answer, fields: bytes, data: bytes, *, end: bool = True) -> str:
    """Read the body of an answer."""
    answer.send(b"HTTP/1.1 500 Oops\r\n" + fields + b"\r\n" + data, end=end)
    deadline = Deadline(5)
    head = read_head(answer.ours, deadline, answer.waker)
    return read_body(answer.ours, head, deadline, answer.waker)


@pytest.mark.parametrize(
    "fields",
    [b"", b"Content-Length: 9000\r\n", b"Content-Length: -1\r\n", b"Content-Length: 1e9\r\n"],
)
@pytest.mark.parametrize("size", [0, 100, 8191, 8192, 8193, 100_000])
def test_body(fields, size, answer) -> None:
    """At most 8 KiB of a body are read, whatever length it claims."""
    assert "x" * min(size, 8192) == body(answer, fields, b"x" * size)


def test_body_ends_at_its_length(answer) -> None:
    """A body of a known length is not waited for beyond it."""
    assert "abc" == body(answer, b"Content-Length: 3\r\n", b"abc", end=False)


def test_body_that_does_not_come(answer, monkeypatch) -> None:
    """A body that stays out is not waited for longer than a moment: the status says enough."""
    monkeypatch.setattr(_handshake, "_BODY_SECONDS", 0.05)
    assert "ab" == body(answer, b"Content-Length: 3\r\n", b"ab", end=False)


def test_body_that_is_no_text(answer) -> None:
    """What is not UTF-8 in it is replaced."""
    assert "\ufffdx" == body(answer, b"", b"\xffx")


def test_body_when_told_to_stop(answer) -> None:
    """A stop ends the reading of a body too."""
    answer.theirs.sendall(b"HTTP/1.1 500 Oops\r\n\r\n")
    head = read_head(answer.ours, Deadline(5), answer.waker)
    answer.waker.stop()
    with pytest.raises(NotConnectedError):
        read_body(answer.ours, head, Deadline(None), answer.waker)


def test_body_that_breaks(answer) -> None:
    """A connection that breaks in a body leaves what had come."""
    head = _handshake.Head(500, ["HTTP/1.1 500 Oops"], b"begun")
    answer.ours.close()
    assert "begun" == read_body(answer.ours, head, Deadline(5), answer.waker)


# -- what a refusal means -------------------------------------------------------------------

ANONYMOUS = Settings(endpoint="wss://chat.example")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("5", 5.0),
        ("0", 0.0),
        ("2.5", 2.5),
        (" 7 ", 7.0),
        ("1000000000", 1e9),
        ("-1", None),
        ("nan", None),
        ("inf", None),
        ("", None),
        ("soon", None),
        ("Fri, 99 Foo 2020 00:00:00 GMT", None),
        ("Sat, 01 Jan 2000 00:00:00 GMT", 0.0),
    ],
)
@pytest.mark.parametrize("status", [429, 503])
def test_retry_after(value, expected, status) -> None:
    """Retry-After is a number of seconds or a date; junk is none."""
    assert expected == refusal(status, value, "", ANONYMOUS, None).retry_after


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        ("0.2", "come back in 1 s"),
        ("40", "come back in 40 s"),
        ("119.5", "come back in 2 minutes"),
        ("900", "come back in 15 minutes"),
        ("901", "come back in 16 minutes"),
        ("0", ""),
        (None, ""),
    ],
)
def test_too_many_requests_tell_when_to_come_back(value, hint) -> None:
    """In the error's text too, which is all that a log or a terminal shows."""
    for name in ("", "list_chatbots"):
        assert hint == refusal(429, value, "", ANONYMOUS, None, name).hint


def test_retry_after_of_a_date() -> None:
    """A date is counted from now."""
    value = email.utils.format_datetime(dt.datetime.now(dt.UTC) + dt.timedelta(seconds=100), True)
    seconds = refusal(429, value, "", ANONYMOUS, None).retry_after
    assert 95 < (seconds or 0) <= 100


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"retry_after": 900}, 900.0),
        ({"retry_after": "30"}, 30.0),
        ({"retry_after": True}, None),
        ({"retry_after": None}, None),
        ({"retry_after": [5]}, None),
        ([5], None),
    ],
)
def test_retry_after_in_the_body(body, expected) -> None:
    """Without the header the body's field counts."""
    error = refusal(429, None, json.dumps(body), ANONYMOUS, None)
    assert isinstance(error, RateLimitError)
    assert expected == error.retry_after


@pytest.mark.parametrize("body", ["", "<html>", "[]", "5", '{"error":5}', "[" * 8000, "1" * 8000])
def test_bodies_that_say_nothing(body) -> None:
    """A body that is no JSON object with a text is kept and not quoted."""
    error = refusal(500, None, body, ANONYMOUS, None)
    assert "the server refused the connection: 500" == str(error)
    assert isinstance(error, HandshakeError)
    assert body == error.body


def test_long_text_is_cut() -> None:
    """A message has at most 200 characters of the server's."""
    error = refusal(400, None, json.dumps({"error": "x" * 5000}), ANONYMOUS, None)
    assert error.args[0].endswith(" " + "x" * 200)


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_redirects(status) -> None:
    """A redirect is refused, and the hint says why."""
    assert "redirects are not followed" in str(refusal(status, None, "", ANONYMOUS, None))


def test_switched_off() -> None:
    """FEATURE_DISABLED has a class of its own."""
    body = '{"code":"FEATURE_DISABLED","error":"AI chat is not enabled"}'
    assert isinstance(refusal(503, None, body, ANONYMOUS, None), FeatureDisabledError)


# -- a token that has expired ---------------------------------------------------------------


def jwt(claims: object) -> str:
    """Return what looks like a JWT with these claims."""
    parts = [{"alg": "HS256", "typ": "JWT"}, claims]
    encoded = [base64.urlsafe_b64encode(json.dumps(part).encode()).decode() for part in parts]
    return ".".join([*(part.rstrip("=") for part in encoded), "c2lnbmF0dXJl"])


def refused(token: str | None, **options) -> str:
    """Return what the error of a 401 says."""
    settings = Settings(endpoint="wss://chat.example", token=token, **options)
    body = '{"error":"Invalid or expired Bearer token"}'
    error = refusal(401, None, body, settings, token)
    assert isinstance(error, AuthenticationError)
    assert token is None or token not in str(error)
    return str(error)


@pytest.mark.parametrize("padding", ["", "a", "ab", "abc"])
def test_expired_token(padding) -> None:
    """A 401 says when the token expired, as the token says itself."""
    token = jwt({"sub": "s3cret" + padding, "exp": 1_700_000_000})
    said = refused(token)
    assert "the token expired at 2023-11-14 22:13:20 UTC" in said
    assert "s3cret" not in said


def test_token_that_expired_a_moment_ago() -> None:
    """A fraction of a second counts."""
    assert "expired at" in refused(jwt({"exp": time.time() - 0.01}))


@pytest.mark.parametrize(
    "token",
    [
        jwt({"exp": 4_000_000_000}),
        jwt({"sub": "somebody"}),
        jwt({"exp": "1700000000"}),
        jwt({"exp": None}),
        jwt({"exp": -1e300}),
        jwt({"exp": float("nan")}),
        jwt({"exp": float("-inf")}),
        jwt([1_700_000_000]),
        jwt("exp"),
        jwt(5),
        "opaque",
        "..",
        "a.b.c",
        "a.!!!!.c",
        "a." + base64.urlsafe_b64encode(b"[" * 6000).decode() + ".c",
        "a." + base64.urlsafe_b64encode(b"\xff{}").decode() + ".c",
    ],
)
def test_token_that_does_not_say(token) -> None:
    """A token that is valid still, or none that we can read, leaves the general question."""
    assert "is the token right, of this server, and not expired?" in refused(token)


def test_other_credentials() -> None:
    """The question fits what was sent."""
    assert "pass token=, or set FLUXBASE_TOKEN for from_env()" in refused(None)
    assert "is the service key right" in refused(None, service_key="k3y-of-the-service")


def test_expired_token_end_to_end() -> None:
    """A client that connects with an old token hears so."""

    def script(peer: Peer) -> None:
        peer.refuse("401 Unauthorized", b'{"error":"Invalid or expired Bearer token"}')

    with (
        RawServer(script) as server,
        pytest.raises(AuthenticationError, match="the token expired at 2001-09-09 01:46:40 UTC"),
        FluxbaseAIChat(server.url, token=lambda: jwt({"exp": 1_000_000_000})),
    ):
        pass


# -- secrets --------------------------------------------------------------------------------

TOKEN = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJtZSJ9.c2lnbmF0dXJl"


def redact(text: str, token: str | None = TOKEN, **options) -> str:
    """Redact a text for a client with this token, or these options."""
    url = options.pop("ws_url", "wss://chat.example")
    return Redactor(Settings(endpoint=url, token=token, **options), token)(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        ("nothing to hide", "nothing to hide"),
        (TOKEN, "***"),
        (f"a {TOKEN} b", "a *** b"),
        (TOKEN + TOKEN, "******"),
        (f"{TOKEN} {TOKEN}", "*** ***"),
        (f"bad: {TOKEN[:15]}...", "bad: ***..."),
        (f"bad: {TOKEN[:8]}", "bad: ***"),
        (f"bad: {TOKEN[:7]}", f"bad: {TOKEN[:7]}"),
        (f"{TOKEN[:12]}{TOKEN}", "******"),
        (f"{TOKEN}x", "***x"),
    ],
)
def test_token_in_a_text(text, expected) -> None:
    """A token is taken out, and so is a part that begins like it."""
    assert expected == redact(text)


@pytest.mark.parametrize("secret", ["a&b<c>d", 'a"b\\c/d', "a=b+c%20d", "short", "a"])
@pytest.mark.parametrize("name", ["token", "service_key"])
def test_spellings(secret, name) -> None:
    """A secret is found as it is, in a URL and in JSON, also as Go writes it."""
    options = {"token": None, name: secret}
    go = json.dumps(secret)[1:-1]
    for sign in "<>&":
        go = go.replace(sign, f"\\u{ord(sign):04x}")
    quoted = "".join(c if c.isalnum() else f"%{ord(c):02X}" for c in secret)
    for spelling in {secret, json.dumps(secret)[1:-1], go, quoted}:
        assert "[***]" == redact(f"[{spelling}]", **options)


def test_headers_and_query() -> None:
    """Values of the caller's own headers and of the URL's query are taken out; flags are not."""
    options = {
        "token": None,
        "ws_url": "wss://chat.example/ai/ws?apikey=k%65y-1234&v=1&other",
        "headers": {
            "Authorization": "Basic bWU6cGFzcw==",
            "Cookie": "session=abcdef; theme=dark",
            "X-Tenant": "tenant-77",
            "X-Flag": "on",
        },
    }
    said = "k%65y-1234 key-1234 bWU6cGFzcw== abcdef dark tenant-77 on 1 other Basic"
    assert "*** *** *** *** *** *** on 1 *** Basic" == redact(said, **options)


def test_longer_secrets_first() -> None:
    """A secret that is a part of another leaves nothing of it behind."""
    options = {"token": None, "headers": {"A": "abcd", "B": "abcdefgh", "C": "xxabcdefghxx"}}
    assert "*** *** ***" == redact("xxabcdefghxx abcdefgh abcd", **options)


def test_nothing_to_hide() -> None:
    """An anonymous client has no secrets, and its redactor shows none of another's."""
    assert "as it was" == redact("as it was", token=None)
    settings = Settings(endpoint="wss://chat.example", token=TOKEN)
    assert TOKEN not in repr(Redactor(settings, TOKEN))
    assert TOKEN not in repr(vars(settings) if hasattr(settings, "__dict__") else settings)


def test_redacting_costs_no_more_than_its_length() -> None:
    """A text of nothing but secrets is done in one pass."""
    assert "***" * 20_000 == redact(TOKEN * 20_000)
    assert "***" * 100_000 == redact(TOKEN[:9] * 100_000)


@given(st.text(max_size=50), st.integers(8, len(TOKEN)), st.text(max_size=50))
def test_no_start_of_a_token_is_left(before, length, behind) -> None:
    """Wherever it stands, no part of a token that is recognizable is left."""
    assert TOKEN[:8] not in redact(before + TOKEN[:length] + behind)


def test_a_body_that_is_cut_in_a_token() -> None:
    """A token that the limit of a body cuts in two is not left in half."""
    error = refusal(
        500, None, ("x" * 8160 + TOKEN)[:8192], Settings(endpoint="wss://h", token=TOKEN), TOKEN
    )
    assert isinstance(error, HandshakeError)
    assert "x" * 8160 + "***" == error.body


def test_request_headers() -> None:
    """The token stands in one place: a header, or the query."""
    settings = Settings(endpoint="wss://h", token="t", headers={"A": "b"})
    assert ["A: b", "Authorization: Bearer t"] == request_headers(settings, "t")
    settings = Settings(endpoint="wss://h", token="t", token_in_query=True)
    assert [] == request_headers(settings, "t")
    settings = Settings(endpoint="wss://h", service_key="k")
    assert ["X-Service-Key: k"] == request_headers(settings, None)
