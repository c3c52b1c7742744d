"""Faults of conversations and turns (C): each request ends once, and with its own answer."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from clocks import FakeClock
from helpers import Heard, counting, run, spy
from servers import PING, PONG, WAIT, Gate, Peer, RawServer, content, done, error

from fluxbase_aichat import FluxbaseAIChat
from fluxbase_aichat.devserver import DevServer
from fluxbase_aichat.errors import (
    ChatbotNotFoundError,
    ChatTimeoutError,
    ConfigurationError,
    ConnectError,
    ConnectionLostError,
    ConnectTimeoutError,
    LocalProtocolError,
    ServerError,
    TurnCancelledError,
)
from fluxbase_aichat.results import Usage

CID = "c-1"


# -- C01 ------------------------------------------------------------------------------------


def test_c01_two_starts_at_once() -> None:
    """Of two starts the second is written when the first is answered; each gets its id."""
    registered = Gate()

    def script(peer: Peer) -> None:
        peer.accept()
        first = peer.recv_json()
        registered.wait()
        assert [] == peer.settle()
        for n, request in enumerate([first, None]):
            bot = (request or peer.recv_json())["chatbot"]
            assert [] == peer.settle()
            peer.send_text({"type": "chat_started", "conversation_id": f"{bot}-{n}"})
        peer.until_closed()

    with RawServer(script) as server, FluxbaseAIChat(server.url) as chat:
        wait = counting(chat)
        one = run(chat.start_chat, "one")
        wait()
        two = run(chat.start_chat, "two")
        wait()
        registered.open()
        assert ("one-0", "two-1") == (one.result(), two.result())


def test_c01_many_starts_at_once() -> None:
    """Eight threads that start at once all get conversations of their own, usable ones."""
    with (
        DevServer() as server,
        FluxbaseAIChat(server.ws_url, server.token()) as chat,
    ):
        barrier = threading.Barrier(8)

        def start() -> list[str]:
            barrier.wait(WAIT)
            return [chat.start_chat("sql-assistant") for _ in range(10)]

        ids = [cid for call in [run(start) for _ in range(8)] for cid in call.result()]
        assert 80 == len(set(ids))
        for cid in ids[::10]:
            assert "hello" == chat.send_message(cid, "say hello").result().text
        assert 1 == server.connections


# -- C02 ------------------------------------------------------------------------------------


def test_c02_first_start_fails_second_succeeds() -> None:
    """An error without an id answers the oldest start; the one behind it is not touched."""
    registered = Gate()

    def script(peer: Peer) -> None:
        peer.accept()
        assert "nobody" == peer.recv_json()["chatbot"]
        registered.wait()
        peer.send_text(error("Chatbot not found or disabled", "CHATBOT_NOT_FOUND"))
        peer.start(CID)
        peer.until_closed()

    heard = Heard()
    with RawServer(script) as server, FluxbaseAIChat(server.url, on_error=heard) as chat:
        wait = counting(chat)
        first = run(chat.start_chat, "nobody")
        wait()
        second = run(chat.start_chat, "support")
        wait()
        registered.open()
        assert CID == second.result()
        with pytest.raises(ChatbotNotFoundError) as caught:
            first.result()
        assert chat.is_connected()
    assert ("CHATBOT_NOT_FOUND", True) == (caught.value.code, caught.value.sent)
    assert [("Chatbot not found or disabled", "CHATBOT_NOT_FOUND", None)] == heard.items


def test_c02_the_second_keeps_its_identity() -> None:
    """A start that fails as another is on its way leaves that one the user it was made for."""
    begun, failed = Gate(), Gate()

    def script(peer: Peer) -> None:
        peer.accept()
        peer.recv_json()
        begun.wait()
        peer.send_text(error("Chatbot not found or disabled", "CHATBOT_NOT_FOUND"))
        peer.until_closed()

    def second_script(peer: Peer) -> None:
        peer.accept()
        assert "bob" == peer.start(CID)["impersonate_user_id"]
        peer.until_closed()

    with RawServer(script, second_script) as server, FluxbaseAIChat(server.url) as chat:
        wait = counting(chat)
        first = run(chat.start_chat, "nobody", impersonate_user_id="bob")
        wait()
        submit = chat._session.submit

        def late(*arguments: Any) -> None:
            begun.open()
            failed.wait()
            submit(*arguments)

        chat._session.submit = late  # type: ignore[method-assign]
        second = run(chat.start_chat, "support", impersonate_user_id="bob")
        with pytest.raises(ChatbotNotFoundError):
            first.result()
        failed.open()
        assert CID == second.result()


def test_c02_another_user_gets_another_connection() -> None:
    """After a start that failed as somebody, nobody knows whom its connection acts as."""

    def script(peer: Peer) -> None:
        peer.accept()
        assert "bob" == peer.recv_json()["impersonate_user_id"]
        peer.send_text(error("Chatbot not found or disabled", "CHATBOT_NOT_FOUND"))
        peer.until_closed()

    def own(peer: Peer) -> None:
        peer.accept()
        assert "impersonate_user_id" not in peer.start(CID)
        peer.until_closed()

    with RawServer(script, own) as server, FluxbaseAIChat(server.url) as chat:
        with pytest.raises(ChatbotNotFoundError):
            chat.start_chat("nobody", impersonate_user_id="bob")
        assert CID == chat.start_chat("support")


def test_c02_a_start_that_was_never_sent_fixes_nobody() -> None:
    """Whom a start wanted to act as is free again when there was no connection for it."""
    with RawServer(lambda peer: peer.refuse("500 Oops"), Peer.serve) as server:
        chat = FluxbaseAIChat(server.url, reconnect_attempts=0)
        with pytest.raises(ConnectError):
            chat.start_chat("support", impersonate_user_id="bbo")
        chat.start_chat("support", impersonate_user_id="bob")
        chat.disconnect()
        assert ["bob"] == [m["impersonate_user_id"] for _, m in server.received]


def test_c02_message_whose_start_fails() -> None:
    """A message whose conversation cannot be started fails as unsent; the next one goes."""

    def script(peer: Peer) -> None:
        peer.accept()
        peer.recv_json()
        peer.send_text(error("Chatbot not found or disabled", "CHATBOT_NOT_FOUND"))
        peer.start(CID)
        peer.answer("Hello")
        peer.until_closed()

    with RawServer(script) as server, FluxbaseAIChat(server.url) as chat:
        failing = chat.conversation("nobody").send("Hi")
        whole = chat.conversation("support").send("Hi")
        with pytest.raises(ChatbotNotFoundError) as caught:
            failing.result()
        assert caught.value.sent is False
        assert "Hello" == whole.result().text
    assert ["start_chat", "start_chat", "message"] == [m["type"] for _, m in server.received]


# -- C05 ------------------------------------------------------------------------------------


def test_c05_error_without_a_conversation() -> None:
    """An error that names nobody, with no done behind it, ends the running turn and no other."""

    def script(peer: Peer) -> None:
        peer.accept()
        peer.start("c-1")
        peer.start("c-2")
        peer.message()
        peer.send_text(content("c-1", "half"), error("The AI gave up"))
        peer.answer("whole")
        peer.answer("again")
        peer.until_closed()

    failed, ended = Heard(), Heard()
    with (
        RawServer(script) as server,
        FluxbaseAIChat(server.url, on_error=failed, on_done=ended) as chat,
    ):
        one, two = chat.start_chat("support"), chat.start_chat("support")
        broken = chat.send_message(one, "Hi")
        behind = chat.send_message(two, "Hi")
        with pytest.raises(ServerError, match="The AI gave up") as caught:
            broken.result()
        assert "whole" == behind.result().text
        assert "again" == chat.send_message(one, "Hi").result().text
        assert chat.wait_idle(WAIT)
        assert 1 == server.connections
    assert ServerError is type(caught.value)
    assert ("", "half", True) == (caught.value.code, caught.value.partial_text, caught.value.sent)
    assert [("The AI gave up", None, None)] == failed.items
    assert [two, one] == [cid for _, cid in ended.items]
    assert broken.done
    assert not broken.cancelled


def test_c05_iterating_raises_it() -> None:
    """The error is raised behind what had arrived, by iterators too."""
    with (
        DevServer() as server,
        FluxbaseAIChat(server.ws_url, server.token()) as chat,
    ):
        talk = chat.conversation("intent")
        turn = talk.send("sql SELECT 1 -- orders\n---\nsql SELECT 2 -- orders")
        seen = []
        with pytest.raises(ServerError, match="isn't allowed") as caught:
            seen.extend(turn)
        assert "error" not in [event.type for event in seen]
        assert caught.value.code == ""
        assert talk.ask("say still here").text == "still here"


# -- C07 ------------------------------------------------------------------------------------

ZEROS = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        (ZEROS, Usage()),
        ({}, Usage()),
        (None, None),
        ({"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}, Usage(1, 2, 3)),
        ({**ZEROS, "total_tokens": 7, "cached_tokens": 4}, Usage(total_tokens=7, cached_tokens=4)),
    ],
)
def test_c07_turn_without_content(usage, expected) -> None:
    """A turn may have no text; zero usage is kept as zeros, and missing usage is None."""

    def script(peer: Peer) -> None:
        peer.accept()
        peer.start(CID)
        peer.message()
        peer.send_text({"type": "progress", "conversation_id": CID, "step": "thinking"})
        peer.send_text(done(CID, usage))
        peer.until_closed()

    heard = Heard()
    with RawServer(script) as server, FluxbaseAIChat(server.url, on_done=heard) as chat:
        turn = chat.conversation("support").send("Hi")
        reply = turn.result()
        assert turn.wait(WAIT)
        assert ("", (), expected) == (reply.text, reply.segments, reply.usage)
        assert expected == turn.usage
        assert "" == chat.get_accumulated_content(CID)
        assert [] == list(turn.text_stream)
        assert reply.time_to_first_content is None
    assert [(expected, CID)] == heard.items


# -- C08 ------------------------------------------------------------------------------------


class Quiet:
    """Callbacks that must not hear anything after a turn was cancelled."""

    def __init__(self) -> None:
        self.events, self.errors, self.contents, self.ends = Heard(), Heard(), Heard(), Heard()
        self.options: dict[str, Any] = {
            "on_event": self.events,
            "on_error": self.errors,
            "on_content": self.contents,
            "on_done": self.ends,
        }


def test_c08_cancel_in_the_queue() -> None:
    """A turn that waits behind another leaves the queue: no frame, no effect on the other."""
    asked, cancelled = Gate(), Gate()

    def script(peer: Peer) -> None:
        peer.accept()
        peer.start(CID)
        peer.message()
        asked.open()
        cancelled.wait()
        assert [] == peer.settle()
        peer.send_text(content(CID, "first"), done(CID))
        assert "third" == peer.answer("third")["content"]
        peer.until_closed()

    quiet = Quiet()
    with RawServer(script) as server, FluxbaseAIChat(server.url, **quiet.options) as chat:
        talk = chat.conversation("support")
        first, second, third = (talk.send(words) for words in ("first", "second", "third"))
        asked.wait()
        second.cancel()
        assert second.cancelled
        with pytest.raises(TurnCancelledError) as caught:
            second.result()
        assert (False, "") == (caught.value.sent, caught.value.partial_text)
        assert [] == list(second)
        cancelled.open()
        assert ("first", "third") == (first.result().text, third.result().text)
        assert 1 == server.connections
        assert chat.wait_idle(WAIT)
    assert [] == quiet.errors.items
    assert 2 == len(quiet.ends.items)
    assert "cancel" not in [m["type"] for _, m in server.received]


def test_c08_cancel_while_its_start_is_on_the_wire() -> None:
    """A message whose start is being answered was not written: no frame, the connection stays."""
    asked, cancelled = Gate(), Gate()

    def script(peer: Peer) -> None:
        peer.accept()
        request = peer.recv_json()
        assert "start_chat" == request["type"]
        asked.open()
        cancelled.wait()
        assert [] == peer.settle()
        peer.send_text({"type": "chat_started", "conversation_id": CID, "chatbot": "support"})
        peer.start("c-2")
        peer.answer("second")
        peer.until_closed()

    quiet = Quiet()
    with RawServer(script) as server, FluxbaseAIChat(server.url, **quiet.options) as chat:
        turn = chat.conversation("support").send("never written")
        asked.wait()
        turn.cancel()
        with pytest.raises(TurnCancelledError) as caught:
            turn.result()
        assert caught.value.sent is False
        behind = chat.conversation("support").send("second")
        cancelled.open()
        assert "second" == behind.result().text
        assert 1 == server.connections
    assert [] == quiet.errors.items
    assert ["start_chat", "start_chat", "message"] == [m["type"] for _, m in server.received]


def test_c08_cancel_while_connecting() -> None:
    """A turn that waits for the connection leaves the queue; nothing of it is ever written."""
    asked, cancelled = Gate(), Gate()

    def script(peer: Peer) -> None:
        peer.read_request()
        asked.open()
        cancelled.wait()
        peer.serve()

    with RawServer(script) as server:
        chat = FluxbaseAIChat(server.url)
        turn = chat.conversation("support").send("never written")
        asked.wait()
        turn.cancel()
        assert turn.cancelled
        cancelled.open()
        assert "You said: second" == chat.ask("support", "second").text
        chat.disconnect()
    assert ["second"] == [m["content"] for _, m in server.received if "content" in m]


LATE: list[dict[str, Any]] = [
    content(CID, "late"),
    {"type": "query_result", "conversation_id": CID, "query": "SELECT 1"},
    done(CID, ZEROS),
    {"type": "cancelled", "conversation_id": CID},
]


@pytest.mark.parametrize("arrived", [[], ["half", " way"]], ids=["before the first", "mid-stream"])
@pytest.mark.parametrize("late", [LATE, [error("late", "STREAM_ERROR", CID)], []])
def test_c08_cancel_on_the_wire(arrived, late) -> None:
    """It ends at once with one frame; what comes late, and the old stream's end, are silent."""
    asked, ended = Gate(), Gate()

    def first(peer: Peer) -> None:
        peer.accept()
        peer.start(CID)
        peer.message()
        peer.send_text(*(content(CID, delta) for delta in arrived))
        asked.open()
        assert {"type": "cancel", "conversation_id": CID} == peer.recv_json()
        ended.wait()
        assert [] == peer.settle()
        peer.send_text(*late)
        peer.cut()

    def second(peer: Peer) -> None:
        peer.accept()
        assert {"type": "start_chat", "chatbot": "support", "conversation_id": CID} == peer.start(
            CID
        )
        peer.answer("new")
        peer.answer("newer")
        peer.until_closed()

    quiet = Quiet()
    with RawServer(first, second) as server, FluxbaseAIChat(server.url, **quiet.options) as chat:
        talk = chat.conversation("support")
        turn = talk.send("Hi")
        asked.wait()
        quiet.events.wait_for_type("chat_started")
        quiet.contents.wait_for(lambda items: len(items) == len(arrived))
        turn.cancel()
        assert turn.cancelled
        assert turn.done
        with pytest.raises(TurnCancelledError) as caught:
            turn.result()
        assert (True, "".join(arrived)) == (caught.value.sent, caught.value.partial_text)
        assert [] == list(turn)
        assert turn.wait(WAIT)
        events = quiet.events.types
        turn.cancel()
        talk.cancel()
        chat.cancel(CID)
        ended.open()
        server.join(1)
        assert "new" == talk.ask("again").text
        assert "newer" == talk.ask("and again").text
        assert chat.wait_idle(WAIT)
    assert [] == quiet.errors.items
    assert [*arrived, "new", "newer"] == [delta for delta, _ in quiet.contents.items]
    assert 2 == len(quiet.ends.items)
    assert ["connected", "chat_started", *["content"] * len(arrived)] == events
    later = quiet.events.types[len(events) :]
    assert ["chat_started", *["content", "done"] * 2, "disconnected"] == later


