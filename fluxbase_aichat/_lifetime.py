"""How long a session lives: as long as somebody holds it, and in the process that made it.

The I/O and callback threads hold the session, so it would never be collected by itself. What the
user holds (the client, its turns and conversations) shares a `Lease`; with the last of them, or at
the interpreter's exit, the session is abandoned. After a fork the child has the memory without
the threads: its sessions begin anew.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import sys
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from ._deadline import Deadline
from ._net import Waker
from ._session import Session
from .config import RenewableToken
from .errors import ConnectError, LocalProtocolError, NotConnectedError

__all__ = ["Lease", "Loan", "calling", "tell_of_forks"]

# What the threads may take at exit: to say what they have to say, and to free their sockets.
_LAST_WORDS_SECONDS = 0.2

_leases: weakref.WeakSet[Lease] = weakref.WeakSet()
_forking: weakref.WeakSet[Forking] = weakref.WeakSet()


class Forking(Protocol):
    """What has locks or threads that are not in a child process."""

    def after_fork(self) -> None:
        """Begin anew in the child; nothing else runs there yet."""


def tell_of_forks(thing: Forking) -> None:
    """Have `after_fork` called in every child process, as long as somebody holds the thing."""
    _forking.add(thing)


@contextlib.contextmanager
def calling(session: Session | None = None) -> Iterator[Waker]:
    """Give what ends the waits of a REST call; so does `disconnect`, where it is a session's.

    A child process frees what such a call of another thread has. Raises `ConnectError`.
    """
    try:
        waker = Waker()
    except OSError as error:
        raise ConnectError(f"no connection can be opened: {error.strerror}") from error
    tell_of_forks(waker)
    with contextlib.closing(waker), session.ending(waker) if session else contextlib.nullcontext():
        yield waker


class Lease:
    """What keeps a session alive."""

    __slots__ = ("__weakref__", "_callbacks", "_source", "session")

    def __init__(self, session: Session, callbacks: object = None) -> None:
        self.session: Session = session
        # Held here only, and not by the session: they may hold the client.
        self._callbacks = callbacks
        self._source = _Source()
        self.use_token(session.settings.token)
        _leases.add(self)
        tell_of_forks(session)
        weakref.finalize(self, session.abandon).atexit = False
        _watch_the_exit()

    def use_token(self, token: Any) -> None:
        """Take a token for the next connection; raise `ConfigurationError` for a bad one."""
        if callable(token):
            # The same one for good: a connection that is being opened may be about to ask it.
            self._source.function = token
            token = self._source.weakly()
        self.session.use_token(token)


class Loan(Lease):
    """A lease lent to one caller. Taken back, its handles show what was, and begin nothing."""

    __slots__ = ("_lender",)

    def __init__(self, lender: Lease) -> None:  # its end is not the session's
        self._lender = lender
        self.session = lender.session

    def use_token(self, token: Any) -> None:  # noqa: ARG002 - whatever it is
        """Refuse: the connection would be another person's."""
        raise LocalProtocolError(
            "a pool's connection keeps its token; give the new one to pool.chat()"
        )

    def take_back(self) -> None:
        """End it."""
        self.session = self.session.retired("the connection has gone back to its pool")


class _Source:
    """What gives tokens; held by the lease alone, because it may hold the client too."""

    __slots__ = ("__weakref__", "function")

    function: Callable[[], str]

    def weakly(self) -> Callable[[], str]:
        """Return what asks it as long as it is there."""
        return _Weakly(self)


class _Weakly(RenewableToken):
    """A source as long as its lease is there; it hears what was refused, if it cares."""

    def __init__(self, source: _Source) -> None:
        self._source = weakref.ref(source)

    def __call__(self) -> str:
        """Return a token."""
        source = self._source()
        if source is None:
            raise NotConnectedError("the client is gone")
        return source.function()

    def refused(self, token: str) -> None:
        """Tell a source that can give another."""
        source = self._source()
        if source is not None and isinstance(source.function, RenewableToken):
            source.function.refused(token)


@functools.cache
def _watch_the_exit() -> None:
    """See to it that the sessions end with the interpreter. Not on import (promise 10)."""
    atexit.register(_at_exit)


def _at_exit() -> None:
    sessions = [lease.session for lease in _all_leases()]
    turns = sum(session.untold() for session in sessions)
    if turns:
        # The callbacks of an answer just read are a moment behind it.
        deadline = Deadline(_LAST_WORDS_SECONDS)
        for session in sessions:
            session.wait_for_callbacks(deadline)
        turns = sum(session.untold() for session in sessions)
    connections = [c for session in sessions for c in session.abandon()]
    if turns and sys.stderr is not None:
        try:
            sys.stderr.write(
                f"fluxbase_aichat: the script ended while {turns} turn(s) with callbacks were "
                "unfinished; wait() for a turn, or wait_idle() for all, before the end\n"
            )
        except (OSError, ValueError):
            pass  # it is closed
    deadline = Deadline(_LAST_WORDS_SECONDS)
    for connection in connections:
        connection.join(deadline.remaining())


def _all_leases() -> list[Lease]:
    while True:
        try:
            return list(_leases)
        except RuntimeError:
            pass  # another thread has just made a client


def _after_fork_in_child() -> None:
    # Sessions first: a pool lets go of its own, whose end must not reach the parent's threads.
    for thing in sorted(_forking, key=lambda thing: not isinstance(thing, Session)):
        thing.after_fork()


# The one thing that happens on import (promise 10). The parent notices nothing of it.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
