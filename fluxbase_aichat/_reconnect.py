"""When to try a lost connection again, and when to give up. Pure: no clock, no thread.

    attempt n (from 0) comes after a delay between half and all of   delay · 2ⁿ, at most 30 s,
    or after what the server asked for in Retry-After,               at most 60 s.

Half of each delay is random, so that the clients of a server that was restarted do not come back
in one moment. What waiting cannot mend is final.
"""

from __future__ import annotations

from collections.abc import Callable

from .errors import (
    AuthenticationError,
    ConfigurationError,
    FluxbaseChatError,
    HandshakeError,
    MissingExtraError,
    NotConnectedError,
    PermissionDeniedError,
    ProxyError,
    TLSError,
)

__all__ = ["Backoff", "is_final", "switch_waiting", "waiting"]

_LONGEST_DELAY = 30.0
# Rate limits are often counted by the minute; a server that asks for more is not waited for.
_LONGEST_RETRY_AFTER = 60.0
# A connection that lived so long was a good one.
GOOD_SECONDS = 30.0

_FINAL = (
    AuthenticationError,
    ConfigurationError,
    MissingExtraError,
    NotConnectedError,
    PermissionDeniedError,
    TLSError,
)
_FINAL_STATUSES = frozenset({400, 404})


_waiting = True


def waiting() -> bool:
    """Whether delays are waited for; only a test switches it off."""
    return _waiting


def switch_waiting(*, on: bool) -> None:
    """Switch the waiting of all clients on or off, for tests. See `testing.no_waiting`."""
    global _waiting  # noqa: PLW0603 - it is one switch
    _waiting = on


def is_final(error: FluxbaseChatError) -> bool:
    """Whether trying again cannot help."""
    if isinstance(error, HandshakeError) and error.status in _FINAL_STATUSES:
        return True
    if isinstance(error, ProxyError) and not error.retryable:
        return True  # 407, or settings that no proxy can be found with
    return isinstance(error, _FINAL)


class Backoff:
    """The attempts since a connection was last a good one. Needs its owner's lock.

    `random` returns numbers from 0 to 1, as `random.random` does.
    """

    def __init__(self, attempts: int, delay: float, random: Callable[[], float]) -> None:
        self._attempts = attempts
        self._delay = delay
        self._random = random
        self.attempt = 0
        """How many attempts were made."""

    def next(self, error: FluxbaseChatError) -> float | None:
        """Return the seconds to the next attempt after this error; `None`: give up."""
        if self.attempt >= self._attempts or is_final(error):
            return None
        # A float's exponent ends at 1023; 30 s are reached long before.
        step = min(_LONGEST_DELAY, self._delay * 2.0 ** min(self.attempt, 64))
        delay = step * (0.5 + 0.5 * self._random())
        self.attempt += 1
        if error.retry_after is not None:
            delay = max(delay, min(error.retry_after, _LONGEST_RETRY_AFTER))
        return delay if _waiting else 0.0

    def reset(self) -> None:
        """Count anew: a conversation was started, or the connection lived for 30 s."""
        self.attempt = 0
