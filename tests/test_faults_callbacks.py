"""Faults of callbacks (K): what a user's function does harms nobody but itself."""

from __future__ import annotations

import contextvars
import json
import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest
from clocks import FakeClock
from helpers import Heard, LockOrder, run, spy
from servers import PING, PONG, WAIT, Gate, Peer, RawServer, content, done, error

from fluxbase_aichat import FluxbaseAIChat, Limits, Timeouts
from fluxbase_aichat.devserver import DevServer
from fluxbase_aichat.errors import ConnectionLostError, FluxbaseChatError
from fluxbase_aichat.events import Event

CID = "c-1"
TURN: list[dict[str, Any]] = [
    {"type": "progress", "conversation_id": CID, "step": "thinking", "message": "m"},
    content(CID, "a"),
    content(CID, "b"),
    {"type": "query_result", "conversation_id": CID, "query": "SELECT 1"},
    {
        "type": "tool_result",
        "conversation_id": CID,
        "message": "execute_sql",
        "query": "SELECT 2",
        "data": [{"a": 1}],
    },
    {"type": "news", "conversation_id": CID},
    done(CID),
]


def answering(*turns: list[dict[str, Any]]) -> Any:
    """Return a script that answers each message with these messages."""

    def script(peer: Peer) -> None:
        peer.accept()
        peer.start(CID)
        for turn in turns:
            peer.message()
            peer.send_text(*turn)
        peer.until_closed()

    return script


# -- K01 ------------------------------------------------------------------------------------

NAMES = {
    "on_content": ["content", "content"],
    "on_progress": ["progress"],
    "on_query_result": ["query_result", "tool_result"],
    "on_done": ["done"],
    "on_error": ["error"],
}


class Boom(BaseException):
    """Raised by callbacks; not even an Exception."""


@pytest.mark.parametrize("kind", [ValueError, Boom, SystemExit, KeyboardInterrupt])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("with_on_event", [True, False])
def test_k01_callback_raises(name, kind, with_on_event, caplog) -> None:
    """It is logged with its traceback and the event's type, counted, and the next ones run."""

    def failing(*_: object) -> None:
        raise kind("s3cret")

    others = {other: Heard() for other in [*NAMES, *["on_event"] * with_on_event] if other != name}
    failure = [error("no", "STREAM_ERROR", CID)]
    with (
        RawServer(answering(TURN, failure)) as server,
        FluxbaseAIChat(server.url, **{name: failing}, **others) as chat,
    ):
        talk = chat.conversation("support")
        first, second = talk.send("Hi"), talk.send("again")
        assert "ab" == first.result().text
        assert first.wait(WAIT)
        assert second.wait(WAIT)
        assert second.error is not None
        assert len(NAMES[name]) == chat._session.callback_errors
    records = [r for r in caplog.records if r.name.startswith("fluxbase_aichat")]
    assert len(NAMES[name]) == len(records)
    for record, event_type in zip(records, NAMES[name], strict=True):
        assert event_type in record.getMessage()
        assert record.levelno == logging.ERROR
        assert kind is record.exc_info[0]
    for other, heard in others.items():
        if other != "on_event":
            assert len(NAMES[other]) == len(heard.items), other
    if with_on_event:
        assert [*[m["type"] for m in TURN], "error"] == [
            e.type for e in others["on_event"].items if e.conversation_id
        ][1:]


def test_k01_on_event_raises(caplog) -> None:
    """An on_event that always raises silences no other callback."""
    heard = Heard()

    def failing(event: Event) -> None:
        raise ValueError

    with (
        RawServer(answering(TURN)) as server,
        FluxbaseAIChat(server.url, on_event=failing, on_content=heard, on_done=heard) as chat,
    ):
        assert chat.conversation("support").send("Hi").wait(WAIT)
    assert [("a", CID), ("b", CID), (None, CID)] == heard.items
    messages = " ".join(record.getMessage() for record in caplog.records)
    for message in TURN:
        assert message["type"] in messages


