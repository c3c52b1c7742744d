"""The dev server as its users see it: starting, stopping, switching, looking. No protocol here."""

from __future__ import annotations

import ipaddress
import selectors
import socket
import threading
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Final, Literal, Self

from fluxbase_aichat.errors import ConfigurationError, MissingExtraError, NotConnectedError

from ._auth import ACCESS_SECONDS, USERS, User
from ._faults import Faults
from ._runtime import Received, Request, Runtime
from ._store import Store
from ._world import World

if TYPE_CHECKING:
    from ._http import Listener

__all__ = ["DevServer", "Feature"]

Feature = Literal["on", "off-2026.1", "off-2026.3"]

_JOIN: Final = 5.0


class DevServer:
    """A Fluxbase-exact chat server on loopback, for demos, documentation and tests.

    `with DevServer() as server:` starts and closes it. `host` must be a loopback name or address,
    for the passwords are public; `port` 0 picks a free one, which a restart keeps. `store` is where
    conversations persist; the caller closes it, and without one they last as long as this object.
    `pause` is called with the seconds of a script's `pause`, in the connection's thread; by default
    it waits until they are over or the server stops. `chunk_delay` is seconds between two streamed
    words. `feature` says whether chat is switched on, or how a server tells that it is off.
    `world` holds the chatbots and their answers; by default they are those of the demo.

    Every public method is thread-safe. Raises `MissingExtraError` when wsproto is not installed and
    `ConfigurationError` for a host that is not loopback.
    """

    users: Mapping[str, User] = USERS
    """Who can sign in: `ann`, `bob` and the administrator `admin`, with `NAME@example.com` and
    `NAME-password`. Their `id` is the one to impersonate."""

    faults: Faults
    """What goes wrong on purpose."""

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        store: Store | None = None,
        pause: Callable[[float], object] | None = None,
        chunk_delay: float = 0.0,
        feature: Feature = "on",
        world: World | None = None,
    ) -> None:
        try:
            from ._http import Listener  # noqa: PLC0415 - wsproto is an extra
        except ImportError as error:
            raise MissingExtraError(
                "the dev server needs wsproto: pip install 'fluxbase-aichat[devserver]'"
            ) from error
        self._host = _loopback(host)
        self._port = port
        self._listen_on = Listener
        # Guards what follows: starting and stopping, one at a time.
        self._lifecycle = threading.RLock()
        self._started = self._closed = False
        self._listener: Listener | None = None
        self._acceptor: threading.Thread | None = None
        self._wake: socket.socket | None = None
        self._held: socket.socket | None = None
        self._owns_store = store is None
        self.faults = Faults(self._faults_changed)
        self._runtime = Runtime(
            store or Store(),
            self.faults,
            pause=pause,
            chunk_delay=chunk_delay,
            feature=feature,
            world=world or World(),
        )

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = self.url if self._started else "not started"
        return f"<DevServer {state}, {self.active} of {self.connections} connections open>"

    # What a client needs.

    @property
    def url(self) -> str:
        """Where REST calls go, `http://127.0.0.1:PORT`; with port 0, once it was started."""
        if not self._port:
            raise NotConnectedError("the dev server has no port before it is started")
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._port}"

    @property
    def ws_url(self) -> str:
        """Where the chat is, `ws://127.0.0.1:PORT/ai/ws`."""
        return f"ws{self.url.removeprefix('http')}/ai/ws"

    @property
    def service_key(self) -> str:
        """A key for `X-Service-Key`; it may impersonate, and sees everybody's conversations."""
        return self._runtime.store.service_key

    def token(self, user: str = "ann", *, expires_in: float = ACCESS_SECONDS) -> str:
        """Return an access token for one of `users`; negative seconds give an expired one."""
        return self._runtime.auth.token(self.users[user], expires_in=expires_in)

    # Starting and stopping.

    def start(self) -> None:
        """Listen; idempotent. After `kill()` this is a restart, on the same port."""
        with self._lifecycle:
            if self._closed:
                raise NotConnectedError("the dev server has been closed")
            if not self._started:
                self._runtime.stopping.clear()
                self._runtime.forget()
                self._started = True
                self._open_or_shut()

    def kill(self) -> None:
        """End every connection without a close frame, give up running turns, stop listening.

        What was in memory is lost, what persists is kept. Idempotent; `start()` may follow.
        """
        with self._lifecycle:
            if self._started:
                self._started = False
                self._runtime.stopping.set()
                self._runtime.notify()
                self._open_or_shut()
                self._runtime.cut()
                self._runtime.join()

    def close(self) -> None:
        """Kill the server for good; idempotent."""
        with self._lifecycle:
            self.kill()
            if not self._closed:
                self._closed = True
                self._let_go()
                self._runtime.database.close()
                if self._owns_store:
                    self._runtime.store.close()

    def serve_forever(self) -> None:
        """Serve until `close()` or `kill()` is called elsewhere, or Ctrl-C raises here."""
        self.start()
        self._runtime.stopping.wait()

    def drop_connections(self) -> None:
        """Cut every open connection, as a broken network does; their turns go on."""
        self._runtime.cut()

    # What tests switch and look at.

    @property
    def feature(self) -> str:
        """Whether chat is on; may be set at any time."""
        return self._runtime.feature

    @feature.setter
    def feature(self, value: Feature) -> None:
        self._runtime.feature = value

    @property
    def chunk_delay(self) -> float:
        """Seconds between two streamed words; may be set at any time."""
        return self._runtime.chunk_delay

    @chunk_delay.setter
    def chunk_delay(self, seconds: float) -> None:
        self._runtime.chunk_delay = seconds

    @property
    def received(self) -> list[Received]:
        """Every frame that the server came to, on all connections, in order."""
        return self._runtime.received.copy()

    @property
    def requests(self) -> list[Request]:
        """Every HTTP request, in order, the openings of websockets included."""
        return self._runtime.requests.copy()

    @property
    def connections(self) -> int:
        """How many websockets have been opened so far."""
        return self._runtime.connections

    @property
    def active(self) -> int:
        """How many websockets are open."""
        return self._runtime.active

    @property
    def turns(self) -> int:
        """How many turns have ended so far, well or not."""
        return self._runtime.turns

    @property
    def running(self) -> int:
        """How many turns run."""
        return self._runtime.running

    def wait_for(self, predicate: Callable[[], bool], timeout: float = 5.0) -> bool:
        """Wait until `predicate()` holds, asking again after every request, frame and turn.

        Returns whether it held within `timeout` seconds.
        """
        return self._runtime.wait_for(predicate, timeout)

    # Listening.

    def _faults_changed(self, names: frozenset[str]) -> None:
        self._runtime.notify()
        if "refuse" in names:
            with self._lifecycle:
                self._open_or_shut()

    def _open_or_shut(self) -> None:
        """Listen, or stop listening, whichever should be; the caller holds the lifecycle lock."""
        if self._started and not self.faults.refuse:
            if self._listener is None:
                self._listen()
        elif self._listener is not None:
            self._stop_listening(self._listener)

    def _listen(self) -> None:
        self._let_go()
        self._listener = self._listen_on((self._host, self._port), self._runtime)
        self._port = int(self._listener.server_address[1])
        self._wake, wake = socket.socketpair()
        self._acceptor = threading.Thread(
            target=_accept, args=(self._listener, wake), name="devserver-accept", daemon=True
        )
        self._acceptor.start()

    def _stop_listening(self, listener: Listener) -> None:
        if self._wake is not None and self._acceptor is not None:
            self._wake.close()
            self._acceptor.join(_JOIN)
        listener.server_close()
        self._listener = self._acceptor = self._wake = None
        # Bound, not listening: it refuses connections, and no other process takes the port.
        self._held = socket.socket(listener.address_family)
        self._held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._held.bind((self._host, self._port))

    def _let_go(self) -> None:
        if self._held is not None:
            self._held.close()
            self._held = None


def _accept(listener: Listener, wake: socket.socket) -> None:
    """Hand each new connection to its thread until the other end of `wake` is closed."""
    with wake, selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        selector.register(wake, selectors.EVENT_READ)
        while all(key.fileobj is not wake for key, _ in selector.select()):
            listener.handle_request()


def _loopback(host: str) -> str:
    if host == "localhost":
        return "127.0.0.1"
    try:
        if ipaddress.ip_address(host).is_loopback:
            return host
    except ValueError:
        pass
    raise ConfigurationError(f"the dev server serves loopback only, not {host!r}")
