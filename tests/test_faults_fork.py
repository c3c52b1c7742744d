"""Faults of processes (X12): forks in any state, worker pools, preloading web servers, pickles."""

from __future__ import annotations

import copy
import http.client
import importlib.util
import os
import pickle
import threading
import time

import pytest
from scripts.process import Script
from servers import WAIT, Gate, Peer, RawServer, content, done

from fluxbase_aichat import FluxbaseAIChat
from fluxbase_aichat._answer import Answer
from fluxbase_aichat._wire import ContentRun
from fluxbase_aichat.devserver import DevServer

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")

CID = "c-1"
NO_PICKLE = (
    "a FluxbaseAIChat has a connection and threads, and cannot be pickled; "
    "pickle its parameters and make a client in the other process"
)


def slowly(go_on: Gate, then: str = "Two"):
    """Serve a turn whose end waits for the gate on the first connection, and others as usual."""

    def script(peer: Peer) -> None:
        peer.accept()
        if peer.number == 1:
            peer.start(CID)
            peer.message()
            peer.send_text(content(CID, "One"))
            go_on.wait()
            peer.send_text(content(CID, then), done(CID))
        peer.serve(CID)

    return script


def lines(text: str) -> list[str]:
    """Return a script's lines."""
    return text.strip().split("\n")


def test_x12_idle_client() -> None:
    """The child closes its copies, knows the conversations, and has a connection of its own."""
    with (
        RawServer(lambda peer: peer.serve(CID)) as server,
        Script("forked.py", server.url, "idle") as script,
    ):
        status, out, err = script.end()
        assert (0, "") == (status, err)
        assert [
            "sockets 0",
            "new You said: before",
            "You said: of the child",
            "True connected",
            "sockets 0",
            "status 0",
            "You said: of the parent",
        ] == lines(out)
        assert 2 == server.connections
        # Not a word of the child on the parent's connection, and no close frame before the end.
        assert ["start_chat", "message", "message"] == [
            message["type"] for number, message in server.received if number == 1
        ]
        started, message = [message for number, message in server.received if number == 2]
        assert ("start_chat", CID) == (started["type"], started["conversation_id"])
        assert "of the child" == message["content"]


def test_x12_running_turn() -> None:
    """What is pending fails in the child at once; in the parent it goes on to its end."""
    go_on = Gate()
    with RawServer(slowly(go_on)) as server, Script("forked.py", server.url, "turn") as script:
        assert "One" == script.line()
        assert "sockets 0" == script.line()
        assert "NotConnectedError sent=True NotConnectedError sent=False One" == script.line()
        assert "NotConnectedError sent=True True True False" == script.line()
        assert "You said: of the child" == script.line()
        assert "status 0" == script.line()
        go_on.open()
        assert (0, "OneTwo | You said: queued\n", "") == script.end()
        assert ["start_chat", "message", "message"] == [
            message["type"] for number, message in server.received if number == 1
        ]


def test_x12_disconnected_client() -> None:
    """A client that was disconnected is so in the child, where connect() opens it again."""
    with (
        RawServer(lambda peer: peer.serve(CID)) as server,
        Script("forked.py", server.url, "disconnected") as script,
    ):
        status, out, err = script.end()
        assert (0, "") == (status, err)
        assert [
            "NotConnectedError sent=False disconnected",
            "You said: of the child",
            "status 0",
            "disconnected",
        ] == lines(out)


def test_x12_opening_connection() -> None:
    """A connection that is being opened is the parent's: the child holds no copy of it."""
    came, forked = Gate(), Gate()

    def serve(peer: Peer) -> None:
        peer.read_request()
        if peer.number == 1:
            came.open()
            forked.wait()
        peer.serve(CID)

    with RawServer(serve) as server, Script("forked.py", server.url, "opening") as script:
        came.wait()
        script.say()
        assert "sockets 0" == script.line()
        assert "You said: of the child" == script.line()
        assert "status 0" == script.line()
        forked.open()
        assert (0, "You said: of the parent\n", "") == script.end()


def test_x12_rest_calls() -> None:
    """REST calls and a sign-in that are under way are the parent's: the child makes its own."""
    came, forked = threading.Semaphore(0), Gate()
    answers = {
        "/api/v1/auth/signin": b'{"access_token":"t0k3n"}',
        "/api/v1/ai/chatbots": b'{"chatbots":[{"name":"bot"}]}',
        "/api/v1/ai/conversations/c-1": b"""{"messages":[{"role":"user","content":"?"},
            {"role":"assistant","content":"answer"}]}""",
    }

    def serve(peer: Peer) -> None:
        peer.read_request()
        came.release()
        if peer.number <= 3:
            forked.wait()
        peer.refuse("200 OK", answers[peer.request.split(" ")[1]])

    with RawServer(serve) as server, Script("forked.py", server.url, "calls") as script:
        assert all(came.acquire(timeout=WAIT) for _ in range(3))
        script.say()
        assert "sockets 0" == script.line()
        assert "t0k3n bot answer" == script.line()
        assert "status 0" == script.line()
        forked.open()
        assert (0, "answer bot t0k3n\n", "") == script.end()


