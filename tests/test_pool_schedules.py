"""Random schedules of a pool: nobody ever gets another person's connection or conversation.

The server is the witness: it knows whose token opened each connection, and every message says who
has sent it. A model knows who must have a connection, and who must wait for one.
"""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager
from typing import Any

import attrs
import hypothesis.strategies as st
import pytest
from clocks import FakeClock
from helpers import Running, run, spy
from hypothesis import settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from servers import WAIT, Gate, Peer, RawServer, content, done

from fluxbase_aichat import (
    ChatPool,
    ConnectionLostError,
    FluxbaseAIChat,
    NotConnectedError,
    Turn,
)

IDLE = 100.0


class Witness:
    """The script of a server that watches who says what on which connection."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0
        self.gates: dict[str, Gate] = {}
        """What holds up the answer to a message, by the message."""

    def hold(self, message: str) -> Gate:
        """Have a message's answer wait for a gate."""
        self.gates[message] = Gate(message)
        return self.gates[message]

    def __call__(self, peer: Peer) -> None:
        """Serve one connection."""
        peer.accept()
        person = peer.headers["authorization"].removeprefix("Bearer ")
        user = person.partition(".")[0]
        started = set()
        while True:
            request = peer.recv_json()
            if request["type"] == "cancel":
                return
            if request["type"] == "start_chat":
                with self._lock:
                    self._count += 1
                cid = request.get("conversation_id", f"{user}/{self._count}")
                assert cid.startswith(f"{user}/"), f"{person} resumes {cid}"
                started.add(cid)
                peer.send_text({"type": "chat_started", "conversation_id": cid})
                continue
            cid, message = request["conversation_id"], request["content"]
            assert cid in started, f"{person} was not started on {cid}"
            assert message.startswith(f"{person}|"), f"on {person}'s connection came {message}"
            peer.send_text(content(cid, "…"))
            if message in self.gates:
                self.gates[message].wait()
            peer.send_text(content(cid, f"{person}:{message}"), done(cid))


@attrs.define(eq=False)
class Lease:
    """One call of `pool.chat`."""

    user: str
    version: int
    manager: AbstractContextManager[FluxbaseAIChat]
    entering: Running[FluxbaseAIChat] | None = None
    chat: Any = None

    @property
    def person(self) -> str:
        """The token, which says whose it is."""
        return f"{self.user}.{self.version}"