def test_c08_cancel_after_done() -> None:
    """A turn that has ended is not cancelled: no frame, its answer stays."""

    def script(peer: Peer) -> None:
        peer.accept()
        peer.start(CID)
        peer.answer("whole")
        peer.answer("next")
        peer.until_closed()

    with RawServer(script) as server, FluxbaseAIChat(server.url) as chat:
        talk = chat.conversation("support")
        turn = talk.send("Hi")
        assert "whole" == turn.result().text
        turn.cancel()
        talk.cancel()
        chat.cancel(CID)
        chat.cancel("c-unknown")
        with turn:
            pass
        assert not turn.cancelled
        assert turn.error is None
        assert "whole" == turn.result().text
        assert "next" == talk.ask("Hi").text
        assert 1 == server.connections
    assert "cancel" not in [m["type"] for _, m in server.received]


def test_c08_cancel_twice_and_the_queued_ones() -> None:
    """chat.cancel takes the running turn, then the oldest queued one, then nothing."""
    asked, over = Gate(), Gate()

    def first(peer: Peer) -> None:
        peer.accept()
        peer.start("c-other")
        peer.start(CID)
        peer.message()
        asked.open()
        over.wait()
        peer.send_text(content("c-other", "other"), done("c-other"))
        peer.until_closed()

    with RawServer(first) as server, FluxbaseAIChat(server.url) as chat:
        other, cid = chat.start_chat("support"), chat.start_chat("support")
        running = chat.send_message(other, "other")
        asked.wait()
        older, newer = chat.send_message(cid, "older"), chat.send_message(cid, "newer")
        chat.cancel(cid)
        assert (True, False) == (older.cancelled, newer.cancelled)
        chat.cancel(cid)
        assert newer.cancelled
        chat.cancel(cid)
        assert not running.done
        over.open()
        assert "other" == running.result().text
    assert ["start_chat", "start_chat", "message"] == [m["type"] for _, m in server.received]


