"""A moment by which something must have happened, passed down through every step of a call."""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["Clock", "Deadline"]

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

    def sooner(self, seconds: float | None) -> Deadline:
        """Return a deadline of this one and `seconds` from now, whichever comes first."""
        other = Deadline(seconds, self._clock)
        if other._at is None or (self._at is not None and self._at < other._at):
            return self
        return other
