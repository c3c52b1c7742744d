"""A clock that stands still until a test moves it, and pauses that take no time."""

from __future__ import annotations

import threading
import weakref
from typing import Any, Self

import pytest
from servers import WAIT

from fluxbase_aichat import FluxbaseAIChat, _net
from fluxbase_aichat._deadline import Clock, Deadline
from fluxbase_aichat.errors import NotConnectedError

__all__ = ["FakeClock", "Pauses", "Waits"]


class FakeClock:
    """Seconds that grow when told to. `drive` puts it into a client that has not connected yet."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._now = 1000.0
        self._chat: weakref.ref[FluxbaseAIChat] | None = None

    def __call__(self) -> float:
        """Return the time."""
        with self._lock:
            return self._now

    def drive(self, chat: FluxbaseAIChat) -> Self:
        """Make it the clock of that client."""
        assert chat.state == "new"
        chat._session.clock = self
        self._chat = weakref.ref(chat)
        return self

    def advance(self, seconds: float) -> None:
        """Move on, and have the client's I/O thread look at the time."""
        with self._lock:
            self._now += seconds
        chat = self._chat and self._chat()
        connection = chat and chat._session._current
        if connection is not None:
            connection._waker.wake()


class Pauses:
    """The delays of a module, before connections if it is not named; they take no time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, module: str = "_connection") -> None:
        self.seconds: list[float] = []
        """Each delay that was waited for, connections without one left out."""
        monkeypatch.setattr(f"fluxbase_aichat.{module}.pause", self._pause)

    def _pause(self, seconds: float, clock: Clock, waker: _net.Waker) -> None:
        if seconds:
            self.seconds.append(seconds)
        if isinstance(clock, FakeClock):
            clock.advance(seconds)
        if waker.stopped:
            raise NotConnectedError("the client was disconnected", sent=False)


class Waits:
    """Tells when an I/O thread has come to wait for nothing but the time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._came = threading.Semaphore(0)
        self._wait_for = _net.wait_for
        monkeypatch.setattr(_net, "wait_for", self._note)

    def _note(self, sock: Any, event: int, deadline: Deadline, waker: _net.Waker) -> None:
        if sock is None:
            self._came.release()
        self._wait_for(sock, event, deadline, waker)

    def wait(self) -> None:
        """Wait until one has come once more."""
        assert self._came.acquire(timeout=WAIT), "nobody waits for the time"
