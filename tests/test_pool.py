"""The pool: whose connection is lent to whom, in which order, and what becomes of it."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import socket
import threading
import uuid
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
from clocks import FakeClock
from helpers import LockOrder, Running, client_threads, run, spy
from scripts.process import Script
from servers import CLOSE, WAIT, Gate, Peer, RawServer, content, done, refusing_port

from fluxbase_aichat import (
    ChatPool,
    ConfigurationError,
    ConnectError,
    ConversationNotResumedError,
    FluxbaseAIChat,
    LocalProtocolError,
    NotConnectedError,
    PoolTimeoutError,
    ServerError,
    Timeouts,
)
from fluxbase_aichat.devserver import DevServer

TOKEN = "a-token-nobody-may-see"


def echo(peer: Peer) -> None:
    """Answer as a server that says on each message whose connection it came over."""
    peer.accept()
    peer.serve(f"c-{peer.number}", reply=f"{peer.headers.get('authorization')}: {{}}")


@pytest.fixture
def server() -> Iterator[RawServer]:
    with RawServer(echo) as running:
        yield running


class Put:
    """Waits until places have come back to a pool, which may happen on an I/O thread."""

    def __init__(self, pool: ChatPool) -> None:
        self._came = threading.Semaphore(0)
        spy(pool, "_put", lambda *_, **__: self._came.release())

    def wait(self) -> None:
        """Wait until one more has."""
        assert self._came.acquire(timeout=WAIT), "no place came back"


class Tidied:
    """Moves a pool's time, and waits until its janitor has looked at it."""

    def __init__(self, pool: ChatPool) -> None:
        self.clock = pool._clock = FakeClock()
        self._pool = pool
        self._looked = threading.Semaphore(0)
        spy(pool, "_tidy", lambda *_: self._looked.release())

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.clock.advance(seconds)
        while self._looked.acquire(blocking=False):
            pass
        self._pool._alarm[0].set()
        self.wait()

    def wait(self) -> None:
        """Wait until it has looked once more."""
        assert self._looked.acquire(timeout=WAIT), "nobody looked at the time"


def ask(pool: ChatPool, user: Any, token: Any, question: str = "Hi", **options: Any) -> str:
    with pool.chat(user=user, token=token, **options) as chat:
        return chat.ask("support", question).text


# -- whose connection ---------------------------------------------------------------------------


def test_a_person_gets_their_own_connection_again(server) -> None:
    """The second lease needs no new one; another person does, also with the same token."""
    with ChatPool(server.url) as pool:
        assert "Bearer t: one" == ask(pool, 1, "t", "one")
        assert "Bearer t: two" == ask(pool, 1, "t", "two")
        assert 1 == server.connections
        assert "Bearer t: three" == ask(pool, "1", "t", "three")
        assert 2 == server.connections
        stats = pool.stats()
        assert (0, 2, 0, 2, 1) == (
            stats.busy,
            stats.idle,
            stats.waiting,
            stats.opened,
            stats.reused,
        )


def test_two_leases_of_a_person_have_a_connection_each(server) -> None:
    """A connection is lent to one caller at a time."""
    with (
        ChatPool(server.url) as pool,
        pool.chat(user=1, token="t") as first,
        pool.chat(user=1, token="t") as second,
    ):
        first.connect()
        second.connect()
        assert 2 == server.connections
        assert 2 == pool.stats().busy


def test_a_new_token_replaces_the_idle_connection(server) -> None:
    """What an old token opened is closed, and not lent again when the old one comes back."""
    with ChatPool(server.url) as pool:
        assert "Bearer old: Hi" == ask(pool, 1, "old")
        assert "Bearer new: Hi" == ask(pool, 1, "new")
        server.join(1)
        assert "Bearer old: Hi" == ask(pool, 1, "old")
        assert (3, 1) == (server.connections, pool.stats().idle)


def test_of_several_old_ones_none_is_kept(server) -> None:
    """The janitor closes those that the new lease did not replace."""
    with ChatPool(server.url) as pool:
        with pool.chat(user=1, token="old") as first, pool.chat(user=1, token="old") as second:
            first.connect()
            second.connect()
        with pool.chat(user=1, token="new"):
            server.join(1)
            server.join(2)


def test_an_old_one_is_closed_also_where_a_new_one_is_idle_already(server) -> None:
    """Also the one that came back first, which a search for the newest does not meet."""
    with ChatPool(server.url) as pool:
        with pool.chat(user=1, token="new") as new:
            new.connect()
            with pool.chat(user=1, token="old") as old:
                old.connect()
        with pool.chat(user=1, token="new"):
            server.join(2)
        assert 1 == pool.stats().reused