class Schedules(RuleBasedStateMachine):
    """Any order of lending, asking, waiting, leaving, cutting, and time going by."""

    @initialize(size=st.integers(1, 3))
    def begin(self, size: int) -> None:
        """Open a server and a pool."""
        self.witness = Witness()
        self.server = RawServer(self.witness)
        self.server.__enter__()
        self.size = size
        self.pool = ChatPool(
            self.server.url, size=size, idle=IDLE, acquire_timeout=WAIT, reconnect_attempts=0
        )
        self.clock = self.pool._clock = FakeClock()
        self.queued, self.came_back = threading.Semaphore(0), threading.Semaphore(0)
        spy(self.pool, "_serve", self.queued.release)
        spy(self.pool, "_put", lambda *_, **__: self.came_back.release())
        self.versions = dict.fromkeys("abc", 0)
        self.conversations: dict[str, list[str]] = {user: [] for user in "abc"}
        self.leases: list[Lease] = []
        self.waiting: list[Lease] = []
        self.held: list[tuple[Turn, Gate]] = []
        self.stale: list[FluxbaseAIChat] = []
        self.cut_ones: set[Lease] = set()
        self.number = 0

    # -- callers come -----------------------------------------------------------------------

    @rule(user=st.sampled_from("abc"), renewed=st.booleans())
    def lend(self, user: str, renewed: bool) -> None:
        """Who finds room has a client at once; others wait, each behind those before."""
        self.versions[user] += renewed
        lease = Lease(user, self.versions[user], None)  # type: ignore[arg-type]
        lease.manager = self.pool.chat(user=user, token=lease.person)
        if len(self.leases) + len(self.held) < self.size:
            lease.chat = lease.manager.__enter__()
            self.leases.append(lease)
            return
        lease.entering = run(lease.manager.__enter__)
        self.waiting.append(lease)
        while self.pool.stats().waiting < len(self.waiting):
            assert self.queued.acquire(timeout=WAIT), "nobody waits"

    # -- they ask ---------------------------------------------------------------------------

    def _message(self, lease: Lease) -> str:
        self.number += 1
        return f"{lease.person}|{self.number}"

    @precondition(lambda self: self.leases)
    @rule(which=st.integers(0))
    def ask(self, which: int) -> None:
        """The answer comes over a connection of the person's own, in a conversation of theirs."""
        lease = self.leases[which % len(self.leases)]
        message = self._message(lease)
        try:
            reply = lease.chat.ask("support", message)
        except ConnectionLostError:
            assert lease in self.cut_ones
            self.cut_ones.discard(lease)
            return
        assert f"…{lease.person}:{message}" == reply.text
        assert reply.conversation_id not in self.conversations[lease.user]
        self.conversations[lease.user].append(reply.conversation_id)

    @precondition(lambda self: any(self.conversations[lease.user] for lease in self.leases))
    @rule(which=st.integers(0), old=st.integers(0))
    def go_on(self, which: int, old: int) -> None:
        """A person's conversation goes on over any of that person's connections."""
        leases = [lease for lease in self.leases if self.conversations[lease.user]]
        lease = leases[which % len(leases)]
        known = self.conversations[lease.user]
        cid, message = known[old % len(known)], self._message(lease)
        try:
            reply = lease.chat.conversation("support", conversation_id=cid).ask(message)
        except ConnectionLostError:
            assert lease in self.cut_ones
            self.cut_ones.discard(lease)
            return
        assert (cid, f"…{lease.person}:{message}") == (reply.conversation_id, reply.text)

    @precondition(lambda self: self.stale)
    @rule(which=st.integers(0))
    def ask_too_late(self, which: int) -> None:
        """What has gone back asks nothing, whoever has the connection now."""
        chat = self.stale[which % len(self.stale)]
        with pytest.raises(NotConnectedError):
            chat.ask("support", "of nobody")

    # -- they go ----------------------------------------------------------------------------

    def _leave(self, which: int) -> Lease:
        lease = self.leases.pop(which % len(self.leases))
        self.stale.append(lease.chat)
        lease.manager.__exit__(None, None, None)
        return lease

    def _free(self, count: int = 1) -> None:
        """So many places are free: those who have waited longest have them, and nobody else."""
        for _ in range(count):
            assert self.came_back.acquire(timeout=WAIT), "no place came back"
        for lease in self.waiting[:count]:
            assert lease.entering is not None
            lease.chat = lease.entering.result()
            self.leases.append(lease)
        del self.waiting[:count]
        assert not any(lease.entering and lease.entering.ended for lease in self.waiting)

    @precondition(lambda self: self.leases)
    @rule(which=st.integers(0))
    def leave(self, which: int) -> None:
        """The place goes to the first who waits."""
        self._leave(which)
        self._free()

    @precondition(lambda self: self.leases)
    @rule(which=st.integers(0))
    def leave_with_a_running_turn(self, which: int) -> None:
        """The place is not free yet."""
        lease = self.leases[which % len(self.leases)]
        message = self._message(lease)
        gate = self.witness.hold(message)
        turn = lease.chat.conversation("support").send(message)
        try:
            next(iter(turn.text_stream))
        except ConnectionLostError:
            assert lease in self.cut_ones
            self.cut_ones.discard(lease)
            return
        self._leave(which)
        self.held.append((turn, gate))

    @precondition(lambda self: self.held)
    @rule(which=st.integers(0), cancel=st.booleans())
    def end_a_turn(self, which: int, cancel: bool) -> None:
        """With the turn the lease ends, however it does."""
        turn, gate = self.held.pop(which % len(self.held))
        if cancel:
            turn.cancel()
        gate.open()
        self._free()
        assert cancel == turn.cancelled
        assert turn.done

    # -- and the world goes on --------------------------------------------------------------

    @rule()
    def cut(self) -> None:
        """All connections are lost; turns that run end with them."""
        for peer in list(self.server._peers):
            try:
                peer.socket.shutdown(2)
            except OSError:
                continue
        self.cut_ones.update(self.leases)
        ended, self.held = self.held, []
        for turn, gate in ended:
            assert turn.wait(WAIT)
            gate.open()
        self._free(len(ended))

    @rule(seconds=st.sampled_from([1.0, IDLE / 2, IDLE]))
    def time_passes(self, seconds: float) -> None:
        """Idle connections may be closed."""
        self.clock.advance(seconds)
        self.pool._alarm[0].set()

    @invariant()
    def it_counts_right(self) -> None:
        """As many are busy and waiting as the model says, and never more than allowed."""
        stats = self.pool.stats()
        assert len(self.leases) + len(self.held) == stats.busy
        assert len(self.waiting) == stats.waiting
        assert stats.busy + stats.idle <= self.size
        assert not self.waiting or stats.busy == self.size

    def teardown(self) -> None:
        """Everybody leaves; what the witness saw is raised here."""
        if not hasattr(self, "pool"):
            return
        try:
            while self.leases or self.held:
                if self.held:
                    self.end_a_turn(0, cancel=False)
                else:
                    self.leave(0)
        finally:
            self.pool.close()
            for gate in self.witness.gates.values():
                gate.open()
            self.server.__exit__(None, None, None)


def test_nobody_gets_another_persons_connection() -> None:
    """Whatever the order of things."""
    run_state_machine_as_test(Schedules, settings=settings(max_examples=30, stateful_step_count=40))
