"""The way through a proxy: HTTP CONNECT by the handshake's own bounded reader, SOCKS by an extra.

A server on loopback is never asked for through a proxy, and the environment is read only when the
caller said `proxy="env"`.
"""

from __future__ import annotations

import base64
import functools
import socket
import urllib.request

from ._deadline import Deadline
from ._handshake import read_head, send_all
from ._net import Opener, Waker, call, connect_tcp, tune
from .config import Endpoint, Proxy, Settings, parse_proxy
from .errors import (
    ConfigurationError,
    ConnectTimeoutError,
    HandshakeError,
    MissingExtraError,
    NotConnectedError,
    ProxyError,
)

__all__ = ["opener"]


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
    if endpoint.is_loopback:
        return None
    if isinstance(settings.proxy, Proxy):
        return settings.proxy
    if urllib.request.proxy_bypass(endpoint.authority):
        return None
    proxies = urllib.request.getproxies_environment()
    url = proxies.get("https" if endpoint.secure else "http") or proxies.get("all")
    if not url:
        return None
    try:
        found = parse_proxy(url if "://" in url else f"http://{url}")
    except ConfigurationError as error:
        raise ProxyError(f"in the environment: {error}") from None
    return found if isinstance(found, Proxy) else None


def _http(proxy: Proxy, endpoint: Endpoint, deadline: Deadline, waker: Waker) -> socket.socket:
    try:
        sock = connect_tcp(proxy.host, proxy.port, deadline, waker)
    except NotConnectedError:
        raise
    except TimeoutError as error:
        if error.errno is not None:
            raise ProxyError(f"cannot connect to the {proxy}: {error.strerror}") from error
        raise ConnectTimeoutError(f"no connection to the {proxy} in time: {error}") from None
    except OSError as error:
        raise ProxyError(f"cannot connect to the {proxy}: {error.strerror or error}") from error
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
    except HandshakeError as error:
        raise ProxyError(f"the {proxy} gave no answer to use: {error.args[0]}") from None
    except TimeoutError:
        raise ConnectTimeoutError(f"the {proxy} did not answer in time") from None
    except NotConnectedError:
        raise
    except OSError as error:
        why = error.strerror or type(error).__name__
        raise ProxyError(f"the {proxy} broke the connection: {why}") from error
    if head.status != 200 or head.rest:  # noqa: PLR2004 - what any proxy says
        hint = "put user:password@ into proxy=" if head.status == 407 else ""  # noqa: PLR2004
        raise ProxyError(f"the {proxy} refused: {head.status}", hint=hint)


def _socks(proxy: Proxy, endpoint: Endpoint, deadline: Deadline, waker: Waker) -> socket.socket:
    try:
        import python_socks  # noqa: PLC0415 - an extra
        from python_socks.sync import Proxy as Socks  # noqa: PLC0415
    except ImportError as error:
        raise MissingExtraError(
            "a SOCKS proxy needs python-socks: pip install 'fluxbase-aichat[socks]'"
        ) from error
    kind = python_socks.ProxyType.SOCKS4 if "4" in proxy.scheme else python_socks.ProxyType.SOCKS5
    socks = Socks.create(
        proxy_type=kind,
        host=proxy.host,
        port=proxy.port,
        username=proxy.user or None,
        password=proxy.password or None,
        # socks5h and socks4a leave the look-up of the name to the proxy.
        rdns=proxy.scheme in {"socks5h", "socks4a"},
    )
    try:
        # It waits with a timeout of its own and cannot be woken: it gets a thread to wait in.
        sock: socket.socket = call(
            lambda: socks.connect(endpoint.host, endpoint.port, timeout=deadline.remaining()),
            deadline,
            waker,
            "socks",
        )
    except (TimeoutError, python_socks.ProxyTimeoutError):
        raise ConnectTimeoutError(f"the {proxy} did not answer in time") from None
    except (python_socks.ProxyError, python_socks.ProxyConnectionError) as error:
        raise ProxyError(f"the {proxy} refused: {error}") from None
    tune(sock)
    return sock