def test_k01_on_callback_error(caplog) -> None:
    """With on_callback_error it is told in place of the log, with the exception and event."""
    told = Heard()
    problem = ValueError("mine")

    def failing(delta: str) -> None:
        raise problem

    with (
        RawServer(answering(TURN)) as server,
        FluxbaseAIChat(server.url, on_content=failing, on_callback_error=told) as chat,
    ):
        assert chat.conversation("support").send("Hi").wait(WAIT)
        assert 2 == chat._session.callback_errors
    assert [problem, problem] == [exception for exception, _ in told.items]
    assert [TURN[1]["delta"], TURN[2]["delta"]] == [event.delta for _, event in told.items]
    assert {CID} == {event.conversation_id for _, event in told.items}
    assert [] == [r for r in caplog.records if r.levelno >= logging.ERROR]


def test_k01_on_callback_error_raises_too(caplog) -> None:
    """Even then the next callback runs, and the log tells of it."""
    heard = Heard()

    def failing(*_: object) -> None:
        raise ValueError

    with (
        RawServer(answering(TURN)) as server,
        FluxbaseAIChat(
            server.url, on_content=failing, on_callback_error=failing, on_done=heard
        ) as chat,
    ):
        assert chat.conversation("support").send("Hi").wait(WAIT)
    assert 1 == len(heard.items)
    assert [r for r in caplog.records if r.levelno >= logging.ERROR]


# -- K03 ------------------------------------------------------------------------------------


def test_k03_callback_blocks() -> None:
    """While a callback blocks, calls and turns go on; afterwards nothing was dropped."""
    entered, over = Gate(), Gate()
    deltas = Heard()

    def blocking(delta: str) -> None:
        deltas(delta)
        entered.open()
        over.wait()

    with (
        DevServer() as server,
        FluxbaseAIChat(server.ws_url, server.token(), on_content=blocking) as chat,
    ):
        talk = chat.conversation("sql-assistant")
        first = talk.send("say one two three")
        entered.wait()
        assert "one two three" == first.result(WAIT).text
        assert "four" == talk.ask("say four", timeout=WAIT).text
        assert chat.start_chat("sql-assistant", timeout=WAIT)
        assert first.wait(0) is False
        assert chat.wait_idle(0) is False
        over.open()
        assert chat.wait_idle(WAIT)
    assert "one two threefour" == "".join(deltas.items)


def flooding(total: int, size: int, sent: Gate) -> Any:
    """Return a script that answers a message with that many deltas of `size`, one a frame."""

    def script(peer: Peer) -> None:
        peer.accept()
        peer.start(CID)
        peer.message()
        for at in range(0, total, 100):
            numbers = range(at, min(total, at + 100))
            peer.send_text(*(content(CID, f"{n}".rjust(size)) for n in numbers))
        peer.send_text(done(CID))
        sent.open()
        peer.until_closed()

    return script


def when_pausing(chat: FluxbaseAIChat, tell: Callable[[], object]) -> None:
    """Have `tell` called each time that the client finds that reading has to pause."""
    session = chat._session
    spy(session, "paused", lambda: session._paused and tell())


class Blocking:
    """An `on_content` that waits at a gate, and remembers."""

    def __init__(self) -> None:
        self.entered, self.over = Gate(), Gate()
        self.deltas: list[str] = []

    def __call__(self, delta: str) -> None:
        """Be called back."""
        self.deltas.append(delta)
        self.entered.open()
        self.over.wait(20)


