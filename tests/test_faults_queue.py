"""Faults of the queue (Q): what is asked is answered once, in order, by whom it was meant for."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from clocks import Pauses
from helpers import Heard, run
from servers import WAIT, Gate, Gone, Peer, RawServer, content, done

from fluxbase_aichat import FluxbaseAIChat
from fluxbase_aichat.devserver import DevServer
from fluxbase_aichat.errors import NotConnectedError


@contextlib.contextmanager
def hasty() -> Iterator[None]:
    """Have the interpreter change threads as often as it can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def registrations(chat: FluxbaseAIChat) -> list[str]:
    """Return a list that grows with each message, in the order of the queue."""
    order: list[str] = []
    enqueue = chat._session._enqueue

    def noting(entry: Any) -> None:
        order.append(entry.content)  # the session's lock is held
        enqueue(entry)

    chat._session._enqueue = noting
    return order


# -- Q01 ------------------------------------------------------------------------------------


@pytest.mark.parametrize("switching", [contextlib.nullcontext, hasty])
def test_q01_two_threads_send(switching) -> None:
    """Of 1,000 messages of two threads each gets its answer, and the wire has the queue's order."""
    with (
        switching(),
        DevServer() as server,
        FluxbaseAIChat(server.ws_url, server.token()) as chat,
    ):
        order = registrations(chat)
        start = threading.Barrier(2)

        def ask(name: str) -> list[tuple[str, str]]:
            talk = chat.conversation("sql-assistant")
            talk.start()
            start.wait(WAIT)
            turns = [(f"{name}-{n}", talk.send(f"say {name}-{n}")) for n in range(500)]
            return [(words, turn.result(30).text) for words, turn in turns]

        for call in [run(ask, "one"), run(ask, "two")]:
            answers = call.result(40)
            assert [words for words, _ in answers] == [text for _, text in answers]
        sent = [m.frame["content"] for m in server.received if m.frame["type"] == "message"]
        assert 1000 == len(sent)
        assert [words for words in order if words] == sent
        assert 1 == server.connections


def test_q01_two_threads_ask() -> None:
    """The same when each waits for its answer before it asks again."""
    with DevServer() as server, FluxbaseAIChat(server.ws_url, server.token()) as chat:

        def ask(name: str) -> list[str]:
            talk = chat.conversation("sql-assistant")
            return [talk.ask(f"say {name}-{n}").text for n in range(200)]

        one, two = run(ask, "one"), run(ask, "two")
        assert [f"one-{n}" for n in range(200)] == one.result(30)
        assert [f"two-{n}" for n in range(200)] == two.result(30)


# -- Q02 ------------------------------------------------------------------------------------


def test_q02_disconnect_with_a_queue() -> None:
    """The server never sees what was queued; each turn says whether it was sent."""
    asked = Gate()
    seen: list[Any] = []

    def script(peer: Peer) -> None:
        peer.accept()
        peer.start("c-1")
        peer.start("c-2")
        peer.message()
        asked.open()
        seen.extend(peer.until_closed())

    heard = Heard()
    with RawServer(script) as server:
        chat = FluxbaseAIChat(server.url, on_error=heard)
        one, two = chat.start_chat("support"), chat.start_chat("support")
        turns = [chat.send_message(one, "running")]
        asked.wait()
        turns += [chat.send_message(cid, f"queued {cid}") for cid in (one, two, two)]
        chat.disconnect()
        server.join()
        for turn, sent in zip(turns, [True, False, False, False], strict=True):
            assert turn.wait(0)
            with pytest.raises(NotConnectedError) as caught:
                turn.result()
            assert sent is caught.value.sent
    assert ["running"] == [m["content"] for m in seen if m["type"] == "message"]
    assert 3 == len(seen)
    assert [] == heard.items


def test_q02_at_a_real_server() -> None:
    """The dev server finishes the running turn, and never hears of the queued ones."""
    gate = Gate()
    with DevServer(pause=lambda _: gate.wait()) as server:
        with FluxbaseAIChat(server.ws_url, server.token()) as chat:
            talk = chat.conversation("sql-assistant")
            turns = [talk.send(f"say {n}\npause 9") for n in range(4)]
            assert server.wait_for(lambda: server.running == 1)
        gate.open()
        assert server.wait_for(lambda: server.active == 0)
        assert all(turn.done for turn in turns)
        assert 1 == server.turns
    assert ["start_chat", "message"] == [m.frame["type"] for m in server.received]