def test_other_credentials_are_another_connection(server) -> None:
    """A service key, or whom it acts as, is as much a part of it as a token is."""
    with ChatPool(server.url) as pool:
        for options in (
            {"token": None, "service_key": "k"},
            {"token": None, "service_key": "k", "impersonate_user_id": "u-1"},
            {"token": "k", "impersonate_user_id": "u-1"},
            {"token": None},
        ):
            ask(pool, 1, **options)
        assert 4 == server.connections
        assert ["u-1"] * 2 == [
            message["impersonate_user_id"]
            for _, message in server.received
            if "impersonate_user_id" in message
        ]


def test_a_callable_token_is_the_same_while_it_is_one_object(server) -> None:
    """It is not asked to find that out, and a method of an object is one however often taken."""

    class Session:
        asked = 0

        def token(self) -> str:
            self.asked += 1
            return f"t{self.asked}"

    ann, bob = Session(), Session()
    with ChatPool(server.url) as pool:
        assert "Bearer t1: Hi" == ask(pool, 1, ann.token)
        assert "Bearer t1: Hi" == ask(pool, 1, ann.token)
        assert "Bearer t1: Hi" == ask(pool, 1, bob.token)
        assert "Bearer f: Hi" == ask(pool, 1, lambda: "f")
        assert "Bearer f: Hi" == ask(pool, 1, lambda: "f")
        assert (1, 1, 4) == (ann.asked, bob.asked, server.connections)


def test_who_acted_as_somebody_else_leaves_no_connection_behind() -> None:
    """It sticks to the connection (PROTOCOL 4.5), which the next lease must not inherit."""
    with DevServer() as server, ChatPool(server.ws_url) as pool:
        token = server.token("admin")
        with pool.chat(user="admin", token=token) as chat:
            chat.start_chat("sql-assistant", impersonate_user_id=server.users["bob"].id)
        with pool.chat(user="admin", token=token) as chat:
            chat.start_chat("sql-assistant")
        assert (2, 0) == (server.connections, pool.stats().reused)


def test_a_lent_client_keeps_its_token_and_its_connection(server) -> None:
    """It cannot become somebody else's, nor be closed by a `with` of its own."""
    with ChatPool(server.url) as pool, pool.chat(user=1, token="t") as chat:
        with pytest.raises(LocalProtocolError, match="give the new one to pool.chat"):
            chat.token = "another"
        with pytest.raises(LocalProtocolError, match="in a with block"), chat:
            pass
        assert "Bearer t: Hi" == chat.ask("support", "Hi").text


# -- what is forgotten --------------------------------------------------------------------------


def test_all_conversations_are_forgotten(server) -> None:
    """The next lease knows no text and no conversation; under its id it is started again."""
    with ChatPool(server.url) as pool:
        with pool.chat(user=1, token="t") as chat:
            cid = chat.start_chat("support")
            chat.send_message(cid, "secret").wait()
            assert chat.get_accumulated_content(cid)
        with pool.chat(user=1, token="t") as chat:
            assert not chat.get_accumulated_content(cid)
            with pytest.raises(LocalProtocolError, match="has not started that conversation"):
                chat.send_message(cid, "more")
            reply = chat.conversation("support", conversation_id=cid).ask("more")
            assert cid == reply.conversation_id
        assert [
            ("start_chat", None),
            ("message", cid),
            ("start_chat", cid),
            ("message", cid),
        ] == [(message["type"], message.get("conversation_id")) for _, message in server.received]
        assert 1 == server.connections


def test_what_went_back_begins_nothing_more(server) -> None:
    """The client, and the conversations made with it, are over; answers can still be read."""
    with ChatPool(server.url) as pool:
        with pool.chat(user=1, token="t") as chat:
            conversation = chat.conversation("support")
            turn = conversation.send("Hi")
            turn.wait()
        for call in (
            lambda: chat.ask("support", "Hi"),
            lambda: chat.start_chat("support"),
            chat.connect,
            lambda: conversation.send("Hi"),
            lambda: conversation.ask("Hi"),
        ):
            with pytest.raises(NotConnectedError, match="gone back to its pool") as caught:
                call()
            assert caught.value.sent is False
        chat.disconnect()
        chat.cancel(conversation.id or "")
        conversation.cancel()
        turn.cancel()
        assert ("disconnected", False, True) == (
            chat.state,
            chat.is_connected(),
            chat.wait_idle(),
        )
        assert "Bearer t: Hi" == turn.result().text
        assert "Bearer t: again" == ask(pool, 1, "t", "again")
        assert 1 == server.connections