def test_c08_cancel_in_a_callback() -> None:
    """A callback that cancels its own turn is the last to hear of it."""
    cancelled, heard = Gate(), Heard()

    def on_content(delta: str, conversation_id: str) -> None:
        heard(delta)
        chat.cancel(conversation_id)
        cancelled.open()

    with (
        DevServer(pause=lambda _: cancelled.wait()) as server,
        FluxbaseAIChat(server.ws_url, server.token(), on_content=on_content) as chat,
    ):
        turn = chat.conversation("sql-assistant").send("say one\npause 9\nsay two three")
        with pytest.raises(TurnCancelledError):
            turn.result()
        assert turn.wait(WAIT)
        assert ["one"] == heard.items
        assert server.wait_for(lambda: server.turns == 1)
        assert chat.wait_idle(WAIT)
    assert ["one"] == heard.items


def test_c08_cancel_at_a_real_server() -> None:
    """The same with the dev server: the next answer comes over a second connection."""
    gate = Gate()
    errors = Heard()
    with (
        DevServer(pause=lambda _: gate.wait()) as server,
        FluxbaseAIChat(server.ws_url, server.token(), on_error=errors) as chat,
    ):
        talk = chat.conversation("sql-assistant")
        turn = talk.send("say one\npause 9\nsay two")
        assert "one" == next(turn.text_stream)
        turn.cancel()
        assert "three" == talk.ask("say three").text
        gate.open()
        assert server.wait_for(lambda: server.active == 1)
        assert ("one", True) == (turn.text, turn.cancelled)
        assert "four" == talk.ask("say four").text
        assert 2 == server.connections
    cancels = [m for m in server.received if m.frame["type"] == "cancel"]
    assert [1] == [m.connection for m in cancels]
    assert [] == errors.items


