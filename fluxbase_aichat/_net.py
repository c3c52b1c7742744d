"""Sockets: name look-up, TCP and TLS under one deadline, each wait ended by a wake from outside.

All sockets are non-blocking. Nothing here knows HTTP or WebSocket.
"""

from __future__ import annotations

import errno
import functools
import os
import selectors
import socket
import ssl
import threading
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

from ._deadline import Clock, Deadline, start
from .config import Endpoint
from .errors import (
    ConfigurationError,
    ConnectError,
    ConnectTimeoutError,
    FluxbaseChatError,
    NotConnectedError,
    TLSError,
)

__all__ = [
    "Waker",
    "bounded",
    "call",
    "check_ssl_context",
    "connect_tcp",
    "open_socket",
    "pause",
    "tls_error",
    "tune",
    "wait_for",
]

T = TypeVar("T")

# With more addresses to try, none may use up the whole deadline: a broken IPv6 route swallows
# packets without a word.
_ADDRESS_SECONDS = 3.0

_HINTS = {
    ConnectionRefusedError: "does the server run there, and is the port right?",
    socket.gaierror: "is its name right, and is there a network?",
}

# epoll counts its milliseconds in 32 bits; a deadline may be further away.
_SELECT_SECONDS = 86400.0

# For one wait. Not epoll: it is one more descriptor, which a fork could copy before it is `held`.
_Selector = getattr(selectors, "PollSelector", selectors.SelectSelector)

# TCP keepalive notices a peer that vanished, also inside a turn, when no ping can be answered.
_KEEPALIVE = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}


class Waker:
    """Ends a wait in a selector from another thread. `wake` and `stop` are thread-safe."""

    def __init__(self) -> None:
        # Re-entrant, because the garbage collector may wake while a wake is under way.
        self._lock = threading.RLock()
        self._receiver, self._sender = socket.socketpair()
        self._receiver.setblocking(False)
        self._sender.setblocking(False)
        self._closed = False
        self.held: socket.socket | None = None
        """The socket of what is being opened, which a child process has to free."""
        self.stopped = False
        """Set by `stop`: what is being opened is not wanted any more."""

    def fileno(self) -> int:
        """Return the descriptor to watch for reading."""
        return self._receiver.fileno()

    def wake(self) -> None:
        """End the wait that is on, or the next one."""
        # The lock keeps close() from handing the descriptor's number to somebody else meanwhile.
        with self._lock:
            if not self._closed:
                try:
                    self._sender.send(b"\0")
                except BlockingIOError:
                    pass  # it is full of wakes already

    def stop(self) -> None:
        """Wake, and make the opening of a connection give up."""
        self.stopped = True
        self.wake()

    def drain(self) -> None:
        """Take the wakes that have come."""
        try:
            while len(self._receiver.recv(4096)) == 4096:  # noqa: PLR2004 - the size asked for
                pass
        except BlockingIOError:
            pass

    def after_fork(self) -> None:
        """Free the child's copies; a thread that is not there may have held the lock."""
        self._lock = threading.RLock()
        self.close()
        if self.held is not None:
            self.held.close()

    def close(self) -> None:
        """Free the descriptors; later wakes do nothing."""
        with self._lock:
            self._closed = True
            self._receiver.close()
            self._sender.close()


def bounded(seconds: float | None) -> float | None:
    """Return how long a selector may wait before whoever waits looks again."""
    return None if seconds is None else min(seconds, _SELECT_SECONDS)


def wait_for(sock: socket.socket | None, event: int, deadline: Deadline, waker: Waker) -> None:
    """Wait until `sock` is ready for `event`, or the waker was woken when there is no `sock`.

    Raises `TimeoutError` at the deadline and `NotConnectedError` when the waker was stopped.
    """
    with _Selector() as selector:
        selector.register(waker, selectors.EVENT_READ)
        if sock is not None:
            waker.held = sock
            selector.register(sock, event)
        while True:
            # The wake of a stop may have been taken by another wait before.
            ready = selector.select(0 if waker.stopped else bounded(deadline.remaining()))
            waker.drain()
            if waker.stopped:
                raise NotConnectedError("the client was disconnected", sent=False)
            if sock is None or any(key.fileobj is sock for key, _ in ready):
                return
            if deadline.expired:
                raise TimeoutError


def pause(seconds: float, clock: Clock, waker: Waker) -> None:
    """Wait; raise `NotConnectedError` as soon as the waker is stopped."""
    deadline = Deadline(seconds, clock)
    while not deadline.expired:
        wait_for(None, 0, deadline, waker)


def call(function: Callable[[], T], deadline: Deadline, waker: Waker, name: str) -> T:
    """Call what cannot be interrupted in a thread that is left behind at the deadline.

    Raises what it raises, `TimeoutError` at the deadline, `NotConnectedError` when stopped.
    """
    outcome: list[Callable[[], T]] = []

    def run() -> None:
        try:
            value = function()
        except BaseException as error:  # noqa: BLE001 - it is raised again where it was wanted
            outcome.append(functools.partial(_raise, error))
        else:
            outcome.append(lambda: value)
        waker.wake()

    start(threading.Thread(target=run, name=f"fluxbase-aichat-{name}", daemon=True))
    while not outcome:
        wait_for(None, 0, deadline, waker)
        if not outcome and deadline.expired:
            raise TimeoutError
    return outcome.pop()()


def _raise(error: BaseException) -> NoReturn:
    raise error