# -- Q03 ------------------------------------------------------------------------------------


def test_q03_cancel_with_a_queue() -> None:
    """Two queued turns of others and a new message go over the new connection, in order."""
    asked, cancelled = Gate(), Gate()

    def first(peer: Peer) -> None:
        peer.accept()
        for n in (1, 2, 3):
            peer.start(f"c-{n}")
        peer.message()
        asked.open()
        assert {"type": "cancel", "conversation_id": "c-1"} == peer.recv_json()
        cancelled.wait()
        peer.send_text(content("c-1", "late"), done("c-1"))
        peer.send_text({"type": "cancelled", "conversation_id": "c-1"})

    heard = Heard()
    with (
        RawServer(first, Peer.serve) as server,
        FluxbaseAIChat(server.url, on_event=heard, on_error=heard) as chat,
    ):
        one, two, three = (chat.start_chat("support") for _ in range(3))
        running = chat.send_message(one, "running")
        asked.wait()
        queued = [chat.send_message(two, "second"), chat.send_message(three, "third")]
        running.cancel()
        queued.append(chat.send_message(one, "fourth"))
        assert ["You said: second", "You said: third", "You said: fourth"] == [
            turn.result().text for turn in queued
        ]
        cancelled.open()
        server.join(1)
        assert running.cancelled
        assert chat.wait_idle(WAIT)
        assert "connected" == chat.state
        types = heard.types
    assert ["second", "third", "fourth"] == [
        m["content"] for n, m in server.received if n == 2 and m["type"] == "message"
    ]
    assert not {"error", "disconnected", "reconnected", "cancelled"} & set(types)
    assert 3 == types.count("done")


def test_q03_cancel_and_the_server_is_away(monkeypatch) -> None:
    """When the new connection cannot be opened at once, the queue waits for a later one."""
    pauses = Pauses(monkeypatch)
    asked = Gate()

    def script(peer: Peer) -> None:
        if peer.number == 1:
            peer.accept()
            for n in (1, 2, 3):
                peer.start(f"c-{n}")
            peer.message()
            asked.open()
            assert "cancel" == peer.recv_json()["type"]
            peer.cut()
        elif peer.number < 4:
            peer.refuse("503 Service Unavailable")
        else:
            peer.serve()

    heard, failed = Heard(), Heard()
    with (
        RawServer(script) as server,
        FluxbaseAIChat(server.url, on_event=heard, on_error=failed) as chat,
    ):
        one, two, three = (chat.start_chat("support") for _ in range(3))
        running = chat.send_message(one, "running")
        asked.wait()
        queued = [chat.send_message(two, "second"), chat.send_message(three, "third")]
        running.cancel()
        queued.append(chat.send_message(one, "fourth"))
        assert ["You said: second", "You said: third", "You said: fourth"] == [
            turn.result().text for turn in queued
        ]
        assert chat.wait_idle(WAIT)
        # Now the client is away for its user too, and says so.
        assert ["connected", "disconnected", "reconnecting", "reconnecting", "reconnected"] == [
            name for name in heard.types if "connect" in name
        ]
        assert 2 == len(pauses.seconds)
    assert [] == failed.items
    assert ["second", "third", "fourth"] == [
        m["content"] for n, m in server.received if n == 4 and m["type"] == "message"
    ]


# -- Q04 ------------------------------------------------------------------------------------


def by_chatbot(peer: Peer) -> None:
    """Answer as the server does: the chatbot that was started last answers every message."""
    peer.accept()
    chatbot, started = "", 0
    with contextlib.suppress(Gone):
        while True:
            request = peer.recv_json()
            if request["type"] == "start_chat":
                chatbot = request["chatbot"]
                started += 1
                cid = request.get("conversation_id", f"c-{started}")
                peer.send_text({"type": "chat_started", "conversation_id": cid})
            else:
                cid = request["conversation_id"]
                peer.send_text(content(cid, f"{chatbot}: {request['content']}"), done(cid))