# -- C10 ------------------------------------------------------------------------------------


def test_c10_second_message_is_queued() -> None:
    """A second message of a conversation is written when the first is answered."""
    queued = Gate()

    def script(peer: Peer) -> None:
        peer.accept()
        peer.start(CID)
        assert "one" == peer.message()["content"]
        queued.wait()
        assert [] == peer.settle()
        peer.send_text(content(CID, "1"), done(CID))
        assert "two" == peer.answer("2")["content"]
        peer.until_closed()

    with RawServer(script) as server, FluxbaseAIChat(server.url) as chat:
        talk = chat.conversation("support")
        one = talk.send("one")
        two = talk.send("two", if_busy="queue")
        queued.open()
        assert ("1", "2") == (one.result().text, two.result().text)
        assert 1 == server.connections


@pytest.mark.parametrize("by", ["conversation", "client"])
def test_c10_if_busy_raise(by) -> None:
    """`"raise"` raises while a turn runs or waits, and leaves nothing in the queue."""
    asked, over = Gate(), Gate()

    def script(peer: Peer) -> None:
        peer.accept()
        peer.start(CID)
        peer.message()
        asked.open()
        over.wait()
        assert [] == peer.settle()
        peer.send_text(content(CID, "1"), done(CID))
        assert "three" == peer.answer("3")["content"]
        peer.until_closed()

    with RawServer(script) as server, FluxbaseAIChat(server.url) as chat:
        cid = chat.start_chat("support")
        talk = chat.conversation("support", conversation_id=cid)
        send = (
            talk.send if by == "conversation" else lambda *a, **k: chat.send_message(cid, *a, **k)
        )
        one = send("one", if_busy="raise")
        asked.wait()
        with pytest.raises(LocalProtocolError) as caught:
            send("two", if_busy="raise")
        assert caught.value.sent is False
        with pytest.raises(ConfigurationError, match="if_busy"):
            send("two", if_busy="wait")
        over.open()
        assert "1" == one.result().text
        assert "3" == send("three", if_busy="raise").result().text


