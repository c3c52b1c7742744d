"""Chaos: eight threads ask four conversations of two chatbots while everything around them breaks.

    python -m tests.chaos --seconds 120 --seed 7

They share one client, which reaches the dev server through a relay. The relay's eight switches turn
at random from a printed seed, and the server is restarted now and then. What must hold in the end
is written in `Chaos.verdict`: the promises of the README, and nothing about speed. A seed gives the
same decisions again, not the same run: threads and sockets are nobody's to command.
"""

from __future__ import annotations

import argparse
import contextlib
import contextvars
import gc
import random
import sys
import threading
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from fluxbase_aichat import Conversation, FluxbaseAIChat, Reply, Timeouts, Turn, events
from fluxbase_aichat.devserver import DevServer
from fluxbase_aichat.errors import (
    ChatTimeoutError,
    ConnectError,
    ConnectionLostError,
    ConversationNotResumedError,
    FluxbaseChatError,
    LocalProtocolError,
    NotConnectedError,
    ProviderError,
    TurnCancelledError,
)

try:
    from conftest import join
    from relay import SWITCHES, Relay
except ImportError:  # not by pytest, which has this folder on its path
    from tests.conftest import join
    from tests.relay import SWITCHES, Relay

__all__ = ["Chaos", "main"]

THREADS: Final = 8
GRACE: Final = 15.0
"""Seconds beyond its deadline that a call gets on a busy machine."""
HEALING: Final = 40.0
"""Seconds in which every call has ended when all is well again; the client's limits are below 5."""

LIMITS: Final = Timeouts(connect=1.0, start=1.0, idle=1.5, turn=4.0, close=2.0)
DESCRIPTORS: Final = Path("/proc/self/fd")

# Answered to sql-assistant and rejected for keeper: who answers shows.
TYPES: Final = "SELECT * FROM types WHERE i2 = 1"
STATUS: Final = {"keeper": "rejected", "sql-assistant": "ok"}

# What may happen to a call here. A broken protocol, a missing session or a refused token may not.
ALLOWED: Final = (
    ChatTimeoutError,
    ConnectError,
    ConnectionLostError,
    ConversationNotResumedError,
    TurnCancelledError,
)

# Each switch with the values that it is turned to, and the seconds that it stays there at most.
TURNS: Final[dict[str, tuple[list[Any], float]]] = {
    "latency": ([0.001, 0.005, 0.02, 0.1], 2.0),
    "down": ([True], 0.4),
    "bandwidth": ([3_000, 20_000, 200_000], 1.0),
    "slow_close": ([0.01, 0.3, 1.0], 2.0),
    "swallow": ([True], 0.6),
    "reset": ([True], 0.2),
    "slicer": ([1, 2, 7, 100], 2.0),
    "limit": ([100, 700, 2_000, 5_000, 10_000, 30_000], 0.6),
}


@dataclass(eq=False)
class Asked:
    """One message: what was asked, what was heard of it, and how it ended."""

    marker: str
    slot: Slot
    content: str
    text: str
    """The whole answer."""
    queries: list[tuple[str, str]]
    """The query of each result, and its status."""
    fails: bool
    """Whether the script ends in an error of the model."""
    turn: Turn | None = None
    reply: Reply | None = None
    error: FluxbaseChatError | None = None
    """How the turn has failed."""
    # By the callback thread only.
    heard: str = ""
    results: int = 0
    dones: int = 0
    errors: int = 0
    told_id: str | None = None


@dataclass(eq=False)
class Slot:
    """One conversation that the threads share; its handle is replaced when it was lost."""

    number: int
    chatbot: str
    handle: Conversation
    lock: threading.Lock = field(default_factory=threading.Lock)


# Which message a callback belongs to: it runs in a copy of the context of the call that asked.
_asked: contextvars.ContextVar[Asked | None] = contextvars.ContextVar("asked", default=None)


