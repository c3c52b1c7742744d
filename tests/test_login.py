"""Sources of tokens: signing in and refreshing, from many threads, in time, and what goes wrong."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
from clocks import FakeClock
from helpers import run
from servers import WAIT, Gate, Peer, RawServer, refusing_port
from test_http import head, read_call, saying
from test_secrets import SECRET, hidden, shown

from fluxbase_aichat import FluxbaseAI, FluxbaseAIChat, PasswordLogin, RefreshToken
from fluxbase_aichat.devserver import DevServer
from fluxbase_aichat.errors import (
    AuthenticationError,
    ConfigurationError,
    ConnectError,
    ConnectTimeoutError,
    FluxbaseChatError,
    RateLimitError,
)

ANN = ("ann@example.com", "ann-password")
SIGN_IN, REFRESH = "/api/v1/auth/signin", "/api/v1/auth/refresh"


@pytest.fixture
def server() -> Iterator[DevServer]:
    """Start a dev server."""
    with DevServer() as server:
        yield server


def timed(source: Any) -> FakeClock:
    """Give a source of tokens a clock that stands still, for both of its own."""
    clock = FakeClock()
    source._clock = source._wall = clock
    return clock


class Tokens:
    """A script that signs in and refreshes: each answer has the next number in its tokens."""

    def __init__(self, **fields: Any) -> None:
        self.fields = fields
        self.status = "200 OK"
        self.calls: list[tuple[str, Any]] = []
        self.number = 0

    def __call__(self, peer: Peer) -> None:
        """Answer one call."""
        body = json.loads(read_call(peer))
        self.calls.append((peer.request.split(" ")[1], body))
        self.number += 1
        answer = {
            "access_token": f"access-{self.number}",
            "refresh_token": f"refresh-{self.number}",
            "expires_in": 900,
            **self.fields,
        }
        given = {name: value for name, value in answer.items() if value is not None}
        peer.send_raw(head(self.status, json.dumps(given).encode()))

    @property
    def paths(self) -> list[str]:
        """What was asked for."""
        return [path for path, _ in self.calls]


# -- signing in and refreshing --------------------------------------------------------------


def test_signing_in(server: DevServer) -> None:
    """A password gives a token that a chat and the REST side take, and one sign-in serves both."""
    login = PasswordLogin(server.url, *ANN)
    there = FluxbaseAI(server.url, token=login)
    with FluxbaseAIChat(server.ws_url, token=login) as chat:
        assert "Hi" == chat.ask("keeper", "say Hi").text
    assert 1 == there.list_conversations().total
    assert 1 == sum(request.target == SIGN_IN for request in server.requests)


def test_refreshing(server: DevServer) -> None:
    """A refresh token gives one, too, and asks for another a minute before it expires."""
    login = PasswordLogin(server.url, *ANN)
    login()
    assert login._held is not None
    source = RefreshToken(server.url, login._held.tokens.refresh)
    clock = timed(source)
    first = source()
    clock.advance(839)
    assert first == source()
    clock.advance(2)
    second = source()
    assert first != second
    assert FluxbaseAI(server.url, token=second).list_conversations().total == 0
    assert [SIGN_IN, REFRESH, REFRESH] == [request.target for request in server.requests][:3]


def test_a_login_refreshes_with_what_it_was_given() -> None:
    """It signs in once; the newest refresh token serves next."""
    script = Tokens()
    with RawServer(script) as server:
        login = PasswordLogin(server.url, "a@b", "p4ssword")
        clock = timed(login)
        assert "access-1" == login() == login()
        clock.advance(850)
        assert "access-2" == login()
        clock.advance(850)
        assert "access-3" == login()
    assert [
        (SIGN_IN, {"email": "a@b", "password": "p4ssword"}),
        (REFRESH, {"refresh_token": "refresh-1"}),
        (REFRESH, {"refresh_token": "refresh-2"}),
    ] == script.calls


def test_a_refresh_token_that_is_not_replaced() -> None:
    """A server that gives no new refresh token leaves the old one good."""
    script = Tokens(refresh_token=None)
    with RawServer(script) as server:
        source = RefreshToken(server.url, "refresh-0")
        clock = timed(source)
        source()
        clock.advance(900)
        source()
        assert "refresh-0" == source.refresh_token
    assert [{"refresh_token": "refresh-0"}] * 2 == [body for _, body in script.calls]


def test_a_refresh_token_that_is_replaced() -> None:
    """It can be read, to be kept for another process."""
    with RawServer(Tokens()) as server:
        source = RefreshToken(server.url, "refresh-0")
        assert "refresh-0" == source.refresh_token
        source()
        assert "refresh-1" == source.refresh_token


@pytest.mark.parametrize("status", ["401 No", "500 Failed", "400 Bad", "404 Gone"])
def test_a_login_whose_refresh_is_refused_signs_in_again(status) -> None:
    """A refresh token that is no good any more is no reason to fail."""
    script = Tokens()
    with RawServer(script) as server:
        login = PasswordLogin(server.url, "a@b", "p4ssword")
        clock = timed(login)
        login()

        def refusing(peer: Peer) -> None:
            script.status = status if script.number == 1 else "200 OK"
            script(peer)

        server._scripts = (refusing,)
        clock.advance(900)
        assert "access-3" == login()
    assert [SIGN_IN, REFRESH, SIGN_IN] == script.paths


@pytest.mark.parametrize(("lifetime", "good"), [(900, 839), (100, 49), (None, 29), (0.5, 0.2)])
def test_lifetimes(lifetime, good) -> None:
    """A minute early; a token that lives for less than two is replaced at half of its life."""
    script = Tokens(expires_in=lifetime)
    with RawServer(script) as server:
        login = PasswordLogin(server.url, "a@b", "p4ssword")
        clock = timed(login)
        login()
        clock.advance(good)
        assert "access-1" == login()
        clock.advance(2)
        assert "access-2" == login()


@pytest.mark.parametrize("which", ["_clock", "_wall"])
def test_a_suspend(which) -> None:
    """A clock that stopped in a suspend does not make an old token look new."""
    with RawServer(Tokens()) as server:
        login = PasswordLogin(server.url, "a@b", "p4ssword")
        clock = timed(login)
        login()
        stopped = FakeClock()
        setattr(login, which, stopped)
        clock.advance(8 * 3600)
        assert "access-2" == login()


# -- several threads ------------------------------------------------------------------------


def test_many_threads_sign_in_once() -> None:
    """Of many that need a token one asks for it; all get it."""
    script = Tokens()
    asked, go_on = Gate(), Gate()

    def slow(peer: Peer) -> None:
        asked.open()
        go_on.wait()
        script(peer)

    with RawServer(slow) as server:
        login = PasswordLogin(server.url, "a@b", "p4ssword")
        calls = [run(login) for _ in range(16)]
        asked.wait()
        go_on.open()
        assert ["access-1"] * 16 == [call.result() for call in calls]
        assert 1 == server.connections


def test_who_has_a_good_token_does_not_wait() -> None:
    """While one thread asks for the next token, the others go on with this one."""
    script = Tokens()
    asked, go_on = Gate(), Gate()

    def slow(peer: Peer) -> None:
        if peer.number == 2:
            asked.open()
            go_on.wait()
        script(peer)

    with RawServer(slow) as server:
        login = PasswordLogin(server.url, "a@b", "p4ssword")
        clock = timed(login)
        login()
        clock.advance(850)
        renewing = run(login)
        asked.wait()
        assert "access-1" == login()
        go_on.open()
        assert "access-2" == renewing.result() == login()


def test_many_threads_fail_together() -> None:
    """What one is told, all are told, each with an error of its own."""
    asked, go_on = Gate(), Gate()

    def slow(peer: Peer) -> None:
        asked.open()
        go_on.wait()
        saying(head("401 No", b'{"error":"Invalid email or password"}'))(peer)

    with RawServer(slow) as server:
        login = PasswordLogin(server.url, "a@b", "p4ssword")
        calls = [run(login) for _ in range(8)]
        asked.wait()
        go_on.open()
        errors = []
        for call in calls:
            with pytest.raises(AuthenticationError) as caught:
                call.result()
            errors.append(caught.value)
        assert 1 == server.connections
        assert 8 == len({id(error) for error in errors})


def test_a_thread_does_not_wait_for_ever() -> None:
    """Who waits for another's sign-in waits no longer than for one of its own."""
    asked, go_on = Gate(), Gate()

    def slow(peer: Peer) -> None:
        asked.open()
        go_on.wait()

    with RawServer(slow) as server:
        login = PasswordLogin(server.url, "a@b", "p4ssword", timeout=WAIT)
        first = run(login)
        asked.wait()
        login._timeout = 0.05
        with pytest.raises(ConnectTimeoutError):
            login()
        go_on.open()
        with pytest.raises(ConnectError):
            first.result()