def test_c10_two_handles_on_one_conversation() -> None:
    """They are one conversation, also when both were made before it was started."""
    asked = Gate()

    def script(peer: Peer) -> None:
        peer.accept()
        peer.start(CID)
        peer.answer("One")
        peer.message()
        peer.send_text(content(CID, "Two"))
        asked.open()
        peer.until_closed()

    with RawServer(script) as server, FluxbaseAIChat(server.url) as chat:
        first, second = [chat.conversation("support", conversation_id=CID) for _ in range(2)]
        assert "One" == first.ask("Hi").text
        turn = second.send("Hi")
        asked.wait()
        assert "Two" == next(turn.text_stream)
        assert "Two" == chat.get_accumulated_content(CID)
        with pytest.raises(LocalProtocolError):
            first.send("Hi", if_busy="raise")
        chat.cancel(CID)
        assert turn.cancelled


def test_c10_if_busy_cancel() -> None:
    """`"cancel"` ends the running turn of this conversation; what was queued keeps its place."""
    asked = Gate()

    def first(peer: Peer) -> None:
        peer.accept()
        peer.start(CID)
        peer.message()
        peer.send_text(content(CID, "half"))
        asked.open()
        assert {"type": "cancel", "conversation_id": CID} == peer.recv_json()
        peer.send_text(done(CID), {"type": "cancelled", "conversation_id": CID})

    def second(peer: Peer) -> None:
        peer.accept()
        peer.start(CID)
        assert "two" == peer.answer("2")["content"]
        assert "three" == peer.answer("3")["content"]
        peer.until_closed()

    with RawServer(first, second) as server, FluxbaseAIChat(server.url) as chat:
        talk = chat.conversation("support")
        one = talk.send("one")
        asked.wait()
        two = talk.send("two")
        three = talk.send("three", if_busy="cancel")
        assert one.cancelled
        assert ("2", "3") == (two.result().text, three.result().text)