def test_k03_deltas_that_wait_are_joined() -> None:
    """What a slow callback has not taken is joined: nothing is dropped, and few pieces wait."""
    slow, sent = Blocking(), Gate()
    total, size = 20_000, 200
    with (
        RawServer(flooding(total, size, sent)) as server,
        FluxbaseAIChat(server.url, on_content=slow) as chat,
    ):
        turn = chat.conversation("support").send("Hi")
        slow.entered.wait()
        # Nobody's reading is held up by it: the whole answer is there.
        whole = turn.result(20).text
        assert total * size == len(whole)
        sent.wait()
        posts = list(chat._session._telling.dispatcher._queue)
        slow.over.open()
        assert turn.wait(20)
        assert whole == "".join(slow.deltas)
    # A mebibyte may wait as it came, the rest is in few pieces.
    assert sum(len(post.items) for post in posts) < 100
    assert len(slow.deltas) < total


@pytest.mark.parametrize("resumed_by", ["the callback", "a result", "an iterator", "a wait"])
def test_k03_reading_pauses(resumed_by) -> None:
    """Beyond backlog_bytes nothing is read while nobody waits, and it goes on when it may."""
    limit, total, size = 100_000, 30_000, 1000
    slow, sent, paused = Blocking(), Gate(), Gate()
    heard = Heard()
    with (
        RawServer(flooding(total, size, sent)) as server,
        FluxbaseAIChat(
            server.url,
            on_content=slow,
            on_error=heard,
            limits=Limits(backlog_bytes=limit),
        ) as chat,
    ):
        when_pausing(chat, paused.open)
        turn = chat.conversation("support").send("Hi")
        slow.entered.wait()
        paused.wait()
        # Bounded: the limit, and what one more read of the socket has brought.
        assert limit < chat._session._telling.backlog < limit + 1_000_000
        assert len(turn.text) < 2_000_000
        assert not turn.done
        assert not sent.is_open
        if resumed_by == "the callback":
            slow.over.open()
            sent.wait(20)
            assert turn.wait(20)
        elif resumed_by == "a result":
            assert total * size == len(turn.result(20).text)
        elif resumed_by == "an iterator":
            assert total * size == sum(map(len, turn.text_stream))
        else:
            waiting = run(turn.wait)
            sent.wait(20)
            assert total * size == len(turn.result(20).text)
            slow.over.open()
            assert waiting.result(20)
        slow.over.open()
        assert turn.wait(20)
        assert 0 == chat._session._telling.backlog
        numbers = "".join(slow.deltas).split()
        assert [str(n) for n in range(total)] == numbers
    assert [] == heard.items


def test_k03_reading_pauses_for_what_is_nobodys() -> None:
    """What belongs to no request waits for `on_event` as all else does: not without bounds."""
    limit, total, size = 100_000, 3_000, 1000
    entered, over, paused, sent = Gate(), Gate(), Gate(), Gate()
    seen = []

    def on_event(event: Event) -> None:
        if event.type == "content":
            seen.append(event.conversation_id)
            entered.open()
            over.wait(20)

    def script(peer: Peer) -> None:
        peer.accept()
        for n in range(total):
            peer.send_text(content(f"c-{n}", "x" * size))
        sent.open()
        peer.serve()

    with RawServer(script) as server:
        chat = FluxbaseAIChat(server.url, on_event=on_event, limits=Limits(backlog_bytes=limit))
        when_pausing(chat, paused.open)
        with chat:
            entered.wait()
            paused.wait()
            assert limit < chat._session._telling.backlog < limit + 1_000_000
            over.open()
            sent.wait(20)
            assert "You said: Hi" == chat.ask("support", "Hi").text
            assert chat.wait_idle(20)
            assert [f"c-{n}" for n in range(total)] == seen[:total]
            assert 0 == chat._session._telling.backlog


def test_k03_a_pause_is_no_silence() -> None:
    """While reading pauses the turn's idle limit does not run; behind it, it does."""
    limit, total, size = 100_000, 30_000, 1000
    slow, sent, paused = Blocking(), Gate(), threading.Semaphore(0)
    with RawServer(flooding(total, size, sent)) as server:
        chat = FluxbaseAIChat(
            server.url,
            on_content=slow,
            timeouts=Timeouts(idle=30),
            limits=Limits(backlog_bytes=limit),
        )
        clock = FakeClock().drive(chat)
        when_pausing(chat, paused.release)
        with chat:
            turn = chat.conversation("support").send("Hi")
            for _ in range(5):
                assert paused.acquire(timeout=WAIT)
                clock.advance(29)
            assert not turn.done
            slow.over.open()
            assert total * size == len(turn.result(20).text)
            assert 1 == server.connections


