"""The pool behind a real web server with worker threads, and browsers that come and go."""

from __future__ import annotations

import http.client
import json
import socketserver
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Self
from wsgiref import simple_server

import pytest
from helpers import spy
from servers import WAIT

from fluxbase_aichat import SSE_HEADERS, ChatPool, FluxbaseChatError, PoolTimeoutError
from fluxbase_aichat.devserver import DevServer


class Quiet(simple_server.WSGIRequestHandler):
    """Logs nothing."""

    def log_message(self, *_: Any) -> None:
        """Be quiet."""


class Threaded(socketserver.ThreadingMixIn, simple_server.WSGIServer):
    """A thread a request, all of them joined at the end."""

    daemon_threads = False
    block_on_close = True


class Site:
    """A web application that streams answers to whoever asks: `/ann?say Hello`."""

    def __init__(self, server: DevServer, pool: ChatPool) -> None:
        self.pool = pool
        self.tokens = {name: server.token(name) for name in ("ann", "bob")}
        self.came_back = threading.Semaphore(0)
        spy(pool, "_put", lambda *_, **__: self.came_back.release())
        self._web = simple_server.make_server("127.0.0.1", 0, self, Threaded, Quiet)
        self._thread = threading.Thread(target=self._web.serve_forever, args=(0.01,))

    def __call__(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        """Be the application."""
        user = environ["PATH_INFO"].strip("/")
        question = environ["QUERY_STRING"].replace("+", " ").replace("%0A", "\n")
        try:
            turn = self.pool.send("sql-assistant", question, user=user, token=self.tokens[user])
        except PoolTimeoutError as error:
            start_response("503 Service Unavailable", [("Retry-After", "1")])
            return [str(error).encode()]
        start_response("200 OK", list(SSE_HEADERS.items()))
        return turn.iter_sse(heartbeat=0.01)

    def open(self, user: str, question: str) -> http.client.HTTPResponse:
        """Be a browser."""
        browser = http.client.HTTPConnection("127.0.0.1", self._web.server_port, timeout=WAIT)
        question = question.replace(" ", "+").replace("\n", "%0A")
        browser.request("GET", f"/{user}?{question}")
        return browser.getresponse()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._web.shutdown()
        self._thread.join(WAIT)
        self._web.server_close()


@pytest.fixture
def site() -> Iterator[Site]:
    with (
        DevServer() as server,
        ChatPool(server.ws_url, size=2, acquire_timeout=0.05) as pool,
        Site(server, pool) as running,
    ):
        yield running


def deltas(response: http.client.HTTPResponse) -> str:
    """Return the text that a browser has got."""
    with response:
        body = response.read().decode()
        assert "event: done" in body
        data = [line for line in body.split("\n") if line.startswith('data: {"delta"')]
        return "".join(json.loads(line.removeprefix("data: "))["delta"] for line in data)


def test_browsers_get_their_own_answers(site) -> None:
    """Many at once, each by a worker thread of its own, over connections that are used again."""
    for number in range(5):
        responses = [site.open(user, f"say {user} {number}") for user in ("ann", "bob")]
        assert "text/event-stream; charset=utf-8" == responses[0].headers["Content-Type"]
        assert [f"ann {number}", f"bob {number}"] == [deltas(response) for response in responses]
        for _ in range(2):
            assert site.came_back.acquire(timeout=WAIT)
    assert (2, 8) == (site.pool.stats().opened, site.pool.stats().reused)


def test_browsers_that_go_hang_no_worker(site) -> None:
    """A full pool says so in time; a browser that has gone frees its connection at once."""
    responses = [site.open("ann", "say One\npause 60") for _ in range(2)]
    for response in responses:
        while b"One" not in response.readline():
            pass
    refused = site.open("bob", "say Two")
    with refused:
        assert 503 == refused.status
        assert b"2 of 2 busy, 1 waiting" in refused.read()
    responses.pop().close()
    assert site.came_back.acquire(timeout=WAIT), "the worker has not noticed"
    assert "Two" == deltas(site.open("bob", "say Two"))
    responses.pop().close()
    assert site.came_back.acquire(timeout=WAIT)
    assert site.came_back.acquire(timeout=WAIT)


def test_a_server_that_goes_ends_every_response(site) -> None:
    """Each ends with an `error` event; then the pool works again."""
    response = site.open("ann", "say One\ncut")
    with response:
        body = response.read().decode()
    assert 'event: error\ndata: {"code":"CONNECTION_LOST"' in body
    assert "Two" == deltas(site.open("ann", "say Two"))


def test_many_workers_share_a_small_pool() -> None:
    """Under threads that change as they like nobody waits in vain, and nobody is mixed up."""
    with DevServer() as server, ChatPool(server.ws_url, size=3, acquire_timeout=60.0) as pool:
        tokens = {name: server.token(name) for name in ("ann", "bob", "admin")}
        wrong: list[str] = []

        def work(user: str, worker: int) -> None:
            for number in range(15):
                expected = f"{user} {worker} {number}"
                try:
                    turn = pool.send(
                        "sql-assistant", f"say {expected}", user=user, token=tokens[user]
                    )
                    if number % 5 == 4:
                        turn.cancel()
                        continue
                    body = b"".join(turn.iter_sse(include=["content"])).decode()
                    text = "".join(
                        json.loads(line.removeprefix("data: ")).get("delta", "")
                        for line in body.split("\n")
                        if line.startswith("data: ")
                    )
                    if text != expected:
                        wrong.append(f"{expected}: {body}")
                except FluxbaseChatError as error:
                    wrong.append(f"{expected}: {error!r}")

        threads = [
            threading.Thread(target=work, args=(user, worker))
            for worker in range(4)
            for user in tokens
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60.0)
        assert [] == wrong
        assert 0 == pool.stats().waiting