def test_c10_if_busy_cancel_spares_other_conversations() -> None:
    """The running turn of another conversation is not cancelled, and none is when none runs."""
    asked, over = Gate(), Gate()

    def script(peer: Peer) -> None:
        peer.accept()
        peer.start("c-1")
        peer.start("c-2")
        peer.message()
        asked.open()
        over.wait()
        peer.send_text(content("c-1", "1"), done("c-1"))
        peer.answer("2")
        peer.answer("3")
        peer.until_closed()

    with RawServer(script) as server, FluxbaseAIChat(server.url) as chat:
        one, two = chat.start_chat("support"), chat.start_chat("support")
        running = chat.send_message(one, "one", if_busy="cancel")
        asked.wait()
        queued = chat.send_message(two, "two", if_busy="cancel")
        behind = chat.send_message(two, "three", if_busy="cancel")
        over.open()
        assert ["1", "2", "3"] == [t.result().text for t in (running, queued, behind)]
        assert 1 == server.connections


def test_c10_at_a_real_server() -> None:
    """Two messages at once are both answered, in order, by the dev server."""
    with DevServer() as server, FluxbaseAIChat(server.ws_url, server.token()) as chat:
        talk = chat.conversation("sql-assistant")
        one, two = talk.send("say one"), talk.send("say two")
        assert ("one", "two") == (one.result().text, two.result().text)
    assert ["start_chat", "message", "message"] == [m.frame["type"] for m in server.received]


# -- C04 ------------------------------------------------------------------------------------