# -- in number and in order ---------------------------------------------------------------------


def test_who_waits_is_served_in_order(server) -> None:
    """The first to come is the first to be served, and nobody jumps the queue."""
    order: list[int] = []
    with ChatPool(server.url, size=1, acquire_timeout=WAIT) as pool:

        def call(number: int) -> str:
            with pool.chat(user=number, token="t") as chat:
                order.append(number)
                return chat.ask("support", str(number)).text

        calls: list[Running[str]] = []
        queued = threading.Semaphore(0)
        with pool.chat(user=0, token="t"):
            spy(pool, "_serve", queued.release)
            for number in range(1, 6):
                calls.append(run(call, number))
                assert queued.acquire(timeout=WAIT)
            assert 5 == pool.stats().waiting
        assert [f"Bearer t: {n}" for n in range(1, 6)] == [running.result() for running in calls]
        assert [1, 2, 3, 4, 5] == order
        assert (1, 0) == (pool.stats().idle, pool.stats().waiting)


def test_a_full_pool_says_so(server) -> None:
    """With how many are busy and waiting; at once where nobody wants to wait."""
    with (
        ChatPool(server.url, size=2, acquire_timeout=0) as pool,
        pool.chat(user=1, token=TOKEN),
        pool.chat(user=2, token=TOKEN),
    ):
        for call in (lambda: ask(pool, 1, TOKEN), lambda: pool.send("b", "?", user=1, token=None)):
            with pytest.raises(PoolTimeoutError, match="within 0 s: 2 of 2 busy, 1 waiting") as it:
                call()
            assert (False, True) == (it.value.sent, it.value.retryable)
            assert isinstance(it.value, TimeoutError)
        assert (2, 0, 2) == (pool.stats().busy, pool.stats().waiting, pool.stats().timeouts)
    assert 0 == server.connections


def test_who_gave_up_waiting_is_not_served(server) -> None:
    """A place that comes free goes to who still waits."""
    with ChatPool(server.url, size=1, acquire_timeout=0.01) as pool:
        with pool.chat(user=1, token="t"), pytest.raises(PoolTimeoutError):
            ask(pool, 2, "t")
        assert "Bearer t: Hi" == ask(pool, 3, "t")


def test_an_idle_connection_makes_room(server) -> None:
    """The one unused for longest, which is closed before the new one opens."""
    seen: list[str] = []

    def script(peer: Peer) -> None:
        peer.accept()
        seen.append(f"open {peer.number}")
        peer.polite = False
        peer.start("c-1")
        peer.answer("Hello")
        while peer.recv_frame()[0] != CLOSE:
            pass
        seen.append(f"closed {peer.number}")
        peer.close_frame()

    with RawServer(script) as scripted, ChatPool(scripted.url, size=2) as pool:
        for user in (1, 2, 3):
            assert "Hello" == ask(pool, user, "t")
        assert ["open 1", "open 2", "closed 1", "open 3"] == seen
        assert (2, 3) == (pool.stats().idle, pool.stats().opened)


def test_many_threads_of_many_persons(server) -> None:
    """Each gets answers over connections of its own, and there are never more than allowed."""
    counts: list[int] = []
    with ChatPool(server.url, size=3, acquire_timeout=60.0) as pool:

        def work(user: int) -> None:
            for number in range(20):
                assert f"Bearer t{user % 4}: {number}" == ask(
                    pool, user % 4, f"t{user % 4}", str(number)
                )
                stats = pool.stats()
                counts.append(stats.busy + stats.idle)

        for running in [run(work, user) for user in range(12)]:
            running.result(60.0)
        assert max(counts) <= 3
        assert 240 == pool.stats().opened + pool.stats().reused


def test_the_pools_lock_is_alone(monkeypatch) -> None:
    """Nothing else is taken while it is held, and it is not taken while anything else is."""
    order = LockOrder(monkeypatch)
    with RawServer(echo) as server, ChatPool(server.url, size=2, acquire_timeout=WAIT) as pool:

        def work(user: int) -> None:
            for number in range(6):
                turn = pool.send("support", "Hi", user=user, token=f"t{number // 2}")
                if number % 3:
                    turn.wait(WAIT)
                else:
                    turn.cancel()

        for running in [run(work, user) for user in range(4)]:
            running.result()
    order.check()
    assert {"ChatPool", "Session"} <= order.taken
    assert [] == [edge for edge in order.edges if "ChatPool" in edge]