def test_k03_a_pause_is_no_late_start() -> None:
    """A start that is answered while reading pauses is not said to be late."""
    total, size = 1000, 1000
    slow, paused = Blocking(), threading.Semaphore(0)

    def script(peer: Peer) -> None:
        peer.accept()
        peer.start(CID)
        peer.answer(*("x" * size for _ in range(total)))
        peer.start("c-2")
        peer.answer("Two")
        peer.until_closed()

    with RawServer(script) as server:
        chat = FluxbaseAIChat(
            server.url,
            on_content=slow,
            timeouts=Timeouts(start=30),
            limits=Limits(backlog_bytes=100_000),
        )
        clock = FakeClock().drive(chat)
        with chat:
            assert total * size == len(chat.ask("support", "Hi").text)
            slow.entered.wait()
            when_pausing(chat, paused.release)
            turn = chat.conversation("support").send("Hi")
            for _ in range(5):
                assert paused.acquire(timeout=WAIT)
                clock.advance(29)
            slow.over.open()
            assert "Two" == turn.result().text
            assert 1 == server.connections


def test_k03_a_cancelled_turn_drains_meanwhile() -> None:
    """What comes for a cancelled turn waits for no callback: its connection is read to its end."""
    limit, total, size = 100_000, 30_000, 1000
    slow, sent, paused = Blocking(), Gate(), Gate()

    with (
        RawServer(flooding(total, size, sent), Peer.serve) as server,
        FluxbaseAIChat(server.url, on_content=slow, limits=Limits(backlog_bytes=limit)) as chat,
    ):
        when_pausing(chat, paused.open)
        turn = chat.conversation("support").send("Hi")
        slow.entered.wait()
        paused.wait()
        assert not sent.is_open
        turn.cancel()
        sent.wait()
        assert 1 == len(slow.deltas)
        slow.over.open()
        assert turn.wait(WAIT)
        assert 1 == len(slow.deltas)
        assert "You said: Hi" == chat.ask("support", "Hi").text


def test_k03_the_keepalive_goes_on() -> None:
    """A callback that blocks delays no ping and no pong."""
    pinged = Gate()

    def script(peer: Peer) -> None:
        peer.accept()
        peer.start(CID)
        peer.answer("a", "b")
        opcode, payload = peer.recv_control()
        assert PING == opcode
        peer.send_frame(PONG, payload)
        peer.send_frame(PING, b"ours")
        assert (PONG, b"ours") == peer.recv_control()
        pinged.open()
        peer.answer("c")
        peer.until_closed()

    slow = Blocking()
    with RawServer(script) as server:
        chat = FluxbaseAIChat(server.url, on_content=slow)
        clock = FakeClock().drive(chat)
        with chat:
            talk = chat.conversation("support")
            assert "ab" == talk.ask("Hi").text
            slow.entered.wait()
            clock.advance(21)
            pinged.wait()
            clock.advance(15)
            assert "c" == talk.ask("again").text
            assert 1 == server.connections
            slow.over.open()
            assert chat.wait_idle(WAIT)
    assert ["a", "b", "c"] == slow.deltas


