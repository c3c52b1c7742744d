"""The dev server behind `FluxbaseAIChat("demo:")`: one for the process, while a client needs it."""

from __future__ import annotations

import threading
import weakref
from typing import TYPE_CHECKING, ClassVar

from ._lifetime import Lease

if TYPE_CHECKING:
    from fluxbase_aichat.devserver import DevServer

__all__ = ["Demo"]


class Demo:
    """A dev server that runs until the last client that serves itself of it is gone."""

    _lock: ClassVar[threading.Lock] = threading.Lock()
    _newest: ClassVar[weakref.ref[Demo] | None] = None

    def __init__(self) -> None:
        # The public name, as the command line uses it: the dev server stands above the client.
        from fluxbase_aichat.devserver import DevServer, World  # noqa: PLC0415 - an extra

        server = DevServer(world=World(trusting=True))
        server.start()
        self.url: str = server.ws_url
        """Where its chat is."""
        self.token: str = server.token()
        """Who asks: the user ann. It is good for as long as the server."""
        # The collector runs the finalizer anywhere, so it takes no lock and waits for nothing: it
        # lets a thread go on that has waited for this.
        gate = threading.Lock()
        gate.acquire()
        threading.Thread(
            target=_close_after, args=(gate, server), name="fluxbase-aichat-demo", daemon=True
        ).start()
        weakref.finalize(self, gate.release).atexit = False

    @classmethod
    def running(cls) -> Demo:
        """Return the one that runs, or start one. Raises `MissingExtraError` without wsproto."""
        with cls._lock:
            demo = cls._newest() if cls._newest is not None else None
            if demo is None:
                demo = cls()
                cls._newest = weakref.ref(demo)
            return demo

    def serve_for(self, lease: Lease) -> None:
        """Run at least as long as a client's session is wanted."""
        weakref.finalize(lease, _let_go, self).atexit = False


def _let_go(demo: Demo) -> None:
    """Be called when a lease has ended, after which nothing of it keeps the demo."""


def _close_after(gate: threading.Lock, server: DevServer) -> None:
    with server:
        gate.acquire()
