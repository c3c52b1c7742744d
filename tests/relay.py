"""A byte relay on loopback in front of a server, with eight switches to make a network bad.

    with DevServer() as server, Relay(server.ws_url) as relay:
        chat = FluxbaseAIChat(relay.url, ...)
        relay.set(latency=0.2, slicer=1)

Each switch may be turned at any time, and has taken effect when `set` returns. One thread does all
of it, with one selector; it waits nowhere else.
"""

from __future__ import annotations

import contextlib
import errno
import selectors
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import urlsplit, urlunsplit

__all__ = ["SWITCHES", "Relay"]

SWITCHES: Final[dict[str, Any]] = {
    "latency": 0.0,  # seconds that every byte is late
    "down": False,  # what is open is cut, what is new is refused
    "bandwidth": None,  # bytes a second, each way
    "slow_close": 0.0,  # seconds that the end of a stream is late
    "swallow": False,  # bytes are taken and go nowhere; such a stream is cut when this ends
    "reset": False,  # what is open is reset, and each new connection with its first byte
    "slicer": None,  # bytes of each piece
    "limit": None,  # bytes, both ways together, after which a connection is cut
}
"""Each switch, and what it is when it is off."""

_CHUNK: Final = 64 * 1024
# So much may wait in one direction before the relay reads no more of it, as a network does.
_WINDOW: Final = 256 * 1024
# Between two pieces the reader gets the time to take the first alone.
_SLICE_SECONDS: Final = 0.0002
_ANSWER: Final = 10.0


class _Flow:
    """One direction of a connection: what was read of `source` and is not written to `target`."""

    def __init__(self, source: socket.socket, target: socket.socket) -> None:
        self.source = source
        self.target = target
        self.waiting: deque[tuple[float, bytes]] = deque()
        self.size = 0
        self.free_at = 0.0
        self.ends_at: float | None = None
        self.ended = False
        self.blocked = False