def test_ctrl_c_leaves_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sign-in that is interrupted ends for all, and the next one begins anew."""
    with RawServer(Tokens()) as server:
        login = PasswordLogin(server.url, "a@b", "p4ssword")
        with monkeypatch.context() as patch:

            def interrupt(*_: object) -> None:
                raise KeyboardInterrupt

            patch.setattr("fluxbase_aichat.login.perform", interrupt)
            with pytest.raises(KeyboardInterrupt):
                login()
        assert login._flight is None
        assert "access-1" == login()


def test_a_fork_while_another_thread_signs_in() -> None:
    """The child has no such thread, and signs in by itself."""
    script = Tokens()
    asked, go_on = Gate(), Gate()

    def slow(peer: Peer) -> None:
        if peer.number == 1:
            asked.open()
            go_on.wait()
        script(peer)

    with RawServer(slow) as server:
        login = PasswordLogin(server.url, "a@b", "p4ssword")
        first = run(login)
        asked.wait()
        login._lock.acquire()  # as a thread may hold it that is not in the child
        lock, flight = login._lock, login._flight
        login.after_fork()
        assert (login._lock, login._flight) != (lock, flight)
        assert "access-1" == login()
        login._flight = flight
        go_on.open()
        assert "access-2" == first.result()


# -- what goes wrong ------------------------------------------------------------------------


def test_a_wrong_password(server: DevServer) -> None:
    """It is told as such, and not sent again for a minute: ten tries lock the account."""
    login = PasswordLogin(server.url, "ann@example.com", "wr0ng-password")
    clock = timed(login)
    for _ in range(15):
        with pytest.raises(AuthenticationError, match="401 Invalid email or password") as caught:
            login()
        assert "are the e-mail address and the password right?" == caught.value.hint
        assert caught.value.sent is False
        assert "wr0ng" not in shown(caught.value)
    assert 1 == len(server.requests)
    clock.advance(61)
    with pytest.raises(AuthenticationError):
        login()
    assert 2 == len(server.requests)


def test_a_wrong_password_of_a_chat(server: DevServer) -> None:
    """A chat says so at once, and asks once."""
    chat = FluxbaseAIChat(server.ws_url, token=PasswordLogin(server.url, "ann@example.com", "no"))
    with pytest.raises(AuthenticationError, match="Invalid email or password"):
        chat.connect()
    with pytest.raises(AuthenticationError, match="Invalid email or password"):
        chat.ask("keeper", "Hi")
    chat.disconnect()
    assert [SIGN_IN] == [request.target for request in server.requests]


def test_too_many_tries(server: DevServer) -> None:
    """The error says when to come back; until then the server is not asked."""
    for number in range(10):
        with pytest.raises(AuthenticationError):
            PasswordLogin(server.url, "ann@example.com", f"wrong-{number}")()
    login = PasswordLogin(server.url, *ANN)
    clock = timed(login)
    for waited, left in ((0, 900.0), (300, 600.0)):
        clock.advance(waited)
        with pytest.raises(RateLimitError, match="signing in failed: 429") as caught:
            login()
        assert (caught.value.retry_after, caught.value.sent) == (left, False)
        assert f"come back in {left / 60:.0f} minutes" == caught.value.hint
    assert 11 == len(server.requests)


def test_a_bad_refresh_token(server: DevServer) -> None:
    """Recorded servers answer 500 to it; here it is an error of sign-in that says what to do."""
    source = RefreshToken(server.url, "n0-such-token")
    with pytest.raises(AuthenticationError, match=r"500 .*sign in again") as caught:
        source()
    assert "n0-such" not in shown(caught.value)


def test_a_second_factor() -> None:
    """An answer without a token is no sign-in."""
    with (
        RawServer(saying(head("200 OK", b'{"requires_2fa":true}'))) as server,
        pytest.raises(AuthenticationError, match="no access token .*second factor"),
    ):
        PasswordLogin(server.url, "a@b", "p4ssword")()


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (head("503 Later"), ConnectError),
        (head("404 Not Found"), ConnectError),
        (head("200 OK", b"<html>"), ConnectError),
        (head("200 OK", b'{"access_token":"a b"}'), ConnectError),
        (head("200 OK", b'{"access_token":5}'), ConnectError),
        (head("200 OK", b'{"access_token":"a","expires_in":"soon"}'), ConnectError),
        (b"", ConnectError),
    ],
)
def test_a_server_that_cannot_be_asked(answer, kind) -> None:
    """It is a failure to connect, which another try may mend."""
    with RawServer(saying(answer)) as server:
        with pytest.raises(kind) as caught:
            PasswordLogin(server.url, "a@b", "p4ssword")()
        assert caught.value.sent is False
        assert 1 == server.connections


def test_nobody_there() -> None:
    """A refused port is told as it is."""
    with refusing_port() as port, pytest.raises(ConnectError):
        PasswordLogin(f"http://127.0.0.1:{port}", "a@b", "p4ssword")()


def test_a_sign_in_that_takes_too_long() -> None:
    """It ends at its own limit."""

    def silent(peer: Peer) -> None:
        read_call(peer)
        peer.until_closed()

    with RawServer(silent) as server, pytest.raises(ConnectTimeoutError):
        PasswordLogin(server.url, "a@b", "p4ssword", timeout=0.05)()


@pytest.mark.parametrize("status", ["500 Oops", "429 Slow", "503 Later"])
def test_a_refresh_that_fails_early(status) -> None:
    """While the old token is good it serves on, and the server is left alone for some seconds."""
    script = Tokens()
    with RawServer(script) as server:
        source = RefreshToken(server.url, "refresh-0")
        clock = timed(source)
        source()
        script.status = status
        clock.advance(845)
        assert ["access-1"] * 3 == [source() for _ in range(3)]
        assert 2 == len(script.calls)
        clock.advance(60)
        with pytest.raises(FluxbaseChatError):
            source()
        script.status = "200 OK"
        clock.advance(900)
        assert source().startswith("access-")


def test_a_token_that_the_server_refuses() -> None:
    """A token that is refused before its time is replaced, once a call."""
    signing = Tokens()

    def script(peer: Peer) -> None:
        peer.read_request()
        if peer.request.startswith("POST"):
            signing(peer)
        elif peer.headers["authorization"] == "Bearer access-2":
            if "/ai/ws" in peer.request.splitlines()[0]:
                peer.serve()
            else:
                peer.send_raw(head("200 OK", b"{}"))
        else:
            peer.refuse("401 Unauthorized")

    with RawServer(script) as server:
        login = PasswordLogin(server.url, "a@b", "p4ssword")
        with FluxbaseAIChat(server.url, token=login) as chat:
            assert chat.is_connected()
        assert [] == FluxbaseAI(server.url, token=login).list_chatbots()
        assert [SIGN_IN, REFRESH] == signing.paths
        signing.number = 10
        again = PasswordLogin(server.url, "a@b", "p4ssword")
        with pytest.raises(AuthenticationError):
            FluxbaseAI(server.url, token=again).list_chatbots()
        assert [SIGN_IN, REFRESH] * 2 == signing.paths


def test_a_refused_token_of_before() -> None:
    """One that was replaced meanwhile is no reason to replace its successor."""
    with RawServer(Tokens()) as server:
        login = PasswordLogin(server.url, "a@b", "p4ssword")
        login()
        login.refused("another")
        assert "access-1" == login()


# -- secrets --------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["400 No", "401 No", "403 No", "429 No", "500 No"])
def test_an_echoed_secret(status) -> None:
    """What the server echoes of a password or a refresh token is in no error."""
    body = json.dumps({"error": f"bad {SECRET}", "code": SECRET}).encode()
    with RawServer(saying(head(status, body))) as server:
        for source in (
            PasswordLogin(server.url, "a@b", SECRET),
            RefreshToken(server.url, SECRET),
        ):
            hidden(repr(source))
            with pytest.raises(FluxbaseChatError) as caught:
                source()
            hidden(shown(caught.value))


def test_tokens_are_in_no_repr() -> None:
    """Nor those that were given."""
    with RawServer(Tokens(access_token=SECRET, refresh_token=SECRET)) as server:
        login = PasswordLogin(server.url, "a@b", SECRET)
        login()
        hidden(repr(login) + repr(login._held))
    with pytest.raises(TypeError, match="make one in each process"):
        pickle.dumps(login)


@pytest.mark.parametrize("kind", [PasswordLogin, RefreshToken])
def test_bad_parameters(kind) -> None:
    """They are named at construction, and secrets are not quoted."""
    good = ["https://chat.example", "a@b", SECRET][: 3 if kind is PasswordLogin else 2]
    kind(*good)
    for place in range(len(good)):
        for bad in ("", "  ", None, 5, "\ud800"):
            with pytest.raises(ConfigurationError) as caught:
                kind(*good[:place], bad, *good[place + 1 :])
            hidden(shown(caught.value))
    for option in ({"timeout": 0}, {"ssl_context": 5}, {"proxy": 5}, {"time_out": 5}):
        with pytest.raises(ConfigurationError, match=next(iter(option))[:4]):
            kind(*good, **option)


def test_a_password_does_not_cross_the_network_in_the_open() -> None:
    """As a token does not, unless that is allowed."""
    for kind, secrets in ((PasswordLogin, ("a@b", SECRET)), (RefreshToken, (SECRET,))):
        with pytest.raises(ConfigurationError, match="allow_insecure=True"):
            kind("http://chat.example", *secrets)
        kind("http://chat.example", *secrets, allow_insecure=True)
        kind("http://127.0.0.1", *secrets)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_takes_the_tokens_along() -> None:
    """The hook of forks knows every source of tokens that is held."""
    from fluxbase_aichat import _lifetime  # noqa: PLC0415

    login = PasswordLogin("https://chat.example", "a@b", "p4ssword")
    assert login in _lifetime._forking


def test_another_process_goes_on_with_a_sign_in(server) -> None:
    """With its refresh token, which there is once somebody has signed in."""
    login = PasswordLogin(server.url, *ANN)
    assert login.refresh_token is None
    login()
    assert login.refresh_token is not None
    token = RefreshToken(server.url, login.refresh_token)
    assert 0 == FluxbaseAI(server.url, token).list_conversations().total