def script(marker: str, slot: Slot, rng: random.Random) -> Asked:
    """Make up a question whose answer has words that no other answer has."""
    lines: list[str] = []
    text = ""
    queries: list[tuple[str, str]] = []
    number = 0

    def say(most: int) -> None:
        nonlocal number, text
        count = rng.randint(1, most)
        words = " ".join(f"{marker}.{number + n}" for n in range(count))
        number += count
        lines.append(f"say {words}")
        text += words

    say(20)
    if rng.random() < 0.2:
        pauses = ["0.01", "0.05", "0.2", "0.5", "2"]
        lines.append(f"pause {rng.choices(pauses, [8, 8, 4, 2, 1])[0]}")
        say(5)
    if rng.random() < 0.3:
        query = TYPES if rng.random() < 0.5 else f"SELECT '{marker}' AS marker"
        queries.append((query, STATUS[slot.chatbot] if query == TYPES else "ok"))
        lines += [f"sql {query}", "---"]
        say(10)
    last = rng.random()
    fails = last < 0.03
    if fails:
        lines.append("fail")
    elif last < 0.05:
        lines.append("cut")
        say(5)
    return Asked(marker, slot, "\n".join(lines), text, queries, fails)


class Chaos:
    """One run; `Chaos(seconds, seed).run()` returns what was wrong, line by line.

    `reopens`: now and then a thread disconnects the client under the others, and connects it again.
    """

    def __init__(
        self,
        seconds: float,
        seed: int,
        *,
        reopens: bool = False,
        say: Callable[[str], object] = lambda _: None,
    ) -> None:
        self._reopens = reopens
        self._allowed = (*ALLOWED, NotConnectedError) if reopens else ALLOWED
        self._seconds = seconds
        self._seed = seed
        self._say = say
        self._over = threading.Event()
        self._lock = threading.Lock()  # guards the five below
        self._wrong: list[str] = []
        self._all: list[Asked] = []
        self._calls: dict[int, tuple[str, float, float | None]] = {}
        self._number = 0
        self._counts: Counter[str] = Counter()
        # The callbacks'.
        self._calling = threading.Lock()
        self._rng = random.Random(f"{seed} callbacks")  # noqa: S311
        self._current: Asked | None = None
        self._past: set[Asked] = set()
        self._links: list[str] = []
        self._raised = 0
        self._told_of = 0

    # -- the run ----------------------------------------------------------------------------

    def run(self) -> list[str]:
        """Run it; return what was wrong."""
        self._say(f"chaos: {self._seconds:g} s, seed {self._seed}")
        threads = set(threading.enumerate())
        files = _descriptors()
        with DevServer(chunk_delay=0.001) as self.server, Relay(self.server.ws_url) as self.relay:
            self.chat = self._client()
            self.slots = self._slots()
            workers = [
                threading.Thread(target=self._work, args=(number,), name=f"asks-{number}")
                for number in range(THREADS)
            ]
            for worker in workers:
                worker.daemon = True
                worker.start()
            try:
                self._disturb()
            finally:
                self._over.set()
                self.relay.clear()
                self.server.start()
            if self._finish(workers):
                self.verdict()
        self._say(f"chaos: {', '.join(f'{n} {what}' for what, n in self._counts.most_common())}")
        del self.chat, self.slots, self.relay, self.server
        self._nothing_left(threads, files)
        return self._wrong

    def _client(self) -> FluxbaseAIChat:
        return FluxbaseAIChat(
            self.relay.url,
            self.server.token,
            timeouts=LIMITS,
            reconnect_attempts=3,
            reconnect_delay=0.05,
            on_content=self._callback(self._on_content),
            on_query_result=self._callback(self._on_query_result),
            on_done=self._callback(self._on_done),
            on_error=self._callback(self._on_error),
            on_event=self._callback(self._on_event),
            on_callback_error=self._on_callback_error,
        )

    def _slots(self) -> list[Slot]:
        chat = self.chat
        return [
            Slot(0, "keeper", chat.conversation("keeper")),
            Slot(1, "sql-assistant", chat.conversation("sql-assistant", on_lost="new")),
            Slot(2, "keeper", chat.conversation("keeper", on_lost="new")),
            Slot(3, "sql-assistant", chat.conversation("sql-assistant")),
        ]

    def _finish(self, workers: list[threading.Thread]) -> bool:
        """End everything, with the network as it should be; `False` when something hangs."""
        until = time.monotonic() + HEALING
        for worker in workers:
            worker.join(max(0.0, until - time.monotonic()))
        if any(worker.is_alive() for worker in workers):
            self._complain(f"calls have not ended: {self._running()}\n{_stacks()}")
            self.chat.disconnect()
            return False
        self._check(self.chat.wait_idle(HEALING), f"wait_idle in vain\n{_stacks()}")
        for slot in self.slots:
            self._still_answers(slot)
        self._check(self.chat.wait_idle(HEALING), f"wait_idle in vain\n{_stacks()}")
        with self._call("disconnect", 2.0):
            self.chat.disconnect()
        self._check(self.chat.state == "disconnected", f"state {self.chat.state}")
        # The server reads what was on its way to it.
        self.server.kill()
        return True

    def _still_answers(self, slot: Slot) -> None:
        """When all is well again, so is the client; a connection may have been lost unnoticed."""
        rng = random.Random(f"{self._seed} {slot.number}")  # noqa: S311
        for _ in range(5):
            asked = self._question(slot, rng)
            self._ask(asked, timeout=10.0)
            if asked.reply is not None:
                return
        self._complain(f"{slot.chatbot} does not answer any more: {asked.error!r}")

    # -- what is wrong ----------------------------------------------------------------------

    def _complain(self, what: str) -> None:
        with self._lock:
            self._wrong.append(what)
        self._say(f"WRONG: {what}")

    def _check(self, right: object, what: str) -> None:
        if not right:
            self._complain(what)

    def _count(self, what: str) -> None:
        with self._lock:
            self._counts[what] += 1

    @contextlib.contextmanager
    def _call(self, name: str, seconds: float | None = None) -> Iterator[None]:
        """Watch one call: it returns or raises one of our errors within its deadline."""
        began = time.monotonic()
        with self._lock:
            self._number += 1
            number = self._number
            self._calls[number] = (name, began, seconds)
        try:
            yield
        except FluxbaseChatError:
            raise
        except Exception:  # noqa: BLE001 - whatever it is, it is told
            self._complain(f"{name} raised what is not ours:\n{traceback.format_exc()}")
        finally:
            with self._lock:
                del self._calls[number]
            took = time.monotonic() - began
            limit = None if seconds is None else seconds + GRACE
            self._check(limit is None or took <= limit, f"{name}({seconds}) took {took:.1f} s")

    def _running(self) -> dict[int, tuple[str, float, float | None]]:
        with self._lock:
            return dict(self._calls)

    def _failed(self, asked: Asked, error: FluxbaseChatError) -> None:
        """Take the error that a message ended with."""
        self._count(type(error).__name__)
        if isinstance(error, ProviderError):
            self._check(asked.fails, f"{asked.marker}: {error!r}")
        elif not isinstance(error, self._allowed):
            self._complain(f"{asked.marker}: {error!r} from {error.__cause__!r}")
        self._check(error.sent is not None, f"{asked.marker}: {error!r} knows no `sent`")
        self._check(
            asked.text.startswith(error.partial_text),
            f"{asked.marker}: partial text {error.partial_text!r}",
        )
        if isinstance(error, ConversationNotResumedError):
            self._lost(asked.slot, error)

    def _lost(self, slot: Slot, error: ConversationNotResumedError) -> None:
        self._check(slot.number == 3, f"conversation {slot.number} was lost: {error!r}")
        with slot.lock:
            if slot.handle.id == error.requested:
                slot.handle = self.chat.conversation(slot.chatbot, conversation_id=error.received)

    # -- what breaks ------------------------------------------------------------------------

    def _disturb(self) -> None:
        """Turn switches and restart the server until the time is up, with a truce now and then."""
        rng = random.Random(f"{self._seed} switches")  # noqa: S311
        ends = time.monotonic() + self._seconds
        truce = time.monotonic() + 5.0
        on: dict[str, float] = {}
        while (now := time.monotonic()) < ends and not self._wrong:
            for name in [name for name, until in on.items() if until <= now]:
                del on[name]
                self.relay.set(**{name: SWITCHES[name]})
            what = rng.random()
            if now >= truce:
                on.clear()
                self._truce()
                truce = time.monotonic() + 5.0
            elif what < 0.05:
                self.server.kill()
                self._over.wait(rng.choice([0.0, 0.1, 0.5]))
                self.server.start()
                self._count("restarts")
            elif what < 0.1:
                self.server.drop_connections()
            elif len(on) < 3 and what < 0.5:
                name = rng.choice(list(TURNS))
                values, longest = TURNS[name]
                self.relay.set(**{name: rng.choice(values)})
                on[name] = now + rng.random() * longest
            self._over.wait(rng.random() * 0.3)

    def _truce(self) -> None:
        """With all well again each call that is on ends soon (promise 4)."""
        self.relay.clear()
        before = self._running()
        until = time.monotonic() + HEALING
        while time.monotonic() < until:
            left = before.keys() & self._running().keys()
            if not left:
                return
            self._over.wait(0.02)
        self._complain(f"calls hang: {[before[number] for number in left]}\n{_stacks()}")

    # -- what is asked ----------------------------------------------------------------------

    def _work(self, number: int) -> None:
        rng = random.Random(f"{self._seed} {number}")  # noqa: S311
        ways = [
            lambda a: self._ask(a, timeout=rng.choice([0.05, 0.3, 1.0, 3.0])),
            self._ask,
            self._ask,
            self._iterate,
            self._stream,
            lambda a: self._leave(a, rng.randint(0, 10)),
            lambda a: self._cancel(a, rng.choice([0.0, 0.001, 0.01, 0.1])),
            lambda a: self._wait(a, rng.choice([0.0, 0.05, 0.5])),
            self._drop,
            lambda a: self._busy(a, "cancel"),
            lambda a: self._busy(a, "raise"),
            lambda a: self._several(a, rng),
            self._resume,
        ]
        while not self._over.is_set() and not self._wrong:
            try:
                asked = self._question(rng.choice(self.slots), rng)
                rng.choice(ways)(asked)
                if isinstance(asked.error, ConnectError):
                    self._over.wait(rng.random() * 0.2)  # as a caller should
                if rng.random() < 0.03:
                    self._connect()
                if self._reopens and rng.random() < 0.01:
                    self._reopen()
                if rng.random() < 0.03:
                    with self._call("wait_idle", 0.05):
                        self.chat.wait_idle(0.05)
            except NotConnectedError as error:
                self._check(self._reopens, repr(error))
            except Exception:  # noqa: BLE001 - whatever it is, it is told
                self._complain(traceback.format_exc())

    def _connect(self) -> None:
        with contextlib.suppress(*self._allowed), self._call("connect", 0.5):
            self.chat.connect(timeout=0.5)

    def _reopen(self) -> None:
        """Disconnect the client under the others, and connect it again."""
        with self._call("disconnect", 2.0):
            self.chat.disconnect()
        self._count("reopened")
        self._connect()

    def _question(self, slot: Slot, rng: random.Random) -> Asked:
        with self._lock:
            marker = f"m{len(self._all)}"
            asked = script(marker, slot, rng)
            self._all.append(asked)
        _asked.set(asked)
        return asked

    def _ask(self, asked: Asked, timeout: float | None = None) -> None:
        options = {} if timeout is None else {"timeout": timeout}
        try:
            with self._call(f"ask {asked.marker}", timeout):
                asked.reply = asked.slot.handle.ask(asked.content, **options)
        except FluxbaseChatError as error:
            asked.error = error
            self._failed(asked, error)
        else:
            self._count("whole")

    def _send(self, asked: Asked, **options: Any) -> Turn:
        try:
            with self._call(f"send {asked.marker}", 0.0):
                asked.turn = asked.slot.handle.send(asked.content, **options)
        except NotConnectedError as error:
            asked.error = error
            self._failed(asked, error)
            raise
        assert asked.turn is not None
        return asked.turn

    def _end(self, asked: Asked, seconds: float | None = None) -> None:
        """Wait for the end of a turn and take it; `seconds`: it was made to end by then."""
        turn = asked.turn
        assert turn is not None
        try:
            with self._call(f"result {asked.marker}", seconds):
                asked.reply = turn.result()
        except FluxbaseChatError as error:
            asked.error = error
            self._failed(asked, error)
        else:
            self._count("whole")
        self._check(turn.done, f"{asked.marker} is not done after result()")

    def _iterate(self, asked: Asked) -> None:
        turn = self._send(asked)
        seen: list[events.Event] = []
        try:
            with self._call(f"iterate {asked.marker}"):
                seen.extend(turn)
        except FluxbaseChatError as error:
            self._check(not turn.cancelled, f"{asked.marker}: raised {error!r}")
        self._end(asked)
        text = "".join(e.delta for e in seen if isinstance(e, events.Content))
        self._check(asked.text.startswith(text), f"{asked.marker}: iterated {text!r}")
        whole = bool(seen) and isinstance(seen[-1], events.Done)
        self._check(whole == (asked.error is None), f"{asked.marker}: {asked.error!r} after {seen}")
        self._check(not whole or text == asked.text, f"{asked.marker}: {text!r}")

    def _stream(self, asked: Asked) -> None:
        turn = self._send(asked)
        text = ""
        try:
            with self._call(f"stream {asked.marker}"):
                for delta in turn.text_stream:
                    text += delta
        except FluxbaseChatError as error:
            self._check(not turn.cancelled, f"{asked.marker}: raised {error!r}")
        self._end(asked)
        self._check(asked.text.startswith(text), f"{asked.marker}: streamed {text!r}")
        if asked.error is None:
            self._check(text == asked.text, f"{asked.marker}: streamed {text!r}")

    def _leave(self, asked: Asked, after: int) -> None:
        """Leave `with turn:` in the middle, which cancels."""
        turn = self._send(asked)
        with contextlib.suppress(FluxbaseChatError), self._call(f"leave {asked.marker}"), turn:
            for number, _ in enumerate(turn.text_stream):
                if number == after:
                    break
        self._end(asked, 0.0)

    def _cancel(self, asked: Asked, seconds: float) -> None:
        turn = self._send(asked)
        with self._call(f"wait {asked.marker}", seconds):
            turn.wait(seconds)
        with self._call(f"cancel {asked.marker}", 0.0):
            turn.cancel()
        self._end(asked, 0.0)

    def _wait(self, asked: Asked, seconds: float) -> None:
        turn = self._send(asked)
        try:
            with self._call(f"result {asked.marker}", seconds):
                turn.result(seconds)
        except ChatTimeoutError as error:
            self._check(error.sent is not None, f"{error!r} knows no `sent`")
        except FluxbaseChatError:
            pass
        with self._call(f"wait {asked.marker}", seconds):
            turn.wait(seconds)
        self._end(asked)

    def _drop(self, asked: Asked) -> None:
        """Nobody holds the turn; only callbacks tell of it."""
        self._send(asked)
        asked.turn = None
        self._count("dropped")

    def _busy(self, asked: Asked, if_busy: str) -> None:
        try:
            self._send(asked, if_busy=if_busy)
        except LocalProtocolError as error:
            self._check(if_busy == "raise", f"{asked.marker}: {error!r}")
            asked.error = error
            asked.errors += 1  # it was raised, and is told to nobody else
            self._count("busy")
        else:
            self._end(asked)

    def _several(self, asked: Asked, rng: random.Random) -> None:
        """Queue some, cancel whatever of the conversation runs, and wait for all."""
        several = [asked]
        self._send(asked)
        for _ in range(2):
            several.append(self._question(rng.choice(self.slots), rng))
            self._send(several[-1])
        with self._call("cancel", 0.0):
            asked.slot.handle.cancel()
        for each in several:
            self._end(each)

    def _resume(self, asked: Asked) -> None:
        """Resume the conversation by its id, and ask it under that."""
        slot, handle = asked.slot, asked.slot.handle
        if handle.id is None:
            self._ask(asked)
            return
        requested = handle.id
        _asked.set(None)  # a start is a call of its own
        try:
            with self._call("start_chat", 3.0):
                self.chat.start_chat(slot.chatbot, conversation_id=requested, timeout=3.0)
        except ConversationNotResumedError as error:
            self._check(slot.chatbot != "keeper", f"keeper was lost: {error!r}")
            if slot.number == 3:
                self._lost(slot, error)
        except FluxbaseChatError as error:
            self._check(isinstance(error, self._allowed), f"start_chat: {error!r}")
            self._check(error.sent is not None, f"start_chat: {error!r} knows no `sent`")
        _asked.set(asked)
        self._ask(asked)

    # -- what is told -----------------------------------------------------------------------

    def _callback(self, function: Callable[..., object]) -> Callable[..., object]:
        """Return a callback that checks that it is the only one, and is now and then a bad one."""

        def called(*arguments: Any) -> None:
            if not self._calling.acquire(blocking=False):
                self._complain("two callbacks at once")
                return
            try:
                try:
                    function(*arguments)
                except Exception:  # noqa: BLE001 - it is ours, and not one of those below
                    self._complain(traceback.format_exc())
                what = self._rng.random()
                if what < 0.002:
                    self._over.wait(0.05)
                elif what < 0.004 and (asked := _asked.get()) is not None:
                    asked.slot.handle.cancel()
                elif what < 0.006:
                    self._raised += 1
                    raise RuntimeError("a bad callback")
            finally:
                self._calling.release()

        return called

    def _on_callback_error(self, exception: BaseException, event: events.Event) -> None:
        self._told_of += 1
        right = isinstance(exception, RuntimeError) and isinstance(event, events.Event)
        self._check(right, f"on_callback_error: {exception!r}, {event!r}")

    def _belongs(self, what: str) -> Asked:
        """Return whose callback it is: the turns come one after the other, none after its end."""
        asked = _asked.get()
        assert asked is not None, f"{what} of no call"
        ended = asked.dones or asked.errors
        self._check(not ended, f"{asked.marker}: {what} after its end")
        if asked is not self._current:
            self._check(asked not in self._past, f"{asked.marker}: {what} out of turn")
            if self._current is not None:
                self._past.add(self._current)
            self._current = asked
        return asked

    def _on_content(self, delta: str, *_: object) -> None:
        asked = self._belongs("content")
        asked.heard += delta
        self._check(asked.text.startswith(asked.heard), f"{asked.marker}: heard {asked.heard!r}")

    def _on_query_result(self, query: str, *_: object) -> None:
        asked = self._belongs("query_result")
        expected = [query for query, _ in asked.queries]
        asked.results += 1
        self._check(
            [query] == expected[asked.results - 1 : asked.results],
            f"{asked.marker}: a result of {query!r}",
        )

    def _on_done(self, _: object, conversation_id: str) -> None:
        asked = self._belongs("done")
        asked.told_id = conversation_id
        asked.dones += 1
        self._check(asked.heard == asked.text, f"{asked.marker}: heard {asked.heard!r}")
        self._check(asked.results == len(asked.queries), f"{asked.marker}: {asked.results} results")

    def _on_error(self, error: str, code: str, *_: object) -> None:
        asked = _asked.get()
        if asked is None:  # of a start
            return
        if asked.errors or asked.dones:
            self._complain(f"{asked.marker}: error {error!r} ({code}) after its end")
        asked.errors += 1

    def _on_event(self, event: events.Event) -> None:
        if event.type in _LINKS:
            self._links.append(event.type)
        elif isinstance(event, events.Progress):
            self._belongs("progress")

    # -- the verdict ------------------------------------------------------------------------

    def verdict(self) -> None:
        """Check what was promised, now that nothing more can happen."""
        received = self._received()
        for asked in self._all:
            self._judge(asked, received[asked.marker])
        self._judge_links()
        self._check(self._raised == self._told_of, f"{self._raised} raised, {self._told_of} told")
        # Else the run has shown nothing.
        self._check(self._counts["whole"], "not one answer was whole")

    def _received(self) -> dict[str, list[str]]:
        """Return the conversation ids under which each message reached the server.

        On the way: was the chatbot that it was meant for the one started last on its connection?
        """
        by_content = {asked.content: asked for asked in self._all}
        received: dict[str, list[str]] = defaultdict(list)
        chatbots: dict[int, str] = {}
        conversations: dict[int, set[str]] = defaultdict(set)
        for message in self.server.received:
            frame = message.frame
            if frame["type"] == "start_chat":
                chatbots[message.connection] = frame["chatbot"]
            elif frame["type"] == "message":
                asked = by_content[frame["content"]]
                received[asked.marker].append(frame["conversation_id"])
                answering = chatbots.get(message.connection)
                self._check(
                    answering == asked.slot.chatbot,
                    f"{asked.marker}: {answering} is asked for {asked.slot.chatbot}",
                )
                conversations[asked.slot.number].add(frame["conversation_id"])
        for slot in self.slots:
            if slot.chatbot == "keeper":  # it is never lost (promise 6)
                ids = conversations[slot.number]
                self._check(len(ids) <= 1, f"{slot.number} went into {ids}")
        return received

    def _judge(self, asked: Asked, received: list[str]) -> None:
        name, error, reply = asked.marker, asked.error, asked.reply
        self._check(len(received) <= 1, f"{name} reached the server {len(received)} times")
        if asked.turn is not None:
            self._check(asked.turn.done, f"{name} has not ended")
        if reply is not None:
            self._check(reply.text == asked.text, f"{name}: answer {reply.text!r}")
            self._check(reply.chatbot == asked.slot.chatbot, f"{name}: {reply.chatbot}")
            self._check(
                [reply.conversation_id] == received,
                f"{name}: {reply.conversation_id} and not {received}",
            )
            results = [(result.query, result.status) for result in reply.query_results]
            self._check(results == asked.queries, f"{name}: results {results}")
            self._judge_told(asked, (1, 0))
        elif error is not None:
            self._check(error.sent or not received, f"{name} was received, but {error!r} is unsent")
            own_doing = isinstance(error, (TurnCancelledError, NotConnectedError))
            self._judge_told(asked, (0, 0 if own_doing else 1))
        if asked.dones:
            self._check([asked.told_id] == received, f"{name}: done in {asked.told_id}: {received}")

    def _judge_told(self, asked: Asked, expected: tuple[int, int]) -> None:
        told = (asked.dones, asked.errors)
        if self._reopens and told == (0, 0):
            return  # who disconnects may miss what was not told yet
        ended = repr(asked.error) if asked.error is not None else "whole"
        self._check(told == expected, f"{asked.marker}: {ended}, and told {told}")

    def _judge_links(self) -> None:
        """Check that connections come and go in order, and the first is called `connected`."""
        state = "new"
        for number, kind in enumerate(self._links):
            right = {
                "connected": state == "new" or (self._reopens and state == "down"),
                "disconnected": state == "up",
                "reconnecting": state == "down",
                "reconnected": state == "down",
            }[kind]
            last = self._links[max(0, number - 5) : number + 1]
            self._check(right, f"{kind} while {state}: {last}")
            state = {"disconnected": "down", "reconnecting": "down"}.get(kind, "up")

    def _nothing_left(self, threads: set[threading.Thread], files: dict[int, str]) -> None:
        until = time.monotonic() + GRACE
        for thread in threading.enumerate():
            if thread not in threads and thread is not threading.current_thread():
                join(thread, max(0.0, until - time.monotonic()))
        left = [t.name for t in threading.enumerate() if t not in threads]
        self._check(not left, f"threads are left: {left}\n{_stacks()}")
        # What was asked holds turns, and they the client.
        for asked in self._all:
            asked.turn = asked.error = None
        gc.collect()
        opened = {n: what for n, what in _descriptors().items() if files.get(n) != what}
        self._check(not opened, f"descriptors are left: {opened}")


