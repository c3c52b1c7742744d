"""What the connections of a dev server share: its data, its switches and its record.

It opens no socket, and closes none; it only remembers those of others. Thread-safe.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from ._auth import Auth
from ._conversations import Conversations
from ._faults import Faults
from ._rest import Rest
from ._sql import Database
from ._store import Store
from ._world import World

__all__ = ["Received", "Request", "Runtime", "StoppedError"]

_JOIN: Final = 5.0
"""Seconds that stopping waits for a thread, which only a test's own `pause` can hold up."""


class StoppedError(Exception):
    """The server is stopping: what runs is given up."""


@dataclass(frozen=True, slots=True)
class Received:
    """A client's frame, in the order in which the server came to it."""

    connection: int
    """The number of the websocket, from 1."""
    frame: Any
    """The parsed JSON, `None` if it was none."""
    text: str


@dataclass(frozen=True, slots=True)
class Request:
    """An HTTP request, the opening of a websocket included."""

    method: str
    target: str
    headers: Mapping[str, str]


class Runtime:
    """The inside of a dev server."""

    def __init__(
        self,
        store: Store,
        faults: Faults,
        *,
        pause: Callable[[float], object] | None,
        chunk_delay: float,
        feature: str,
        world: World,
    ) -> None:
        self.store = store
        self.faults = faults
        self.chunk_delay = chunk_delay
        self.feature = feature
        self.world = world
        self.auth = Auth(store.secret, store.service_key, trusting=world.trusting)
        self.database = Database()
        self.stopping = threading.Event()
        self._pause = pause or self.stopping.wait
        # Guards what follows, and is notified of every change; held for no I/O.
        self._changed = threading.Condition()
        self._threads: set[threading.Thread] = set()
        self._sockets: set[socket.socket] = set()
        self.received: list[Received] = []
        self.requests: list[Request] = []
        self.connections = self.active = self.turns = self.running = 0
        self.forget()

    def forget(self) -> None:
        """Lose what a restart loses."""
        self.conversations = Conversations(self.store)
        self.rest = Rest(self.store, self.auth, self.conversations, self.world)

    # The time that a turn takes.

    def pause(self, seconds: float) -> None:
        """Wait as a script asks; raises `StoppedError` when the server is stopping."""
        self._pause(seconds)
        self._check()

    def breathe(self) -> None:
        """Wait between two words; raises `StoppedError` when the server is stopping."""
        if self.chunk_delay:
            self.stopping.wait(self.chunk_delay)
        self._check()

    def stall(self, where: str) -> None:
        """Wait while the fault `stall` is on for `where`; raises `StoppedError`."""
        if self.faults.stall == where:
            with self._changed:
                self._changed.wait_for(lambda: self.faults.stall != where or self.stopping.is_set())
            self._check()

    def _check(self) -> None:
        if self.stopping.is_set():
            raise StoppedError

    # The record.

    def wait_for(self, predicate: Callable[[], bool], timeout: float | None) -> bool:
        """Wait until `predicate()` holds, asking after every change."""
        with self._changed:
            return self._changed.wait_for(predicate, timeout)

    def notify(self) -> None:
        """Have those who wait look again."""
        with self._changed:
            self._changed.notify_all()

    def asked(self, method: str, target: str, headers: Mapping[str, str]) -> None:
        """Remember a request."""
        with self._changed:
            self.requests.append(Request(method, target, headers))
            self._changed.notify_all()

    def opened(self) -> int:
        """Count a websocket; return its number."""
        with self._changed:
            self.connections += 1
            self.active += 1
            self._changed.notify_all()
            return self.connections

    def closed(self) -> None:
        """Count it as closed."""
        with self._changed:
            self.active -= 1
            self._changed.notify_all()

    def got(self, connection: int, text: str) -> None:
        """Remember a frame."""
        try:
            frame = json.loads(text)
        except (ValueError, RecursionError):
            frame = None
        with self._changed:
            self.received.append(Received(connection, frame, text))
            self._changed.notify_all()

    def turn_began(self) -> None:
        """Count a turn that runs."""
        with self._changed:
            self.running += 1
            self._changed.notify_all()

    def turn_ended(self) -> None:
        """Count it as finished."""
        with self._changed:
            self.running -= 1
            self.turns += 1
            self._changed.notify_all()

    # The connections.

    def track(self, thread: threading.Thread, sock: socket.socket) -> None:
        """Remember a connection's thread and socket."""
        with self._changed:
            self._threads = {known for known in self._threads if known.is_alive()}
            self._threads.add(thread)
            self._sockets.add(sock)

    def untrack(self, sock: socket.socket) -> None:
        """Forget a closed socket; its thread is remembered until it has ended."""
        with self._changed:
            self._sockets.discard(sock)

    def cut(self) -> None:
        """End every open connection, without a word."""
        with self._changed:
            for sock in self._sockets:
                with contextlib.suppress(OSError):  # the client was first
                    sock.shutdown(socket.SHUT_RDWR)

    def join(self) -> None:
        """Wait for the connections' threads."""
        with self._changed:
            threads = list(self._threads)
        for thread in threads:
            thread.join(_JOIN)