# -- K07 ------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1 << 20, 4096, 97])
def test_k07_callback_order(size) -> None:
    """Ten thousand events reach the callbacks in the order of the wire, in whatever pieces."""
    messages: list[dict[str, Any]] = []
    for n in range(10_000):
        kind = ("content", "content", "content", "progress", "query_result", "news")[n * 7 % 6]
        message: dict[str, Any] = {"type": kind, "conversation_id": CID}
        name = {"content": "delta", "progress": "step", "query_result": "query"}.get(kind, "n")
        # The SDK calls on_progress only with a step and a message.
        more = {"message": "m"} if kind == "progress" else {}
        messages.append({**message, name: f"{n} ", **more})
    messages.append(done(CID))

    def script(peer: Peer) -> None:
        peer.accept()
        peer.start(CID)
        peer.message()
        stream = b"".join(
            b"\x81" + (bytes([len(p)]) if len(p) < 126 else b"\x7e" + len(p).to_bytes(2)) + p
            for p in (json.dumps(message).encode() for message in messages)
        )
        for at in range(0, len(stream), size):
            peer.send_raw(stream[at : at + size])
        peer.until_closed()

    order: list[str] = []
    events: list[Event] = []
    threads: set[str] = set()

    def on_content(delta: str) -> None:
        order.append(delta)
        threads.add(threading.current_thread().name)

    with (
        RawServer(script) as server,
        FluxbaseAIChat(
            server.url,
            on_content=on_content,
            on_progress=lambda step, _: order.append(step),
            on_query_result=lambda query, *_: order.append(query),
            on_event=events.append,
        ) as chat,
    ):
        turn = chat.conversation("support").send("Hi")
        assert turn.wait(30)
    assert messages == [event.raw for event in events if event.conversation_id][1:]
    assert [f"{n} " for n, m in enumerate(messages[:-1]) if m["type"] != "news"] == order
    assert 1 == len(threads)


def test_k07_order_without_on_event() -> None:
    """The faster way, without on_event, keeps the order between the kinds too."""
    order: list[str] = []
    messages = [
        content(CID, str(n))
        if n % 3
        else {"type": "progress", "conversation_id": CID, "step": str(n), "message": "m"}
        for n in range(3000)
    ]
    with (
        RawServer(answering([*messages, done(CID)])) as server,
        FluxbaseAIChat(
            server.url,
            on_content=lambda delta, _: order.append(delta),
            on_progress=lambda step, _: order.append(step),
        ) as chat,
    ):
        assert chat.conversation("support").send("Hi").wait(WAIT)
    assert [str(n) for n in range(3000)] == order


def test_k07_order_across_a_loss() -> None:
    """Callbacks of the next connection wait for those of a lost one: one at a time, in order."""
    entered, over = Gate(), Gate()
    order: list[str] = []

    def on_event(event: Event) -> None:
        order.append(event.type)
        if event.type == "content" and not entered.is_open:
            entered.open()
            over.wait()
            order.append("left")

    def first(peer: Peer) -> None:
        peer.accept()
        peer.start(CID)
        peer.message()
        peer.send_text(content(CID, "half"))
        entered.wait()
        peer.cut()

    with (
        RawServer(first, Peer.serve) as server,
        FluxbaseAIChat(server.url, on_event=on_event) as chat,
    ):
        talk = chat.conversation("support")
        with pytest.raises(ConnectionLostError):
            talk.ask("Hi")
        turn = talk.send("again")
        assert "You said: again" == turn.result().text
        assert turn.wait(0.05) is False
        assert chat.wait_idle(0) is False
        assert ["connected", "chat_started", "content"] == order
        over.open()
        assert turn.wait(WAIT)
        assert chat.wait_idle(WAIT)
        kept = [name for name in order if name != "reconnecting"]
        assert ["left", "disconnected", "reconnected", "chat_started", "content", "done"] == kept[
            3:
        ]


# -- K08 ------------------------------------------------------------------------------------