def check_ssl_context(value: object) -> None:
    """Raise `ConfigurationError` for what is no `ssl.SSLContext`."""
    if value is not None and not isinstance(value, ssl.SSLContext):
        raise ConfigurationError(
            f"ssl_context must be an ssl.SSLContext, not {type(value).__name__}; "
            "ssl.create_default_context(cafile=...) makes one"
        )


Opener = Callable[[Deadline, Waker], socket.socket]


def open_socket(
    endpoint: Endpoint,
    context: ssl.SSLContext | None,
    deadline: Deadline,
    waker: Waker,
    through: Opener | None = None,
) -> socket.socket:
    """Connect to the endpoint and return a non-blocking socket, with TLS if it is secure.

    `through` opens the way to it in place of a plain TCP connection: a proxy's.
    Raises `ConnectError` (`ConnectTimeoutError`, `TLSError`) or `NotConnectedError`.
    """
    step = "looking up the name, waiting for TCP"
    sock = None
    try:
        if through is not None:
            sock = through(deadline, waker)
        else:
            sock = connect_tcp(endpoint.host, endpoint.port, deadline, waker)
        if endpoint.secure:
            step = "waiting for TLS"
            sock = _start_tls(sock, endpoint.host, context, deadline, waker)
    except BaseException as error:
        if sock is not None:
            sock.close()
        if isinstance(error, FluxbaseChatError):
            raise
        if isinstance(error, ssl.SSLError):
            raise tls_error(endpoint, error) from error
        if isinstance(error, TimeoutError) and error.errno is None:
            step = str(error) or step
            raise ConnectTimeoutError(f"no connection to {endpoint} in time: {step}") from None
        if isinstance(error, OSError):
            why = error.strerror or str(error)
            hint = next((hint for kind, hint in _HINTS.items() if isinstance(error, kind)), "")
            raise ConnectError(f"cannot connect to {endpoint}: {why}", hint=hint) from error
        if isinstance(error, ValueError):  # ssl and idna refuse odd names
            raise ConnectError(f"cannot connect to {endpoint}: {error}") from error
        raise
    return sock


def connect_tcp(host: str, port: int, deadline: Deadline, waker: Waker) -> socket.socket:
    """Look a name up and connect to one of its addresses; raise `OSError` or `TimeoutError`."""
    try:
        addresses = _resolve(host, port, deadline, waker)
    except TimeoutError as error:
        if error.errno is None:
            raise TimeoutError("looking up the name") from None
        raise
    try:
        return _connect(addresses, deadline, waker)
    except TimeoutError as error:
        if error.errno is None:
            raise TimeoutError("waiting for TCP") from None
        raise


_Address = tuple[Any, ...]


def _resolve(host: str, port: int, deadline: Deadline, waker: Waker) -> list[_Address]:
    try:
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except socket.gaierror:
        pass  # a name
    return call(
        lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM), deadline, waker, "dns"
    )


def _connect(addresses: list[_Address], deadline: Deadline, waker: Waker) -> socket.socket:
    for address in addresses[:-1]:
        try:
            return _connect_one(address, deadline.sooner(_ADDRESS_SECONDS), waker)
        except NotConnectedError:
            raise
        except OSError:
            if deadline.expired:
                raise
    return _connect_one(addresses[-1], deadline, waker)


def _connect_one(address: _Address, deadline: Deadline, waker: Waker) -> socket.socket:
    family, kind, protocol, _, where = address
    sock = socket.socket(family, kind, protocol)
    waker.held = sock
    try:
        tune(sock)
        code = sock.connect_ex(where)
        if code in {errno.EINPROGRESS, errno.EWOULDBLOCK}:
            wait_for(sock, selectors.EVENT_WRITE, deadline, waker)
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise OSError(code, os.strerror(code))  # noqa: TRY301 - closed below
    except BaseException:
        sock.close()
        raise
    return sock


def tune(sock: socket.socket) -> None:
    """Set what every socket of ours has: it never waits, delays no small frame, and keeps alive."""
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE.items():
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _start_tls(
    sock: socket.socket,
    host: str,
    context: ssl.SSLContext | None,
    deadline: Deadline,
    waker: Waker,
) -> ssl.SSLSocket:
    if context is None:
        context = ssl.create_default_context()
    tls = context.wrap_socket(
        sock,
        server_hostname=host,
        do_handshake_on_connect=False,
        suppress_ragged_eofs=False,  # an end that nobody signed is worth telling
    )
    try:
        while True:
            try:
                tls.do_handshake()
            except ssl.SSLWantReadError:
                wait_for(tls, selectors.EVENT_READ, deadline, waker)
            except ssl.SSLWantWriteError:
                wait_for(tls, selectors.EVENT_WRITE, deadline, waker)
            else:
                return tls
    except BaseException:
        tls.close()
        raise


def tls_error(endpoint: Endpoint, error: ssl.SSLError) -> ConnectError:
    """Return the exception for a TLS handshake that failed."""
    if isinstance(error, (ssl.SSLEOFError, ssl.SSLZeroReturnError)):
        # Not TLS but the server has failed: one that is being restarted does so.
        return ConnectError(f"cannot connect to {endpoint}: the connection ended in TLS")
    if isinstance(error, ssl.SSLCertVerificationError):
        return TLSError(
            f"the certificate of {endpoint} is not trusted: {error.verify_message}",
            hint="pass ssl_context=ssl.create_default_context(cafile=...) for an own authority",
        )
    reason = (error.reason or str(error)).replace("_", " ").lower()
    # An alert is TLS: the server's own word why it refuses, such as a missing certificate of ours.
    hint = "" if "alert" in reason else "is it a plain port? Then the URL is ws://"
    return TLSError(f"no TLS with {endpoint}: {reason}", hint=hint)
