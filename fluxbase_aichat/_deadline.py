"""A moment by which something must have happened, passed down through every step of a call.

Threads are started and waited for here as well: Ctrl-C may come at any moment of both.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable

from .errors import ConnectError

__all__ = ["SLICE", "Clock", "Deadline", "join", "start"]

# Ctrl-C does not end the wait for a lock on Windows, nor anywhere when it comes in the moment in
# which the wait begins. So it may come so many seconds late.
SLICE = 0.5

Clock = Callable[[], float]
"""Returns seconds that only grow: `time.monotonic`, or a test's."""


class Deadline:
    """A moment of a monotonic clock; `seconds=None` never comes."""

    __slots__ = ("_at", "_clock")

    def __init__(self, seconds: float | None, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._at = None if seconds is None else clock() + seconds

    def remaining(self) -> float | None:
        """Seconds left, never negative; `None` when there is no limit."""
        return None if self._at is None else max(0.0, self._at - self._clock())

    @property
    def expired(self) -> bool:
        """Whether the moment has come."""
        return self._at is not None and self._clock() >= self._at

    def hasten(self, seconds: float) -> None:
        """Come no later than so many seconds from now; who waits has to look again."""
        at = self._clock() + seconds
        if self._at is None or at < self._at:
            self._at = at

    def sooner(self, seconds: float | None) -> Deadline:
        """Return a deadline of this one and `seconds` from now, whichever comes first."""
        other = Deadline(seconds, self._clock)
        if other._at is None or (self._at is not None and self._at < other._at):
            return self
        return other

    def slice(self) -> float:
        """Seconds to wait before looking again whether Ctrl-C has come."""
        left = self.remaining()
        return SLICE if left is None else min(left, SLICE)


def start(thread: threading.Thread) -> None:
    """Start a thread; raise `ConnectError` where there can be none."""
    before = sys.exception()  # a Ctrl-C that the caller is handling is over
    try:
        thread.start()
    except RuntimeError as error:
        if isinstance(error.__context__, KeyboardInterrupt) and error.__context__ is not before:
            # It came while `threading` waited for the thread to begin, and a lock of its own that
            # was not taken again yet made another error of it. The thread runs.
            raise error.__context__ from None
        raise ConnectError(f"a thread cannot be started: {error}") from error


def join(thread: threading.Thread, deadline: Deadline) -> None:
    """Wait for the end of a thread that was started."""
    while thread.is_alive() and not deadline.expired:
        thread.join(deadline.slice())
