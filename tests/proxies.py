"""Proxies on loopback, as scripts for a `RawServer`: HTTP CONNECT, SOCKS 5, SOCKS 4 and 4a.

    tunnel = Tunnel(server.port)
    with RawServer(tunnel.http) as proxy:
        FluxbaseAIChat("ws://chat.example", proxy=f"http://127.0.0.1:{proxy.port}")

Whatever host a client asks for, it gets the server at that port, so names need not exist.
"""

from __future__ import annotations

import contextlib
import ipaddress
import selectors
import socket
import struct

from servers import WAIT, Gone, Peer

__all__ = ["Tunnel"]


class Tunnel:
    """A way to one server; it remembers what it was asked for."""

    def __init__(self, port: int = 0, *, user: str = "", password: str = "") -> None:
        self._port = port
        self._user = user
        self._password = password
        self.targets: list[tuple[str, int]] = []
        """The hosts and ports asked for."""
        self.requests: list[str] = []
        """The heads of the CONNECT requests."""
        self.passed = b""
        """What clients have sent through."""

    # -- the three protocols ----------------------------------------------------------------

    def http(self, peer: Peer) -> None:
        """Serve one client with HTTP CONNECT."""
        self.answer_http(peer, b"HTTP/1.1 200 Connection established\r\nVia: 1.1 test\r\n\r\n")

    def answer_http(self, peer: Peer, reply: bytes) -> None:
        """Serve one client, with this answer to its CONNECT."""
        self.requests.append(peer.read_request())
        method, target, _ = peer.request.splitlines()[0].split(" ")
        assert "CONNECT" == method
        assert peer.headers["host"] == target
        host, _, port = target.rpartition(":")
        self._through(peer, host, int(port), reply)

    def socks5(self, peer: Peer) -> None:
        """Serve one client with SOCKS 5 (RFC 1928), with a password if there is one (RFC 1929)."""
        version, count = peer.read_exactly(2)
        assert 5 == version
        methods = peer.read_exactly(count)
        wanted = 2 if self._user else 0
        if wanted not in methods:
            peer.send_raw(b"\x05\xff")
            return
        peer.send_raw(bytes([5, wanted]))
        if wanted:
            assert 1 == peer.read_exactly(1)[0]
            user, password = (peer.read_exactly(peer.read_exactly(1)[0]) for _ in range(2))
            right = (user.decode(), password.decode()) == (self._user, self._password)
            peer.send_raw(b"\x01\x00" if right else b"\x01\x01")
            if not right:
                return
        assert b"\x05\x01\x00" == peer.read_exactly(3)
        kind = peer.read_exactly(1)[0]
        if kind == 3:
            host = peer.read_exactly(peer.read_exactly(1)[0]).decode()
        else:
            host = str(ipaddress.ip_address(peer.read_exactly({1: 4, 4: 16}[kind])))
        (port,) = struct.unpack("!H", peer.read_exactly(2))
        self._through(peer, host, port, b"\x05\x00\x00\x01\x7f\x00\x00\x01\x00\x00")

    def socks4(self, peer: Peer) -> None:
        """Serve one client with SOCKS 4, or 4a when it sends a name."""
        assert b"\x04\x01" == peer.read_exactly(2)
        port, address = struct.unpack("!H4s", peer.read_exactly(6))
        user = self._until_zero(peer)
        if user != self._user:
            peer.send_raw(b"\x00\x5d" + bytes(6))
            return
        named = address.startswith(b"\0\0\0")
        host = self._until_zero(peer) if named else str(ipaddress.ip_address(address))
        self._through(peer, host, port, b"\x00\x5a" + bytes(6))

    @staticmethod
    def _until_zero(peer: Peer) -> str:
        data = b""
        while (byte := peer.read_exactly(1)) != b"\0":
            data += byte
        return data.decode()

    # -- the tunnel -------------------------------------------------------------------------

    def _through(self, peer: Peer, host: str, port: int, reply: bytes) -> None:
        self.targets.append((host, port))
        with (
            socket.create_connection(("127.0.0.1", self._port), WAIT) as there,
            selectors.DefaultSelector() as selector,
            contextlib.suppress(OSError, Gone),
        ):
            here = peer.socket
            selector.register(here, selectors.EVENT_READ)
            selector.register(there, selectors.EVENT_READ)
            peer.send_raw(reply)
            while True:
                for key, _ in selector.select():
                    data = (here if key.fileobj is here else there).recv(65536)
                    if not data:
                        return
                    if key.fileobj is here:
                        self.passed += data
                        there.sendall(data)
                    else:
                        here.sendall(data)