def test_x12_child_that_ends_as_a_script() -> None:
    """The end of the child is no news to anybody: not to stderr, and not to the parent."""
    go_on = Gate()
    with RawServer(slowly(go_on)) as server, Script("forked.py", server.url, "atexit") as script:
        assert "One" == script.line()
        assert "status 0" == script.line()
        go_on.open()
        assert (0, "OneTwo\n", "") == script.end()
        assert 1 == server.connections


def test_x12_fork_in_a_callback() -> None:
    """That callback is the child's last: what comes behind it is told in the parent only."""

    def serve(peer: Peer) -> None:
        peer.accept()
        peer.start(CID)
        peer.answer("One", "Two", "Three")
        peer.until_closed()

    with RawServer(serve) as server, Script("forked.py", server.url, "in_a_callback") as script:
        assert (0, "One Two Three\nstatus 0\n", "") == script.end()


def test_x12_every_lock_is_held() -> None:
    """A thread that is not in the child may have held any lock; nothing there waits for it."""
    go_on = Gate()
    with RawServer(slowly(go_on)) as server, Script("forked.py", server.url, "locked") as script:
        assert "One" == script.line()
        assert "NotConnectedError sent=True NotConnectedError sent=False" == script.line()
        assert "One True True new" == script.line()
        assert "You said: of the child" == script.line()
        assert "status 0" == script.line()
        go_on.open()
        assert (0, "OneTwo\n", "") == script.end()


def test_x12_between_a_decision_and_its_effect() -> None:
    """A turn that was about to end in the parent is not waited for in vain in the child."""
    go_on = Gate()
    with (
        RawServer(slowly(go_on)) as server,
        Script("forked.py", server.url, "half_ended") as script,
    ):
        assert "One" == script.line()
        assert "finishing" == script.line()
        go_on.open()
        assert "NotConnectedError sent=None True" == script.line()
        assert "status 0" == script.line()
        assert (0, "OneTwo\n", "") == script.end()


def test_x12_each_error_has_its_own_text() -> None:
    """Of several turns that were about to end each keeps its own text, and no other's."""
    chat = FluxbaseAIChat("ws://127.0.0.1:1")
    answers = [Answer("support", time.monotonic) for _ in range(3)]
    for text, answer in zip(["One", "Two", "Three"], answers, strict=True):
        answer.feed([ContentRun(CID, [text], {})], 0)
        chat._session._answers.add(answer)
    chat._session.after_fork()
    texts = [answer.error.partial_text for answer in answers if answer.error is not None]
    assert ["One", "Two", "Three"] == texts


def test_x12_callbacks_not_run_yet() -> None:
    """An answer that is whole stays so in the child, where its callbacks count as run."""
    with (
        RawServer(lambda peer: peer.serve(CID)) as server,
        Script("forked.py", server.url, "untold") as script,
    ):
        assert (0, "True True True\nstatus 0\nTrue\n", "") == script.end()


def test_x12_many_forks_while_threads_ask() -> None:
    """Whatever the threads were at, each child asks over a connection of its own."""
    with (
        RawServer(lambda peer: peer.serve(CID)) as server,
        Script("forked.py", server.url, "many") as script,
    ):
        status, out, err = script.end()
        assert (0, "") == (status, err)
        assert [*["status 0"] * 25, "asked True"] == lines(out)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_x12_worker_processes(method) -> None:
    """A client made on import works in multiprocessing and in a process pool."""
    with DevServer() as server, Script("pools.py", server.ws_url, method) as script:
        status, out, err = script.end()
        assert (0, "") == (status, err)
        assert [
            "Process",
            "0",
            "one",
            "two",
            "three",
            NO_PICKLE,
            "after",
        ] == lines(out)


@pytest.mark.skipif(importlib.util.find_spec("gunicorn") is None, reason="gunicorn is missing")
@pytest.mark.parametrize("worker", ["sync", "gthread"])
def test_x12_gunicorn_preload(worker) -> None:
    """A client that was used before the workers were forked serves requests in each of them."""
    with (
        DevServer() as server,
        Script("web_app.py", "wsgi", worker, f"CHAT_URL={server.ws_url}") as script,
    ):
        port = int(script.line())
        answers = set()
        while len({pid for _, pid in answers}) < 2:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT)
            connection.request("GET", f"/?{len(answers)}")
            response = connection.getresponse()
            text, pid, _ = response.read().decode().rsplit(" ", 2)
            connection.close()
            assert 200 == response.status
            assert str(len(answers)) == text
            answers.add((text, pid))
        assert 3 == server.connections
        script.terminate()
        status, out, err = script.end()
        assert (0, "") == (status, out)
        assert "fluxbase_aichat" not in err
        assert "Traceback" not in err


def test_x12_pickles() -> None:
    """What belongs to a process says so, and says what to do; copying is no way around."""
    with RawServer(lambda peer: peer.serve(CID)) as server, FluxbaseAIChat(server.url) as chat:
        conversation = chat.conversation("support")
        turn = conversation.send("Hi")
        reply = turn.result()
        for thing, advice in (
            (chat, "make a client in the other process"),
            (conversation, "pass its id"),
            (turn, r"its result\(\) can be"),
        ):
            with pytest.raises(TypeError, match=f"cannot be pickled.*{advice}"):
                pickle.dumps(thing)
            with pytest.raises(TypeError, match="cannot be pickled"):
                copy.deepcopy(thing)
        assert reply == pickle.loads(pickle.dumps(reply))