# -- idle and broken ones -----------------------------------------------------------------------


def test_idle_connections_are_closed(server) -> None:
    """Each when its own time is up; with the last the pool's thread ends."""
    before = set(threading.enumerate())
    with ChatPool(server.url, idle=300.0) as pool:
        tidied = Tidied(pool)
        ask(pool, 1, "t")
        tidied.wait()
        tidied.advance(200.0)
        ask(pool, 2, "t")
        tidied.advance(99.0)
        assert 2 == pool.stats().idle
        tidied.advance(1.0)
        server.join(1)
        assert 1 == pool.stats().idle
        assert 1000 == server.peer(1).close_code
        tidied.advance(200.0)
        server.join(2)
        assert (0, 0) == (pool.stats().idle, pool.stats().busy)
        for thread in threading.enumerate():
            if thread not in before and thread.name == "fluxbase-aichat-pool":
                thread.join(WAIT)
        assert "fluxbase-aichat-pool" not in client_threads(before)
        assert "Bearer t: Hi" == ask(pool, 1, "t")


def test_a_broken_connection_makes_room_first(server) -> None:
    """Before one that can still be used, however long that was not."""
    with ChatPool(server.url, size=2, reconnect_attempts=0) as pool:
        ask(pool, 1, "t")
        with pool.chat(user=2, token="t") as chat:
            chat.connect()
            lost = Gate("loss")
            spy(chat._lender._session, "ended", lost.open)
        server.peer(2).socket.shutdown(socket.SHUT_RDWR)
        lost.wait()
        ask(pool, 3, "t")
        assert 0 == pool.stats().reused
        ask(pool, 1, "t")
        assert (3, 1) == (pool.stats().opened, pool.stats().reused)


def test_idle_zero_keeps_none_and_none_keeps_all(server) -> None:
    """Zero seconds close what comes back."""
    with ChatPool(server.url, idle=0) as pool:
        ask(pool, 1, "t")
        server.join(1)
    with ChatPool(server.url, idle=None) as pool:
        tidied = Tidied(pool)
        ask(pool, 1, "t")
        tidied.wait()
        tidied.advance(1e9)
        ask(pool, 1, "t")
        assert 1 == pool.stats().reused


def test_a_broken_connection_is_replaced() -> None:
    """Lost while it was idle, it is not lent."""
    with DevServer() as server, ChatPool(server.ws_url, reconnect_attempts=0) as pool:
        token = server.token("ann")
        with pool.chat(user=1, token=token) as chat:
            chat.connect()
            client = chat._lender
        lost = Gate("loss")
        spy(client._session, "ended", lost.open)
        server.kill()
        lost.wait()
        with pytest.raises(ConnectError), pool.chat(user=1, token=token) as chat:
            chat.ask("support", "say hi")
        server.start()
        with pool.chat(user=1, token=token) as chat:
            assert "hi" == chat.ask("support", "say hi").text
            assert chat._lender is not client
        assert (0, 1) == (pool.stats().reused, pool.stats().idle)


def test_a_connection_lost_while_idle_is_not_opened_again(server) -> None:
    """Its token may be an old one by then: the next lease has its own, and with it a new one."""
    with ChatPool(server.url) as pool:
        with pool.chat(user=1, token="old") as chat:
            chat.connect()
            session = chat._session
        lost = Gate("loss")
        spy(session, "ended", lost.open)
        server.peer().socket.shutdown(socket.SHUT_RDWR)
        lost.wait()
        assert ("lost", []) == (session.state, session._connections())
        assert "Bearer new: Hi" == ask(pool, 1, "new")
        assert ["Bearer old", "Bearer new"] == [
            server.peer(number + 1).headers["authorization"] for number in range(server.connections)
        ]


def test_a_connection_lost_while_it_is_lent_is_opened_again(server) -> None:
    """Also one that was lent before."""
    with ChatPool(server.url, reconnect_delay=0) as pool:
        ask(pool, 1, "t")
        back = Gate("connection")
        with pool.chat(user=1, token="t") as chat:
            spy(chat._session, "opened", back.open)
            server.peer().socket.shutdown(socket.SHUT_RDWR)
            back.wait()
            assert "Bearer t: Hi" == chat.ask("support", "Hi").text
        assert (2, 1) == (server.connections, pool.stats().reused)