def test_c04_loss_with_a_queue() -> None:
    """The turn on the wire fails once, as sent; what was queued goes over the next connection."""
    asked, queued = Gate(), Gate()

    def first(peer: Peer) -> None:
        peer.accept()
        peer.start("c-1")
        peer.start("c-2")
        peer.message()
        asked.open()
        queued.wait()
        peer.cut()

    heard = Heard()
    with (
        RawServer(first, Peer.serve) as server,
        FluxbaseAIChat(server.url, on_error=heard, reconnect_delay=0.01) as chat,
    ):
        one, two = chat.start_chat("support"), chat.start_chat("support")
        lost = chat.send_message(one, "lost")
        asked.wait()
        registered = counting(chat)
        started = run(chat.start_chat, "support")
        registered()
        moved = chat.send_message(two, "moved")
        queued.open()
        with pytest.raises(ConnectionLostError) as caught:
            lost.result()
        assert (True, False) == (caught.value.sent, caught.value.retryable)
        assert caught.value.turn is lost
        assert started.result()
        assert "You said: moved" == moved.result().text
        assert chat.wait_idle(WAIT)
    assert [one] == [cid for _, _, cid in heard.items]
    assert ["moved"] == [m["content"] for n, m in server.received if n == 2 and "content" in m]


def test_c04_loss_with_a_queue_and_no_connection_in_time() -> None:
    """What was queued and finds no other connection fails at its own deadline, as unsent."""
    asked, queued, late = Gate(), Gate(), Gate()

    def first(peer: Peer) -> None:
        peer.accept()
        peer.start("c-1")
        peer.start("c-2")
        peer.message()
        asked.open()
        queued.wait()
        peer.cut()

    def second(peer: Peer) -> None:
        peer.read_request()
        late.wait()
        peer.serve()

    heard = Heard()
    with (
        RawServer(first, second) as server,
        FluxbaseAIChat(server.url, on_error=heard, reconnect_delay=0.0) as chat,
    ):
        one, two = chat.start_chat("support"), chat.start_chat("support")
        lost = chat.send_message(one, "lost")
        asked.wait()
        registered = counting(chat, "_enqueue")
        talk = chat.conversation("support", conversation_id=two)
        waiting = [
            run(chat.start_chat, "support", timeout=0.2),
            run(talk.ask, "never", timeout=0.2),
        ]
        for _ in waiting:
            registered()
        patient = chat.send_message(two, "patient")
        queued.open()
        with pytest.raises(ConnectionLostError) as caught:
            lost.result()
        assert caught.value.sent is True
        for call in waiting:
            with pytest.raises(ConnectTimeoutError) as unsent:
                call.result()
            assert unsent.value.sent is False
        assert not patient.done
        late.open()
        assert "You said: patient" == patient.result().text
        assert chat.wait_idle(WAIT)
    assert ["CONNECTION_LOST", "TIMEOUT", "TIMEOUT"] == [code for _, code, _ in heard.items]
    # The start that was given up is not written, the patient message is, with its start.
    assert ["start_chat", "message"] == [m["type"] for n, m in server.received if n == 2]
    assert ["lost", "patient"] == [m["content"] for _, m in server.received if "content" in m]


# -- a call's own time ----------------------------------------------------------------------


def late(call: Callable[[], object]) -> str:
    """Return what a call says whose time is up."""
    with pytest.raises((ChatTimeoutError, ConnectTimeoutError)) as caught:
        call()
    return str(caught.value)


def test_no_connection_within_the_seconds_of_a_call() -> None:
    """The error says how many there were."""

    def script(peer: Peer) -> None:
        peer.read_request()
        peer.until_closed()

    with RawServer(script) as server:
        chat = FluxbaseAIChat(server.url)
        assert "there was no connection within 0.05 s" == late(
            lambda: chat.ask("support", "Hi", timeout=0.05)
        )
        chat.disconnect()


def test_no_answer_within_the_seconds_of_a_call() -> None:
    """The error says how many there were, and what the call has waited for."""
    asked, begun = Gate(), Gate()

    def first(peer: Peer) -> None:
        peer.accept()
        peer.start(CID)
        peer.message()
        asked.open()
        peer.until_closed()

    def second(peer: Peer) -> None:
        peer.accept()
        peer.recv_json()
        begun.open()
        peer.until_closed()

    with RawServer(first, second) as server, FluxbaseAIChat(server.url) as chat:
        give_up = chat._session.give_up
        turn = chat.conversation("support").send("Hi")
        asked.wait()
        queued = "nothing was sent within 0.05 s: what was asked before is unanswered"
        assert queued == late(lambda: chat.ask("support", "Hi", timeout=0.05))
        assert queued == late(lambda: chat.start_chat("support", timeout=0.05))
        give_up(turn._entry, 7.5)
        assert "the answer was not whole within 7.5 s" == late(turn.result)
        turn = chat.conversation("support").send("Hi")
        begun.wait()
        give_up(turn._entry, 7.5)
        assert "the conversation was not started within 7.5 s" == late(turn.result)