_LINKS: Final = frozenset({"connected", "disconnected", "reconnecting", "reconnected"})


def _descriptors() -> dict[int, str]:
    found = {}
    if DESCRIPTORS.is_dir():
        for entry in DESCRIPTORS.iterdir():
            with contextlib.suppress(OSError):  # the one that is used for looking
                found[int(entry.name)] = str(entry.readlink())
    return found


def _stacks() -> str:
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return "\n".join(
        f"-- {names.get(ident)}\n{''.join(traceback.format_stack(frame))}"
        for ident, frame in sys._current_frames().items()
    )


def main(arguments: list[str] | None = None) -> int:
    """Run it from the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--seed", type=int, default=None, help="by default another each time")
    parser.add_argument("--reopen", action="store_true", help="disconnect and connect as well")
    parser.add_argument("--hasty", action="store_true", help="change threads as often as possible")
    options = parser.parse_args(arguments)
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(10**6)
    if options.hasty:
        sys.setswitchinterval(1e-6)
    chaos = Chaos(
        options.seconds,
        seed,
        reopens=options.reopen,
        say=lambda line: print(line, flush=True),  # noqa: T201
    )
    wrong = chaos.run()
    print(f"{len(wrong)} things are wrong" if wrong else "all promises held")  # noqa: T201
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
