"""What a connection is waiting for, and until when. Pure: the time comes in as an argument.

    while                                 after so long                  comes
    a start is on the wire                its limit since it was written,
                                          or reading has paused          "start"
    a turn is on the wire                 its limit since it was written "turn"
                                          its idle since the last byte   "idle"
    a cancelled turn drains               idle since the last byte       "drained"
    nothing is on the wire                20 s of silence                "ping"
    a ping is unanswered                  20 s since it was sent         "dead"

No pong is awaited while anything is on the wire: the server reads nothing in a turn
(PROTOCOL 4.1), and a keepalive that demands one there kills healthy chats.
"""

from __future__ import annotations

import math
from typing import Literal

from ._protocol import Message, Request

__all__ = ["Due", "Watch"]

Due = Literal["start", "turn", "idle", "drained", "ping", "dead"]

# Proxies close links that were idle for 60 s (nginx), or 30 s at the shortest.
_PING_AFTER = 20.0
_PONG_WITHIN = 20.0


class Watch:
    """The timers of one connection."""

    def __init__(self, now: float, *, drain: float | None) -> None:
        self._drain = drain
        self._heard = now
        self._pinged: float | None = None
        self._draining = False
        self._written = now
        self.request: Request | None = None
        """The request on the wire, if it is timed."""

    def wrote(self, request: Request, now: float) -> None:
        """A request is on the wire as a whole."""
        self.request = request
        self._written = self._heard = now
        self._pinged = None

    def heard(self, now: float) -> None:
        """Something came from the server."""
        self._heard = now
        self._pinged = None

    def paused(self, now: float) -> None:
        """Nothing is read for now: a start that is answered meanwhile must not count as late."""
        self.heard(now)
        if not isinstance(self.request, Message):
            self._written = now

    def ended(self, now: float) -> None:
        """The request was answered."""
        self.request = None
        self._heard = now

    def drains(self, now: float) -> None:
        """A `cancel` was written: only the end of the stream is awaited."""
        self._draining = True
        self.request = None
        self._heard = now

    def next(self) -> tuple[float, Due]:
        """Return what is due next, and when; `math.inf` is never."""
        if self._draining:
            return _after(self._heard, self._drain), "drained"
        if isinstance(self.request, Message):
            idle = _after(self._heard, self.request.idle)
            turn = _after(self._written, self.request.limit)
            return (idle, "idle") if idle < turn else (turn, "turn")
        if self.request is not None:
            return _after(self._written, self.request.limit), "start"
        if self._pinged is not None:
            return self._pinged + _PONG_WITHIN, "dead"
        return self._heard + _PING_AFTER, "ping"

    def pinged(self, now: float) -> None:
        """A ping was sent."""
        self._pinged = now


def _after(moment: float, seconds: float | None) -> float:
    return math.inf if seconds is None else moment + seconds
