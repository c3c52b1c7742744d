"""Many questions side by side: order, errors in place of answers, and what Ctrl-C leaves."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from helpers import run
from scripts.process import INTERRUPTED, Script
from servers import WAIT, Gate, Peer, RawServer, content, done, refusing_port

from fluxbase_aichat import (
    ChatPool,
    ConfigurationError,
    ConnectError,
    FluxbaseAIChat,
    LocalProtocolError,
    ProviderError,
    Reply,
    ask_many,
)
from fluxbase_aichat._many import _Asking, ask_each
from fluxbase_aichat.devserver import DevServer

QUESTIONS = [f"say {number}" for number in range(12)]
ANSWERS = [str(number) for number in range(12)]


def texts(answers: list[Any]) -> list[str]:
    """Return the texts of whole answers, and the names of errors."""
    return [a.text if isinstance(a, Reply) else type(a).__name__ for a in answers]


@pytest.mark.parametrize("source", ["chat", "pool", "settings"])
def test_the_order_is_that_of_the_questions(source) -> None:
    """Whoever asks, and an error stands where its question stood."""
    questions = [*QUESTIONS[:5], "fail", *QUESTIONS[5:]]
    expected = [*ANSWERS[:5], "ProviderError", *ANSWERS[5:]]
    with (
        DevServer() as server,
        FluxbaseAIChat(server.ws_url, token=server.token()) as chat,
        ChatPool(server.ws_url, size=2) as pool,
    ):
        token = server.token()
        match source:
            case "chat":
                answers = ask_many(chat, "sql-assistant", questions)
                connections = 1
            case "pool":
                answers = ask_many(pool, "sql-assistant", questions, user=1, token=token)
                connections = 2
                assert 2 == pool.stats().idle
            case "settings":
                settings = {"ws_url": server.ws_url, "token": token}
                answers = ask_many(settings, "sql-assistant", iter(questions), workers=3)
                connections = 3
                assert server.wait_for(lambda: server.active == 1)
        assert expected == texts(answers)
        assert isinstance(answers[5], ProviderError)
        assert answers[5].__traceback__ is None
        ids = {reply.conversation_id for reply in answers if isinstance(reply, Reply)}
        assert len(ANSWERS) == len(ids)
        assert server.connections <= 1 + connections


def test_as_many_at_once_as_there_are_workers() -> None:
    """All of them, each on a connection of its own; answers come in any order."""
    together = threading.Barrier(3)

    def script(peer: Peer) -> None:
        peer.accept()
        peer.start("c-1")
        together.wait(WAIT)
        question = peer.message()["content"]
        if question != "2":
            together.wait(WAIT)
        peer.send_text(content("c-1", question), done("c-1"))
        if question == "2":
            together.wait(WAIT)  # the others are answered behind it
        peer.until_closed()

    order: list[int] = []
    with RawServer(script) as server:
        ask_each(
            {"ws_url": server.url},
            "support",
            ["0", "1", "2"],
            lambda number, _: order.append(number),
            workers=3,
        )
        assert 3 == server.connections
    assert [0, 1, 2] == sorted(order)


def test_no_questions_need_no_connection() -> None:
    """Nothing is sent, and nothing is waited for."""
    with RawServer(Peer.serve) as server:
        assert [] == ask_many({"ws_url": server.url}, "support", [])
        assert 0 == server.connections


def test_a_server_that_is_not_there() -> None:
    """Each question gets its error, which says that it was not sent."""
    with refusing_port() as port:
        answers = ask_many({"ws_url": f"ws://127.0.0.1:{port}"}, "support", ["a", "b", "c"])
    assert ["ConnectError"] * 3 == texts(answers)
    assert [False] * 3 == [answer.sent for answer in answers if isinstance(answer, ConnectError)]


def test_a_full_pool_is_an_error_in_place_of_an_answer() -> None:
    """Others hold its connections for longer than a caller may wait."""
    with (
        RawServer(Peer.serve) as server,
        ChatPool(server.url, size=1, acquire_timeout=0) as pool,
        pool.chat(user=1, token=None),
    ):
        assert ["PoolTimeoutError"] * 2 == texts(ask_many(pool, "support", ["a", "b"], user=2))


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"questions": "one"}, ConfigurationError, "questions must be a list of texts, not str"),
        ({"questions": 7}, ConfigurationError, "questions must be a list of texts, not int"),
        ({"questions": ["a", None]}, ConfigurationError, r"questions\[1\]: content must be text"),
        ({"questions": ["a", "\ud800"]}, LocalProtocolError, r"questions\[1\]: the text has half"),
        ({"chatbot": ""}, ConfigurationError, "chatbot must be a chatbot's name"),
        ({"namespace": " "}, ConfigurationError, "namespace must be"),
        ({"workers": 0}, ConfigurationError, "workers must be a whole number, 1 or more, not 0"),
        ({"workers": 2.0}, ConfigurationError, "workers must be a whole number"),
        ({"user": 1}, ConfigurationError, "user and token are for a ChatPool"),
        ({"source": "ws://localhost"}, ConfigurationError, "first argument must be.*not str"),
        ({"source": {}}, ConfigurationError, "ws_url must be the server's URL"),
        ({"source": {1: 2}}, ConfigurationError, "parameters by name"),
        ({"source": {"wsUrl": "ws://x"}}, ConfigurationError, "did you mean ws_url"),
        ({"source": {"size": 3}}, ConfigurationError, "no parameter size"),
        ({"source": {"token": ""}}, ConfigurationError, "token is empty|ws_url must be"),
    ],
)
def test_bad_arguments(change, kind, message) -> None:
    """All are found before anything is sent."""
    with RawServer(Peer.serve) as server:
        arguments = {
            "source": {"ws_url": server.url},
            "chatbot": "support",
            "questions": ["a"],
            **change,
        }
        positional = [arguments.pop(name) for name in ("source", "chatbot", "questions")]
        with pytest.raises(kind, match=message) as caught:
            ask_many(*positional, **arguments)
        assert caught.value.sent is False
        assert 0 == server.connections


def test_a_pool_lends_to_somebody() -> None:
    """Whose connections it lends has to be said, and is checked."""
    with ChatPool("ws://localhost") as pool:
        with pytest.raises(ConfigurationError, match="user is missing"):
            ask_many(pool, "support", ["a"])
        with pytest.raises(ConfigurationError, match="token is empty"):
            ask_many(pool, "support", ["a"], user=1, token="")


def test_what_tell_raises_ends_it(monkeypatch) -> None:
    """No more is asked; what was asked is still told, and the first error is raised."""
    told: list[int] = []
    failed = Gate()
    fail = _Asking._fail

    def noted(asking: _Asking, error: BaseException) -> None:
        fail(asking, error)
        failed.open()

    def script(peer: Peer) -> None:
        peer.accept()
        peer.start("c-1")
        peer.answer("One")
        peer.start("c-2")
        peer.message()
        failed.wait()  # it is on its way when the first answer's tell raises
        peer.send_text(content("c-2", "Two"), done("c-2"))
        peer.until_closed()

    def tell(number: int, _: object) -> None:
        told.append(number)
        raise OSError(f"no room for {number}")

    monkeypatch.setattr(_Asking, "_fail", noted)
    with RawServer(script) as server:
        with pytest.raises(OSError, match="no room for 0"):
            ask_each({"ws_url": server.url}, "support", ["a"] * 9, tell, workers=1)
        assert 2 == sum(message["type"] == "message" for _, message in server.received)
    assert [0, 1] == told


def test_ctrl_c_cancels_what_runs_and_loses_no_answer() -> None:
    """What had come is told, before the interrupt is raised; no thread is left asking."""
    with DevServer() as server, Script("interrupted_many.py", server.ws_url) as script:
        assert "told 0 One" == script.line()
        assert server.wait_for(lambda: server.running == 2)
        script.interrupt()
        status, out, err = script.end()
        assert INTERRUPTED == status
        assert "interrupted threads []\n" == out
        assert "KeyboardInterrupt" in err
        assert "fluxbase-aichat" not in err
        assert script.took < WAIT
        asked = [r for r in server.received if r.frame["type"] == "message"]
        assert 3 == len(asked)


def test_a_question_sent_while_ctrl_c_came_is_cancelled() -> None:
    """The interrupt found no turn of it yet; its answer is not waited for."""
    told: list[int] = []

    def script(peer: Peer) -> None:
        peer.accept()
        peer.start("c-1")
        peer.until_closed()

    with RawServer(script) as server, FluxbaseAIChat(server.url) as chat:

        @contextlib.contextmanager
        def lend() -> Iterator[FluxbaseAIChat]:
            asking._interrupt()
            yield chat

        asking = _Asking(["a", "b"], lend, lambda number, _: told.append(number), "support", None)
        run(asking.run, 1).result()
    assert [] == told


def test_a_pool_has_no_more_workers_than_connections(monkeypatch) -> None:
    """More would only wait for each other, and might wait in vain."""
    counts: list[int] = []
    monkeypatch.setattr(_Asking, "run", lambda _, workers: counts.append(workers))
    with ChatPool("ws://localhost", size=2) as pool:
        ask_each(pool, "support", ["a"] * 9, print, user=1, workers=4)
        ask_each(pool, "support", ["a"], print, user=1, workers=4)
    ask_each({"ws_url": "ws://localhost"}, "support", ["a"] * 9, print, workers=4)
    assert [2, 1, 4] == counts


def test_a_thread_that_cannot_be_started(monkeypatch) -> None:
    """It is an error of our tree, and those that were started end."""
    start = threading.Thread.start
    count = 0

    def limited(thread: threading.Thread) -> None:
        nonlocal count
        if thread.name == "fluxbase-aichat-ask":
            count += 1
            if count == 3:
                raise RuntimeError("can't start new thread")
        start(thread)

    with RawServer(Peer.serve) as server:
        monkeypatch.setattr(threading.Thread, "start", limited)
        with pytest.raises(ConnectError, match="a thread cannot be started"):
            ask_many({"ws_url": server.url}, "support", ["a"] * 10, workers=4)