@pytest.mark.parametrize(
    "how", ["disconnected", "unused", "cancelled", "cancelled before", "start given up"]
)
def test_what_is_no_good_is_not_lent_again(how) -> None:
    """A connection that was closed, never opened, or that still owes an answer."""
    go_on = Gate()

    def ctrl_c(*_: object) -> None:
        raise KeyboardInterrupt

    def script(peer: Peer) -> None:
        peer.accept()
        if peer.number == 1 and how == "start given up":
            peer.recv_json()
            go_on.wait()
        elif peer.number == 1 and how.startswith("cancelled"):
            peer.start("c-1")
            peer.message()
            go_on.wait()
        peer.serve()

    with RawServer(script) as scripted, ChatPool(scripted.url) as pool:
        with pool.chat(user=1, token="t") as chat:
            match how:
                case "disconnected":
                    chat.connect()
                    chat.disconnect()
                case "cancelled" | "cancelled before":
                    turn = chat.conversation("support").send("Hi")
                    scripted.wait_for(lambda: len(scripted._received) == 2)
                    turn.cancel()
                    if how == "cancelled before":
                        # It has a new connection by now, and the old one is not over.
                        assert "You said: Hi" == chat.ask("support", "Hi").text
                case "start given up":
                    chat.connect()
                    spy(chat._session, "submit", ctrl_c)
                    with pytest.raises(KeyboardInterrupt):
                        chat.start_chat("support")
            client = chat._lender
        go_on.open()
        with pool.chat(user=1, token="t") as chat:
            assert chat._lender is not client
            assert "You said: Hi" == chat.ask("support", "Hi").text
        assert 0 == pool.stats().reused


# -- running turns ------------------------------------------------------------------------------


def holding(go_on: Gate, *, cut: bool = False):
    """Serve turns of which the first is not whole before the gate opens."""

    def script(peer: Peer) -> None:
        peer.accept()
        if peer.number == 1:
            peer.start("c-1")
            peer.message()
            peer.send_text(content("c-1", "One"))
            go_on.wait()
            if cut:
                peer.cut()
                return
            peer.send_text(content("c-1", "Two"), done("c-1"))
        peer.serve()

    return script


@pytest.mark.parametrize("ending", ["whole", "lost", "cancelled"])
def test_a_lease_left_with_a_running_turn_stays_leased(ending) -> None:
    """However the turn ends, then the place is free for who waits."""
    go_on = Gate()
    with (
        RawServer(holding(go_on, cut=ending == "lost")) as server,
        ChatPool(server.url, size=1, acquire_timeout=WAIT, reconnect_attempts=0) as pool,
    ):
        put = Put(pool)
        with pool.chat(user=1, token="t") as chat:
            turn = chat.conversation("support").send("Hi")
        assert "One" == next(iter(turn.text_stream))
        waiting = run(ask, pool, 2, "t")
        assert 1 == pool.stats().busy
        if ending == "cancelled":
            turn.cancel()
        else:
            go_on.open()
        put.wait()
        assert "You said: Hi" == waiting.result()
        match ending:
            case "whole":
                assert "OneTwo" == turn.result().text
            case "lost":
                assert "One" == turn.error.partial_text
            case "cancelled":
                assert turn.cancelled
        go_on.open()


def test_a_lease_left_with_a_start_stays_leased() -> None:
    """Another thread of the caller still waits for a conversation's id."""
    go_on = Gate()

    def script(peer: Peer) -> None:
        peer.accept()
        go_on.wait()
        peer.start("c-1")
        peer.until_closed()

    with RawServer(script) as server, ChatPool(server.url) as pool:
        put = Put(pool)
        with pool.chat(user=1, token="t") as chat:
            starting = run(chat.start_chat, "support")
            server.peer(1)
            chat.connect()
        assert (1, False) == (pool.stats().busy, starting.ended)
        go_on.open()
        assert "c-1" == starting.result()
        put.wait()
        assert (0, 1) == (pool.stats().busy, pool.stats().idle)


def test_send_holds_its_connection_until_the_turn_has_ended() -> None:
    """It returns at once, and the connection is lent again afterwards."""
    go_on = Gate()
    with RawServer(holding(go_on)) as server, ChatPool(server.url) as pool:
        put = Put(pool)
        turn = pool.send("support", "Hi", user=1, token="t")
        assert "One" == next(iter(turn.text_stream))
        assert (1, 0) == (pool.stats().busy, pool.stats().idle)
        go_on.open()
        put.wait()
        assert "OneTwo" == turn.result().text
        assert (0, 1) == (pool.stats().busy, pool.stats().idle)
        again = pool.send(
            "support", "Bye", user=1, token="t", conversation_id="c-1", namespace="shop"
        )
        assert "You said: Bye" == again.result().text
        start = [message for _, message in server.received if message["type"] == "start_chat"][-1]
        assert ("c-1", "shop") == (start["conversation_id"], start["namespace"])
        assert 1 == server.connections