class _Link:
    """A client's connection and the one to the server that belongs to it."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client = client
        self.server = server
        self.flows = (_Flow(client, server), _Flow(server, client))
        self.connecting = True
        self.carried = 0
        self.holed = False
        self.closed = False


class Relay:
    """Listens on a free port of loopback and relays to `target`, the URL of a server there."""

    def __init__(self, target: str) -> None:
        parts = urlsplit(target)
        assert parts.hostname is not None
        assert parts.port is not None
        self._target = (parts.hostname, parts.port)
        self._selector = selectors.DefaultSelector()
        self._waker, self._wake = socket.socketpair()
        self._wake.setblocking(False)
        self._selector.register(self._waker, selectors.EVENT_READ)
        self._changed = threading.Condition()  # guards the four below
        self._orders: deque[Callable[[], object]] = deque()
        self._connections = 0
        self._open = 0
        self._swallowed = 0
        # The thread's own.
        self._switches = dict(SWITCHES)
        self._links: set[_Link] = set()
        self._listener: socket.socket | None = None
        self._held: socket.socket | None = None
        self._stopped = False
        self._port = 0
        self._listen()
        host = f"127.0.0.1:{self._port}"
        self.url: str = urlunsplit((parts.scheme, host, parts.path, parts.query, ""))
        """Where the server seems to be."""
        self._thread = threading.Thread(target=self._run, name="relay", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._order(self._stop)
        self._thread.join(_ANSWER)
        assert not self._thread.is_alive(), "the relay does not end"

    def __repr__(self) -> str:
        on = {n: v for n, v in self._switches.items() if v != SWITCHES[n]}
        return f"<Relay {self.url} {on}>"

    # -- any thread -------------------------------------------------------------------------

    def set(self, **switches: Any) -> None:
        """Turn some switches; they have taken effect when it returns."""
        unknown = switches.keys() - SWITCHES.keys()
        if unknown:
            raise TypeError(f"no such switch: {', '.join(sorted(unknown))}")
        self._order(lambda: self._turn(switches))

    def clear(self) -> None:
        """Turn all switches off."""
        self.set(**SWITCHES)

    @property
    def connections(self) -> int:
        """How many connections it has taken so far."""
        with self._changed:
            return self._connections

    @property
    def open(self) -> int:
        """How many are open."""
        with self._changed:
            return self._open

    @property
    def swallowed(self) -> int:
        """How many bytes it has swallowed."""
        with self._changed:
            return self._swallowed

    def wait_for(self, predicate: Callable[[], bool], seconds: float = 5.0) -> bool:
        """Wait until `predicate()` holds, asking again whenever one of the numbers changes."""
        with self._changed:
            return self._changed.wait_for(predicate, seconds)

    def _order(self, order: Callable[[], object]) -> None:
        done = threading.Event()

        def run() -> None:
            order()
            done.set()

        with self._changed:
            self._orders.append(run)
        with contextlib.suppress(BlockingIOError):  # it is full of wakes already
            self._wake.send(b"\0")
        assert done.wait(_ANSWER), "the relay does not answer"

    # -- the relay's thread -----------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._stopped:
                for key, events in self._selector.select(self._next()):
                    if key.fileobj is self._waker:
                        self._obey()
                    elif key.fileobj is self._listener:
                        self._accept()
                    elif isinstance(key.data, _Link):
                        self._ready(key.data, key.fileobj, events)
                now = time.monotonic()
                for link in list(self._links):
                    self._move(link, now)
                self._count()
        finally:
            for link in list(self._links):
                self._cut(link)
            self._shut()
            if self._held is not None:
                self._held.close()
            self._selector.close()
            self._waker.close()
            self._wake.close()

    def _stop(self) -> None:
        self._stopped = True

    def _count(self) -> None:
        with self._changed:
            if self._open != len(self._links):
                self._open = len(self._links)
                self._changed.notify_all()

    def _obey(self) -> None:
        self._waker.recv(4096)
        while True:
            with self._changed:
                if not self._orders:
                    return
                order = self._orders.popleft()
            order()

    def _turn(self, switches: dict[str, Any]) -> None:
        self._switches.update(switches)
        on = self._switches
        for link in list(self._links):
            if on["down"] or (link.holed and not on["swallow"]):
                self._cut(link)
            elif on["reset"]:
                self._cut(link, reset=True)
        if on["down"]:
            self._shut()
        elif self._listener is None:
            self._listen()
        self._count()

    def _listen(self) -> None:
        if self._held is not None:
            self._held.close()
            self._held = None
        self._listener = socket.create_server(("127.0.0.1", self._port), backlog=100)
        self._listener.setblocking(False)
        self._port = self._listener.getsockname()[1]
        self._selector.register(self._listener, selectors.EVENT_READ)

    def _shut(self) -> None:
        if self._listener is None:
            return
        self._selector.unregister(self._listener)
        self._listener.close()
        self._listener = None
        # Bound, not listening: it refuses connections, and no other process takes the port.
        self._held = socket.socket()
        self._held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._held.bind(("127.0.0.1", self._port))

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            client, _ = self._listener.accept()
        except OSError:  # it is gone already
            return
        server = socket.socket()
        for sock in (client, server):
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        link = _Link(client, server)
        self._links.add(link)
        with self._changed:
            self._connections += 1
            self._changed.notify_all()
        if server.connect_ex(self._target) in {0, errno.EINPROGRESS}:
            self._selector.register(server, selectors.EVENT_WRITE, link)
        else:
            self._cut(link)

    def _cut(self, link: _Link, *, reset: bool = False) -> None:
        if link.closed:
            return
        link.closed = True
        self._links.discard(link)
        for sock in (link.client, link.server):
            with contextlib.suppress(KeyError):  # nothing was waited for
                self._selector.unregister(sock)
            if reset:
                linger = struct.pack("ii", 1, 0)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            else:
                # Closing over what was not read would reset the connection.
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_WR)
                    while sock.recv(_CHUNK):
                        pass
            sock.close()

    def _ready(self, link: _Link, sock: object, events: int) -> None:
        """Read what there is; what can be written is written by `_move`."""
        if link.closed:
            return
        if link.connecting:
            if link.server.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                self._cut(link)
                return
            link.connecting = False
        for flow in link.flows:
            if flow.target is sock and events & selectors.EVENT_WRITE:
                flow.blocked = False
            if flow.source is sock and events & selectors.EVENT_READ and flow.ends_at is None:
                self._read(link, flow)
                if link.closed:
                    return

    def _read(self, link: _Link, flow: _Flow) -> None:
        on = self._switches
        now = time.monotonic()
        try:
            data = flow.source.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError:
            self._cut(link, reset=True)  # as it came, so it goes on
            return
        if not data:
            flow.ends_at = now + on["latency"] + on["slow_close"]
        elif on["reset"]:
            self._cut(link, reset=True)
        elif on["swallow"]:
            link.holed = True
            with self._changed:
                self._swallowed += len(data)
                self._changed.notify_all()
        elif not link.holed:
            flow.waiting.append((now + on["latency"], data))
            flow.size += len(data)

    def _move(self, link: _Link, now: float) -> None:
        """Write what is due, end what has ended, and wait for the right things."""
        if link.connecting or link.closed:
            return
        for flow in link.flows:
            while not flow.blocked and flow.waiting and self._due(flow) <= now:
                if not self._write(link, flow, now):
                    return
            over = flow.ends_at is not None and not flow.waiting and flow.ends_at <= now
            if over and not flow.ended:
                flow.ended = True
                with contextlib.suppress(OSError):  # it is gone already
                    flow.target.shutdown(socket.SHUT_WR)
        if all(flow.ended for flow in link.flows):
            self._cut(link)
            return
        for sock in (link.client, link.server):
            events = 0
            for flow in link.flows:
                if flow.source is sock and flow.ends_at is None and flow.size < _WINDOW:
                    events |= selectors.EVENT_READ
                if flow.target is sock and flow.blocked:
                    events |= selectors.EVENT_WRITE
            self._watch(link, sock, events)

    def _watch(self, link: _Link, sock: socket.socket, events: int) -> None:
        known = self._selector.get_map().get(sock)
        if known is None:
            if events:
                self._selector.register(sock, events, link)
        elif not events:
            self._selector.unregister(sock)
        elif known.events != events:
            self._selector.modify(sock, events, link)

    def _due(self, flow: _Flow) -> float:
        return max(flow.waiting[0][0], flow.free_at)

    def _write(self, link: _Link, flow: _Flow, now: float) -> bool:
        """Write one piece; `False` when that was the end of the link."""
        on = self._switches
        due, data = flow.waiting[0]
        size = len(data)
        if on["slicer"]:
            size = min(size, on["slicer"])
        if on["bandwidth"]:
            size = min(size, max(1, int(on["bandwidth"] / 50)))
        if on["limit"] is not None:
            size = min(size, on["limit"] - link.carried)
            if size <= 0:
                self._cut(link)
                return False
        try:
            sent = flow.target.send(data[:size])
        except BlockingIOError:
            flow.blocked = True
            return True
        except OSError:
            self._cut(link, reset=True)
            return False
        link.carried += sent
        flow.size -= sent
        if sent < len(data):
            flow.waiting[0] = (due, data[sent:])
        else:
            flow.waiting.popleft()
        if on["bandwidth"]:
            flow.free_at = now + sent / on["bandwidth"]
        elif on["slicer"]:
            flow.free_at = now + _SLICE_SECONDS
        if on["limit"] is not None and link.carried >= on["limit"]:
            self._cut(link)
            return False
        return True

    def _next(self) -> float | None:
        """Return the seconds until something is due; `None`: until something happens."""
        due = [
            self._due(flow) if flow.waiting else flow.ends_at
            for link in self._links
            if not link.connecting
            for flow in link.flows
            if not flow.blocked and not flow.ended and (flow.waiting or flow.ends_at is not None)
        ]
        if not due:
            return None
        return max(0.0, min(at for at in due if at is not None) - time.monotonic())