# -- C12, C13, C14 --------------------------------------------------------------------------


@pytest.mark.parametrize("between", [(), (200, 200)])
def test_c12_silence_in_a_turn(between) -> None:
    """A turn that is silent for 299 s lives; after 301 s it ends as a cancel does."""
    pinged = threading.Semaphore(0)

    def first(peer: Peer) -> None:
        peer.accept()
        peer.start(CID)
        peer.message()
        peer.send_text(content(CID, "0"))
        for n in range(len(between)):
            assert pinged.acquire(timeout=WAIT)
            peer.send_text(content(CID, str(n + 1)))
        assert {"type": "cancel", "conversation_id": CID} == peer.recv_json()

    heard = Heard()
    with RawServer(first, Peer.serve) as server:
        chat = FluxbaseAIChat(server.url, on_error=heard)
        clock = FakeClock().drive(chat)
        with chat:
            talk = chat.conversation("support")
            turn = talk.send("Hi")
            words = turn.text_stream
            assert "0" == next(words)
            for n, seconds in enumerate(between):
                clock.advance(seconds)
                pinged.release()
                assert str(n + 1) == next(words)
            clock.advance(299)
            assert turn.wait(0.05) is False
            clock.advance(2)
            with pytest.raises(ChatTimeoutError) as caught:
                turn.result()
            assert ("idle", True) == (caught.value.phase, caught.value.sent)
            assert caught.value.partial_text.startswith("0")
            assert "You said: again" == talk.ask("again").text
            server.join()
            assert chat.wait_idle(WAIT)
    assert [("TIMEOUT", CID)] == [(code, cid) for _, code, cid in heard.items]


def test_c13_busy_server() -> None:
    """A server that is busy for 60 s is asked for no pong, and the connection is kept."""
    asked, over = Gate(), Gate()

    def script(peer: Peer) -> None:
        peer.accept()
        peer.start(CID)
        peer.message()
        peer.send_text(content(CID, "half"))
        asked.open()
        over.wait()
        assert [] == peer.settle()
        assert PING not in [opcode for opcode, _ in peer.control]
        peer.send_text(content(CID, " whole"), done(CID))
        peer.until_closed()

    with RawServer(script) as server:
        chat = FluxbaseAIChat(server.url)
        clock = FakeClock().drive(chat)
        with chat:
            turn = chat.conversation("support").send("Hi")
            assert "half" == next(turn.text_stream)
            for _ in range(4):
                clock.advance(15)
            clock.advance(60)
            over.open()
            assert "half whole" == turn.result().text
            assert 1 == server.connections


def test_c14_no_pong_when_idle() -> None:
    """An idle connection is asked after 20 s; without a pong in 20 s it is lost, and replaced."""
    alive, pinged = Gate(), Gate()

    def first(peer: Peer) -> None:
        peer.accept()
        peer.start(CID)
        opcode, payload = peer.recv_control()
        assert PING == opcode
        peer.send_frame(PONG, payload)
        assert [] == peer.settle()
        alive.open()
        assert PING == peer.recv_control()[0]
        pinged.open()
        peer.until_closed()

    heard = Heard()
    with RawServer(first, Peer.serve) as server:
        chat = FluxbaseAIChat(server.url, on_event=heard, reconnect_delay=0.0)
        clock = FakeClock().drive(chat)
        with chat:
            cid = chat.start_chat("support")
            clock.advance(21)
            alive.wait()
            assert chat.is_connected()
            clock.advance(21)
            pinged.wait()
            # The I/O thread notes the time of a ping behind writing it.
            connection = chat._session._current
            looked = Gate()
            spy(connection._waker, "drain", looked.open)
            connection._waker.wake()
            looked.wait()
            clock.advance(21)
            heard.wait_for_type("reconnected")
            assert "You said: Hi" == chat.send_message(cid, "Hi").result().text
            assert 2 == server.connections
            assert ["connected", "chat_started", "disconnected", "reconnecting", "reconnected"] == (
                heard.types[:5]
            )
            assert [1] == [e.attempt for e in heard.items if e.type == "reconnecting"]