def test_send_frees_its_place_when_nothing_can_be_sent(server) -> None:
    """Bad input raises from our tree, before anything is sent."""
    with ChatPool(server.url, size=1, acquire_timeout=0) as pool:
        for arguments, kind in (
            (("", "Hi"), ConfigurationError),
            (("support", 7), ConfigurationError),
            (("support", "\ud800"), LocalProtocolError),
        ):
            with pytest.raises(kind) as caught:
                pool.send(*arguments, user=1, token="t")
            assert caught.value.sent is False
        with pytest.raises(ConfigurationError, match="did you mean conversation_id"):
            pool.send("support", "Hi", user=1, token="t", conversationId="c")
        assert 0 == server.connections
        assert "Bearer t: Hi" == pool.send("support", "Hi", user=1, token="t").result().text


def test_send_tells_a_server_that_is_not_there_by_its_turn() -> None:
    """The worker does not wait for the connection, and gets the place back."""
    with refusing_port() as port, ChatPool(f"ws://127.0.0.1:{port}", size=1) as pool:
        put = Put(pool)
        turn = pool.send("support", "Hi", user=1, token="t")
        with pytest.raises(ConnectError) as caught:
            turn.result()
        assert caught.value.sent is False
        put.wait()
        assert 0 == pool.stats().busy


def test_a_conversation_of_nobody_is_not_resumed() -> None:
    """An unknown id raises; nothing is said to another conversation."""
    with DevServer() as server, ChatPool(server.ws_url) as pool:
        turn = pool.send(
            "keeper", "say hi", user=1, token=server.token(), conversation_id=str(uuid.uuid4())
        )
        with pytest.raises(ConversationNotResumedError):
            turn.result()
        assert 0 == server.turns


def test_an_error_of_the_server_keeps_the_connection() -> None:
    """It failed the turn and nothing else."""
    with DevServer() as server, ChatPool(server.ws_url) as pool:
        token = server.token()
        put = Put(pool)
        for _ in range(3):
            with pytest.raises(ServerError):
                pool.send("sql-assistant", "fail", user=1, token=token).result()
            put.wait()
        assert (1, 2) == (server.connections, pool.stats().reused)


def test_a_place_comes_free_when_its_client_cannot_be_made(server, monkeypatch) -> None:
    """Whatever the reason, Ctrl-C included."""
    with ChatPool(server.url, size=1, acquire_timeout=0) as pool:
        make = pool._make

        def interrupted(**_: Any) -> FluxbaseAIChat:
            raise KeyboardInterrupt

        pool._make = interrupted  # type: ignore[assignment]
        with pytest.raises(KeyboardInterrupt):
            ask(pool, 1, "t")
        pool._make = make
        assert "Bearer t: Hi" == ask(pool, 1, "t")


def test_a_wait_that_ctrl_c_ends_is_withdrawn(server, monkeypatch) -> None:
    """A place that it was given in the same moment is free again."""
    with ChatPool(server.url, size=1, acquire_timeout=0) as pool:
        with monkeypatch.context() as patch:

            def interrupted(*_: Any) -> bool:
                raise KeyboardInterrupt

            patch.setattr("fluxbase_aichat._answer.Flag.wait", interrupted)
            with pytest.raises(KeyboardInterrupt):
                ask(pool, 1, "t")
        assert (0, 0) == (pool.stats().busy, pool.stats().waiting)
        assert "Bearer t: Hi" == ask(pool, 1, "t")


# -- closing, forks, the end --------------------------------------------------------------------


def test_close_ends_everything() -> None:
    """Running turns, waiting callers and idle connections; it may be called twice."""
    go_on = Gate()
    with RawServer(holding(go_on)) as server:
        pool = ChatPool(server.url, size=2, acquire_timeout=None)
        turn = pool.send("support", "Hi", user=1, token="t")
        next(iter(turn.text_stream))
        ask(pool, 2, "t")
        lease = pool.chat(user=2, token="t")
        chat = lease.__enter__()
        queued = Gate()
        spy(pool, "_serve", queued.open)
        waiting = run(ask, pool, 3, "t")
        queued.wait()
        pool.close()
        pool.close()
        with pytest.raises(NotConnectedError, match="pool was closed") as caught:
            waiting.result()
        assert caught.value.sent is False
        with pytest.raises(NotConnectedError):
            turn.result()
        with pytest.raises(NotConnectedError):
            chat.ask("support", "Hi")
        lease.__exit__(None, None, None)
        with pytest.raises(NotConnectedError, match="pool was closed"):
            ask(pool, 1, "t")
        with pytest.raises(NotConnectedError, match="pool was closed"):
            pool.send("support", "Hi", user=1, token="t")
        stats = pool.stats()
        assert (0, 0, 0) == (stats.busy, stats.idle, stats.waiting)
        go_on.open()


