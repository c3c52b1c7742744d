"""A clock that stands still until a test moves it."""

from __future__ import annotations

import threading
from typing import Self

from fluxbase_aichat import FluxbaseAIChat

__all__ = ["FakeClock"]


class FakeClock:
    """Seconds that grow when told to. `drive` puts it into a client that has not connected yet."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._now = 1000.0
        self._chat: FluxbaseAIChat | None = None

    def __call__(self) -> float:
        """Return the time."""
        with self._lock:
            return self._now

    def drive(self, chat: FluxbaseAIChat) -> Self:
        """Make it the clock of that client."""
        assert chat.state == "new"
        chat._session.clock = self
        self._chat = chat
        return self

    def advance(self, seconds: float) -> None:
        """Move on, and have the client's I/O thread look at the time."""
        with self._lock:
            self._now += seconds
        connection = self._chat and self._chat._session._current
        if connection is not None:
            connection._waker.wake()