def test_k08_result_and_wait() -> None:
    """result() returns while on_done still runs; wait() returns when it has run."""
    over, entered = Gate(), Gate()
    ran: list[str] = []

    def on_done(usage: object) -> None:
        entered.open()
        over.wait()
        ran.append("done")

    with (
        RawServer(answering(TURN)) as server,
        FluxbaseAIChat(server.url, on_done=on_done) as chat,
    ):
        turn = chat.conversation("support").send("Hi")
        assert "ab" == turn.result().text
        assert turn.done
        entered.wait()
        assert turn.wait(0) is False
        assert turn.wait(0.05) is False
        assert [] == ran
        waiting = run(turn.wait)
        assert not waiting.ended
        over.open()
        assert waiting.result() is True
        assert ["done"] == ran
        assert turn.wait(0) is True


def test_k08_inside_a_callback() -> None:
    """Inside a callback wait() waits for the end of the turn only, and any call may be made."""
    inside = Heard()

    def on_done(usage: object) -> None:
        inside(turns[0].wait(WAIT), turns[0].result().text, chat.wait_idle(WAIT))

    turns: list[Any] = []
    begun = Gate()
    with (
        DevServer(pause=lambda _: begun.wait()) as server,
        FluxbaseAIChat(server.ws_url, server.token(), on_done=on_done) as chat,
    ):
        turns.append(chat.conversation("sql-assistant").send("pause 1\nsay one"))
        begun.open()
        assert turns[0].wait(WAIT)
    assert [(True, "one", True)] == inside.items


def test_k08_asking_inside_a_callback() -> None:
    """A callback may ask a question itself and wait for its answer."""
    replies = Heard()

    def on_done(usage: object) -> None:
        if not replies.items:
            replies("")
            replies(chat.ask("sql-assistant", "say inner").text)

    with (
        DevServer() as server,
        FluxbaseAIChat(server.ws_url, server.token(), on_done=on_done) as chat,
    ):
        assert "outer" == chat.ask("sql-assistant", "say outer").text
        replies.wait_for(lambda items: len(items) == 2)
        assert chat.wait_idle(WAIT)
    assert ["", "inner"] == replies.items


# -- K11 ------------------------------------------------------------------------------------