def test_a_pool_that_nobody_holds_is_gone(server) -> None:
    """With its threads and connections; the fixture of all tests sees to that."""
    pool = ChatPool(server.url)
    ask(pool, 1, "t")
    reference = weakref.ref(pool)
    del pool
    gc.collect()
    assert reference() is None
    server.join(1)


def test_a_turn_outlives_its_pool() -> None:
    """Who holds the turn gets its answer."""
    go_on = Gate()
    with RawServer(holding(go_on)) as server:
        turn = ChatPool(server.url).send("support", "Hi", user=1, token="t")
        gc.collect()
        assert "One" == next(iter(turn.text_stream))
        go_on.open()
        assert "OneTwo" == turn.result().text
        del turn


def test_a_pool_closes_idle_connections_by_one_deadline() -> None:
    """A server that does not answer close frames holds it up for that long, and once only."""

    def script(peer: Peer) -> None:
        peer.accept()
        peer.polite = False
        peer.until_closed()

    timeouts = Timeouts(close=0.05)
    with RawServer(script) as server, ChatPool(server.url, timeouts=timeouts) as pool:
        with pool.chat(user=1, token="t") as one, pool.chat(user=2, token="t") as two:
            one.connect()
            two.connect()
        assert 2 == pool.stats().idle
        run(pool.close).result()
        server.join(1)
        server.join(2)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_after_a_fork_the_child_begins_anew(server) -> None:
    """Its pool is empty and works; a lease held across it does too; the parent notices nothing."""
    # From Python 3.12 on a fork beside threads is warned of.
    options = ("-W", "ignore:This process:DeprecationWarning")
    with Script("forked_pool.py", server.url, options=options) as script:
        status, out, err = script.end()
        assert (0, "") == (status, err)
        assert [
            "busy 0 idle 0 waiting 0",
            "Bearer b: of the child",
            "Bearer a: of the child's lease",
            "busy 0 idle 1 waiting 0",
            "locked Bearer a: locked",
            "status 0",
            "busy 1 idle 1 waiting 0",
            "Bearer a: of the parent",
            "Bearer b: of the parent",
            "busy 0 idle 2 waiting 0",
        ] == out.strip().split("\n")
        # Not a word of the child on the parent's two connections.
        words = [m["content"] for n, m in server.received if n <= 2 and m["type"] == "message"]
        assert ["before", "before", "of the parent", "of the parent"] == words


# -- what it says -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "size must be a whole number, 1 or more, not 0"),
        ({"size": True}, "size must be a whole number"),
        ({"size": "8"}, "size must be a whole number, 1 or more, not str"),
        ({"idle": -1}, "idle must be zero or more seconds"),
        ({"acquire_timeout": "5"}, "acquire_timeout must be a number of seconds"),
        ({"acquireTimeout": 5}, r"ChatPool\(\) has no parameter acquireTimeout.*acquire_timeout"),
        ({"onContent": print}, "did you mean on_content"),
        ({"token": "t"}, "token is a person's: pass it to chat"),
        ({"service_key": "k"}, "service_key is a person's"),
        ({"timeouts": 0}, "timeouts must be more than zero"),
    ],
)
def test_bad_parameters(options, message) -> None:
    """Each is named, with what would be right."""
    with pytest.raises(ConfigurationError, match=message):
        ChatPool("ws://localhost", **options)


@pytest.mark.parametrize("user", [None, "", " ", True, 1.0, object(), b"ann", ("ann",)])
def test_a_user_is_a_key(user, server) -> None:
    """Not `None`, which all anonymous visitors would share, and nothing that compares oddly."""
    with (
        ChatPool(server.url) as pool,
        pytest.raises(ConfigurationError, match="user must be the application's own key"),
    ):
        pool.chat(user=user, token=None)


