"""The way through a proxy: HTTP CONNECT by the handshake's own bounded reader, SOCKS by an extra.

A server on loopback is never asked for through a proxy, and the environment is read only when the
caller said `proxy="env"`. Nothing that a proxy says is quoted: it may echo its password.
"""

from __future__ import annotations

import base64
import functools
import socket
import threading
import urllib.request

from ._deadline import Deadline
from ._handshake import read_head, send_all
from ._net import Opener, Waker, call, connect_tcp, tune
from .config import Endpoint, Proxy, Settings, parse_proxy
from .errors import (
    ConfigurationError,
    ConnectError,
    ConnectTimeoutError,
    HandshakeError,
    MissingExtraError,
    NotConnectedError,
    ProxyError,
)

__all__ = ["opener"]

# SOCKS 5 has one byte for the length of a name, and one for that of a password.
_SECRET = 255


def opener(settings: Settings) -> Opener | None:
    """Return what opens the way to the settings' server; `None` where that is direct.

    It raises `ProxyError`, `ConnectTimeoutError`, `NotConnectedError`, `MissingExtraError`.
    """
    proxy = _choose(settings)
    if proxy is None:
        return None
    connect = _http if proxy.scheme == "http" else _socks
    return functools.partial(connect, proxy, settings.endpoint)


def _choose(settings: Settings) -> Proxy | None:
    endpoint = settings.endpoint
    if settings.proxy is None or endpoint.is_loopback:
        return None
    if isinstance(settings.proxy, Proxy):
        return settings.proxy
    proxies = urllib.request.getproxies_environment()
    url = proxies.get("https" if endpoint.secure else "http") or proxies.get("all")
    # With a variable set it looks at no_proxy alone, on every system.
    if not url or urllib.request.proxy_bypass(f"{endpoint.host}:{endpoint.port}"):
        return None
    try:
        found = parse_proxy(url if "://" in url else f"http://{url}")
    except ConfigurationError as error:
        raise ProxyError(f"in the environment: {error}", retryable=False) from None
    return found if isinstance(found, Proxy) else None


def _http(proxy: Proxy, endpoint: Endpoint, deadline: Deadline, waker: Waker) -> socket.socket:
    try:
        sock = connect_tcp(proxy.host, proxy.port, deadline, waker)
    except NotConnectedError:
        raise
    except (OSError, ValueError) as error:  # a ValueError is idna's, of a name that is none
        if isinstance(error, TimeoutError) and error.errno is None:
            raise ConnectTimeoutError(f"no connection to the {proxy} in time: {error}") from None
        why = getattr(error, "strerror", None) or error
        raise ProxyError(f"cannot connect to the {proxy}: {why}") from error
    try:
        _tunnel(sock, proxy, endpoint, deadline, waker)
    except BaseException:
        sock.close()
        raise
    return sock


def _tunnel(
    sock: socket.socket, proxy: Proxy, endpoint: Endpoint, deadline: Deadline, waker: Waker
) -> None:
    host = f"[{endpoint.host}]" if ":" in endpoint.host else endpoint.host
    target = f"{host}:{endpoint.port}"
    lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}"]
    if proxy.user:
        secret = base64.b64encode(f"{proxy.user}:{proxy.password}".encode()).decode()
        lines.append(f"Proxy-Authorization: Basic {secret}")
    try:
        send_all(sock, "\r\n".join([*lines, "", ""]).encode(), deadline, waker)
        head = read_head(sock, deadline, waker)
    except NotConnectedError:
        raise
    except HandshakeError as error:
        raise ProxyError(f"the {proxy} gave no answer to use: {error.args[0]}") from None
    except OSError as error:
        if isinstance(error, TimeoutError) and error.errno is None:
            raise ConnectTimeoutError(f"the {proxy} did not answer in time") from None
        why = error.strerror or type(error).__name__
        raise ProxyError(f"the {proxy} broke the connection: {why}") from error
    if head.status == 407:  # noqa: PLR2004 - HTTP's numbers are their own names
        said = "are its user and password right?" if proxy.user else "put user:password@ into proxy"
        raise ProxyError(
            f"the {proxy} wants to know who is asking: 407",
            hint=f"{said} (Basic is all that is spoken here)",
            retryable=False,
        )
    if not 200 <= head.status < 300:  # noqa: PLR2004 - any of them is a tunnel (RFC 9110, 9.3.6)
        raise ProxyError(f"the {proxy} refused to connect to {endpoint.host}: {head.status}")
    if head.rest:
        # In the tunnel the client speaks first: these bytes are not the server's.
        raise ProxyError(f"the {proxy} gave no answer to use: there is more behind its head")


def _socks(proxy: Proxy, endpoint: Endpoint, deadline: Deadline, waker: Waker) -> socket.socket:
    try:
        import python_socks  # noqa: PLC0415 - an extra
        from python_socks.sync import Proxy as Socks  # noqa: PLC0415
    except ImportError as error:
        raise MissingExtraError(
            "a SOCKS proxy needs python-socks: pip install 'fluxbase-aichat[socks]'"
        ) from error
    if any(not part.isascii() or len(part) > _SECRET for part in (proxy.user, proxy.password)):
        raise ProxyError(
            f"the {proxy}: SOCKS carries no such user or password (ASCII, 255 characters)",
            retryable=False,
        )
    socks = Socks(
        proxy_type=getattr(python_socks.ProxyType, "SOCKS4" if "4" in proxy.scheme else "SOCKS5"),
        host=proxy.host,
        port=proxy.port,
        username=proxy.user or None,
        password=proxy.password or None,
        # socks5h and socks4a leave the look-up of the name to the proxy.
        rdns=proxy.scheme in {"socks5h", "socks4a"},
    )
    left_behind = threading.Event()
    opened: list[socket.socket] = []

    def connect() -> socket.socket:
        sock: socket.socket = socks.connect(
            endpoint.host, endpoint.port, timeout=deadline.remaining()
        )
        opened.append(sock)
        if left_behind.is_set():
            sock.close()
        return sock

    try:
        # It waits with a timeout of its own and cannot be woken: it gets a thread to wait in.
        sock = call(connect, deadline, waker, "socks")
        tune(sock)
    except BaseException as error:
        # Set before looking: of this thread and that one, the later closes the socket.
        left_behind.set()
        for late in opened:
            late.close()
        if isinstance(error, (NotConnectedError, socket.gaierror)):
            raise
        if isinstance(error, (OSError, ValueError, python_socks.ProxyError)):
            failure, cause = _socks_failure(proxy, error)
            raise failure from cause
        raise
    return sock


def _socks_failure(proxy: Proxy, error: Exception) -> tuple[ConnectError, BaseException | None]:
    """Return what to raise for an error of python-socks, and its cause."""
    # Its own timeouts have no errno; what the system calls one has.
    cause = error.__cause__ if error.__cause__ is not None else error
    if isinstance(cause, TimeoutError) and cause.errno is None:
        return ConnectTimeoutError(f"the {proxy} did not answer in time"), None
    if isinstance(cause, OSError):
        why = cause.strerror or type(cause).__name__
        return ProxyError(f"no connection through the {proxy}: {why}"), cause
    # Its texts are its own, for codes of the protocol: they quote nothing but numbers.
    why = str(error) if type(error).__module__.startswith("python_socks") else "it makes no sense"
    return ProxyError(f"the {proxy} gave no answer to use: {why}"), None