def test_k11_logging_handler_that_calls_the_client() -> None:
    """A handler that calls the client from within a log call deadlocks nothing."""
    seen = Heard()

    class Calling(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:  # noqa: ARG002 - its name is fixed
            """Call everything that takes locks."""
            cid = chat.start_chat("support", timeout=WAIT) if not seen.items else CID
            chat.cancel("c-none")
            seen(chat.state, chat.get_accumulated_content(cid), chat.is_connected())

    def failing(*_: object) -> None:
        raise ValueError

    logger = logging.getLogger("fluxbase_aichat")
    handler = Calling()
    logger.addHandler(handler)
    propagate, logger.propagate = logger.propagate, False
    try:
        with RawServer(Peer.serve) as server:
            chat = FluxbaseAIChat(server.url, on_content=failing)
            with chat:
                assert "You said: Hi" == chat.ask("support", "Hi").text
                assert chat.wait_idle(WAIT)
    finally:
        logger.propagate = propagate
        logger.removeHandler(handler)
    assert 1 == len(seen.items)


# -- K12 ------------------------------------------------------------------------------------


def test_k12_many_threads_ask() -> None:
    """A hundred threads that ask on one client are all answered, each with its own answer."""
    with DevServer() as server, FluxbaseAIChat(server.ws_url, server.token()) as chat:
        calls = [run(chat.ask, "sql-assistant", f"say number-{n}") for n in range(100)]
        assert [f"number-{n}" for n in range(100)] == [call.result(30).text for call in calls]
        assert 1 == server.connections


# What may be taken with what held, as ARCHITECTURE.md says.
ORDER = ["Session", "Connection", "Ending", "Answer", "Dispatcher", "Outcome", "Waker"]
LAST = {"Dispatcher", "Outcome", "Waker"}


def check_order(order: LockOrder) -> None:
    """Check that the locks are taken as ARCHITECTURE.md says."""
    order.check()
    assert set(ORDER) == order.taken, "a lock that is not in the table, or one not taken"
    for first, second in order.edges:
        assert ORDER.index(first) < ORDER.index(second), f"{second} is taken with {first} held"
        assert first not in LAST, f"{first} holds {second}"


def hanging_up(peer: Peer) -> None:
    """Answer some messages, but none that is to be cancelled, and cut the stream."""
    peer.accept()
    left = 11
    while left:
        request = peer.recv_json()
        cid = request.get("conversation_id", f"c-{peer.number}-{left}")
        if request["type"] == "start_chat":
            peer.send_text({"type": "chat_started", "conversation_id": cid})
        elif request["type"] == "message":
            left -= 1
            words = [content(cid, "x" * 50)] * 20
            if "cancelled" not in request["content"]:
                peer.send_text(*words, done(cid))
            else:
                peer.send_text(*words)
        else:
            left = 0
    peer.cut()


def test_k12_lock_order(monkeypatch) -> None:
    """A hundred threads ask, cancel, give up and look, over connections that are lost."""
    order = LockOrder(monkeypatch)
    entered = Heard()

    def on_content(delta: str, conversation_id: str) -> None:
        entered(len(order.held))
        chat.get_accumulated_content(conversation_id)
        chat.is_connected()

    def ask(n: int) -> str:
        start.wait(20)
        try:
            talk = chat.conversation(("sales", "support")[n % 2], on_lost="new")
            if n % 5 == 1:
                turn = talk.send(f"cancelled {n}")
                next(turn.text_stream, None)
                turn.cancel()
                return "cancelled"
            if n % 5 == 2:
                return talk.ask(f"{n}", timeout=0.05).text
            if n % 5 == 3:
                turn = talk.send(f"{n}")
                text = "".join(turn.text_stream)
                turn.wait(20)
                chat.connect()
                return text
            return talk.ask(f"{n}", timeout=20).text
        except FluxbaseChatError as problem:
            return type(problem).__name__

    start = threading.Barrier(100)
    with RawServer(hanging_up) as server:
        chat = FluxbaseAIChat(
            server.url, on_content=on_content, reconnect_delay=0.0, reconnect_attempts=50
        )
        with chat:
            calls = [run(ask, n) for n in range(100)]
            endings = [call.result(30) for call in calls]
            assert chat.wait_idle(20)
        assert endings.count("x" * 1000) > 10
        assert endings.count("cancelled") > 5
        assert server.connections > 2
    assert {0} == set(entered.items), "a callback runs with a lock held"
    check_order(order)


def test_k12_the_checker_finds_an_inversion(monkeypatch) -> None:
    """Two locks that are taken in both orders are a cycle, though nothing has hung."""
    order = LockOrder(monkeypatch)

    class One:
        def __init__(self) -> None:
            self.lock = order.Lock()

    class Other(One):
        def __init__(self) -> None:
            self.lock = order.Lock()

    one, other = One().lock, Other().lock
    with one, other:
        pass
    order.check()
    with other, one:
        pass
    with pytest.raises(AssertionError, match="may wait for itself"):
        order.check()


# -- K13 ------------------------------------------------------------------------------------

request_id: contextvars.ContextVar[str] = contextvars.ContextVar("request_id", default="none")


def test_k13_contextvars() -> None:
    """A callback runs in a copy of the context of the call that asked."""
    heard = Heard()

    def on_content(delta: str) -> None:
        heard(delta, request_id.get())
        request_id.set("changed by a callback")

    def ask(name: str) -> None:
        request_id.set(name)
        turn = chat.conversation("sql-assistant").send(f"say {name}")
        request_id.set("changed later")
        assert turn.wait(WAIT)
        assert "changed later" == request_id.get()

    with (
        DevServer() as server,
        FluxbaseAIChat(server.ws_url, server.token(), on_content=on_content) as chat,
    ):
        for call in [run(ask, "one"), run(ask, "two")]:
            call.result()
    assert [("one", "one"), ("two", "two")] == sorted(heard.items)