def test_bad_credentials_are_found_before_waiting(server) -> None:
    """A full pool does not hide them."""
    with ChatPool(server.url, size=1) as pool, pool.chat(user=1, token="t"):
        for options, message in (
            ({"token": ""}, "token is empty"),
            ({"token": "t", "service_key": "k"}, "give token or service_key, not both"),
            ({"token": "t", "impersonate_user_id": ""}, "impersonate_user_id must be"),
            ({"token": "t", "impersonateUserId": "u"}, "did you mean impersonate_user_id"),
        ):
            with pytest.raises(ConfigurationError, match=message):
                pool.chat(user=2, **options)
        with pytest.raises(TypeError):
            pool.chat(user=2)
    with pytest.raises(ConfigurationError, match="unencrypted"):
        ChatPool("ws://example.com").chat(user=1, token="t")


def test_a_pool_whose_tokens_go_into_the_url(server) -> None:
    """The option needs a token, which comes with the person."""
    with ChatPool(server.url, token_in_query=True) as pool:
        ask(pool, 1, "t")
        assert "GET /ai/ws?token=t " in server.peer(1).request


def test_no_token_is_shown(server) -> None:
    """In no repr and no error."""
    with ChatPool(server.url, size=1, acquire_timeout=0) as pool:
        shown = []
        with pool.chat(user=1, token=TOKEN) as chat:
            shown += [repr(pool), repr(pool.stats()), repr(chat), *map(repr, pool._busy)]
            shown += [repr(place.person) for place in pool._busy]
            with pytest.raises(PoolTimeoutError) as caught:
                ask(pool, 2, TOKEN)
            shown += [repr(caught.value), str(caught.value), repr(vars(caught.value))]
        assert TOKEN not in "".join(shown)
        assert f"<ChatPool {server.url}: 0 busy and 0 idle of 1, 0 waiting>" == repr(pool)
        pool.close()
        assert f"<ChatPool {server.url}: 0 busy and 0 idle of 1, 0 waiting, closed>" == repr(pool)


def test_it_cannot_be_pickled(server) -> None:
    """Nor copied; the message says what to do."""
    with ChatPool(server.url) as pool, pool.chat(user=1, token="t") as chat:
        for thing in (pool, chat):
            with pytest.raises(TypeError, match="cannot be pickled.*make "):
                pickle.dumps(thing)
            with pytest.raises(TypeError, match="cannot be pickled"):
                copy.deepcopy(thing)


def test_callbacks_are_called_for_all(server) -> None:
    """They are the application's; a turn's have run when `wait` returns."""
    heard: list[str] = []
    with ChatPool(server.url, on_content=heard.append) as pool:
        for user in (1, 2):
            assert pool.send("support", "Hi", user=user, token=f"t{user}").wait(WAIT)
        assert ["Bearer t1: Hi", "Bearer t2: Hi"] == heard


def test_errors_in_the_block_are_the_callers(server) -> None:
    """They pass unchanged, and the connection goes back."""
    with ChatPool(server.url) as pool:

        def fail() -> None:
            with pool.chat(user=1, token="t") as chat:
                chat.connect()
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fail()
        assert 1 == pool.stats().idle
        ask(pool, 1, "t")
        assert 1 == pool.stats().reused


def test_a_lease_that_the_collector_ends_in_the_middle_of_the_pools_work(server) -> None:
    """A generator that nobody holds any more gives its connection back, and holds up nobody."""
    with ChatPool(server.url) as pool:

        def view() -> Iterator[str]:
            with pool.chat(user=1, token="t") as chat:
                yield chat.ask("support", "Hi").text

        running = view()
        next(running)
        put = Put(pool)
        with pool._lock:
            del running
        put.wait()
        put.wait()  # the second time outside
        assert (0, 1) == (pool.stats().busy, pool.stats().idle)


# -- lost answers -------------------------------------------------------------------------------


def test_a_lost_answer_is_recovered_when_its_connection_is_gone_from_the_pool() -> None:
    """The pool disconnects what is broken; who looks for the answer meanwhile goes on."""
    asked, tidied = Gate(), Gate()
    stored = b"""{"id":"c-1","messages":[{"role":"user","content":"Hi"},
        {"role":"assistant","content":"kept"}]}"""

    def script(peer: Peer) -> None:
        peer.read_request()
        if "/ai/ws" in peer.request.splitlines()[0]:
            peer.accept()
            peer.start("c-1")
            peer.message()
            peer.cut()
        else:
            asked.open()
            tidied.wait()
            peer.refuse("200 OK", stored)

    with RawServer(script) as server, ChatPool(server.url, recover_replies=True) as pool:
        put, time = Put(pool), Tidied(pool)
        turn = pool.send("support", "Hi", user=1, token=lambda: "t")
        reply = run(turn.result)
        asked.wait()
        put.wait()
        time.wait()
        assert 0 == pool.stats().idle
        tidied.open()
        assert "kept" == reply.result().text