def check_starts(frames: list[dict[str, Any]], started: dict[str, str]) -> None:
    """Check that each known conversation is started again only where the chatbot changes.

    `started` has the chatbot of each conversation.
    """
    chatbot = ""
    for frame in frames:
        if frame["type"] == "start_chat":
            if "conversation_id" in frame:
                assert frame["chatbot"] != chatbot, "a start that was not needed"
                assert frame["chatbot"] == started[frame["conversation_id"]]
            chatbot = frame["chatbot"]
        else:
            assert chatbot == started[frame["conversation_id"]], "the wrong chatbot answers"


@pytest.mark.parametrize("switching", [contextlib.nullcontext, hasty])
def test_q04_two_chatbots_in_four_threads(switching) -> None:
    """Each message is answered by its own chatbot, and a start is sent only for a change."""
    with switching(), RawServer(by_chatbot) as server, FluxbaseAIChat(server.url) as chat:
        barrier = threading.Barrier(4)
        started: dict[str, str] = {}

        def ask(n: int) -> None:
            chatbot = ("sales", "support")[n % 2]
            talk = chat.conversation(chatbot)
            started[talk.start()] = chatbot
            barrier.wait(WAIT)
            for m in range(50):
                assert f"{chatbot}: {n}.{m}" == talk.ask(f"{n}.{m}").text

        for call in [run(ask, n) for n in range(4)]:
            call.result(30)
        assert 1 == server.connections
    frames = [frame for _, frame in server.received]
    assert 200 == sum(frame["type"] == "message" for frame in frames)
    check_starts(frames, started)


def test_q04_one_thread_and_two_chatbots() -> None:
    """Messages to one chatbot in a row need one start; a change needs one more each."""
    with RawServer(by_chatbot) as server, FluxbaseAIChat(server.url) as chat:
        sales, support = chat.start_chat("sales"), chat.start_chat("support")
        other = chat.start_chat("support")
        order = [support, other, support, sales, sales, other, sales]
        turns = [chat.send_message(cid, str(n)) for n, cid in enumerate(order)]
        bots = ["support", "support", "support", "sales", "sales", "support", "sales"]
        assert [f"{bot}: {n}" for n, bot in enumerate(bots)] == [t.result().text for t in turns]
    frames = [frame for _, frame in server.received]
    assert 3 + 3 == sum(frame["type"] == "start_chat" for frame in frames)
    check_starts(frames, {sales: "sales", support: "support", other: "support"})


def test_q04_at_a_real_server() -> None:
    """With the dev server each chatbot's own tools answer, from four threads in turns."""
    with DevServer() as server, FluxbaseAIChat(server.ws_url, server.token()) as chat:
        started: dict[str, str] = {}

        def ask(n: int) -> None:
            chatbot = ("sql-assistant", "tools")[n % 2]
            talk = chat.conversation(chatbot)
            started[talk.start()] = chatbot
            for _ in range(20):
                reply = talk.ask("sql SELECT count(*) AS n FROM users\n---\nsay ready")
                # Only a chatbot with tools of its own tells of its query as a tool's result.
                assert (n % 2) == len(reply.tool_results)
                assert 1 == len(reply.query_results)

        for call in [run(ask, n) for n in range(4)]:
            call.result(30)
    check_starts([m.frame for m in server.received], started)


# -- Q05 ------------------------------------------------------------------------------------


def test_q05_callback_waits_for_a_lock() -> None:
    """A callback may wait for a lock that a thread inside ask() holds, under a flood."""
    mine = threading.Lock()
    heard = Heard()

    def on_content(delta: str) -> None:
        with mine:
            heard(len(delta))

    def ask() -> str:
        with mine:
            return chat.ask("sql-assistant", "flood 5000 100", timeout=20).text

    with (
        DevServer() as server,
        FluxbaseAIChat(server.ws_url, server.token(), on_content=on_content) as chat,
    ):
        assert 500_000 == len(run(ask).result(30))
        assert chat.wait_idle(10)
    assert 500_000 == sum(heard.items)
