"""How long a session lives: as long as somebody holds it, and in the process that made it.

The I/O and callback threads hold the session, so it would never be collected by itself. What the
user holds (the client, its turns and conversations) shares a `Lease`; with the last of them, or at
the interpreter's exit, the session is abandoned. After a fork the child has the memory without
the threads: its sessions begin anew.
"""

from __future__ import annotations

import contextlib
import os
import sys
import weakref

from ._session import Session

__all__ = ["Lease"]

_sessions: weakref.WeakSet[Session] = weakref.WeakSet()
_said = False


class Lease:
    """What keeps a session alive."""

    __slots__ = ("__weakref__", "session")

    def __init__(self, session: Session) -> None:
        self.session: Session = session
        _sessions.add(session)
        # At exit it is called too, with the lease still there.
        weakref.finalize(self, _abandon, session, weakref.ref(self))


def _abandon(session: Session, lease: weakref.ref[Lease]) -> None:
    """End a session that nobody holds. Called by the garbage collector: takes no lock."""
    if lease() is not None:
        _say_what_is_unfinished()
    session.abandon()


def _say_what_is_unfinished() -> None:
    """Say it once, of all clients, at the interpreter's exit."""
    global _said  # noqa: PLW0603 - the process ends once
    turns = 0 if _said else sum(session.untold() for session in list(_sessions))
    _said = True
    if turns and sys.stderr is not None:
        with contextlib.suppress(OSError, ValueError):  # it may be closed by now
            sys.stderr.write(
                f"fluxbase_aichat: the script ended while {turns} turn(s) with callbacks were "
                "unfinished; wait() for a turn, or wait_idle() for all, before the end\n"
            )


def _after_fork_in_child() -> None:
    for session in list(_sessions):
        session.after_fork()


# The one thing that happens on import (promise 10). The parent notices nothing of it.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
