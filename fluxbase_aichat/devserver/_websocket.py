"""The server's end of one websocket: texts in, texts out. The only user of wsproto.

It reads the socket only when it is asked for the next text, so that nothing is answered in a turn,
not even a ping. It must not know what the texts say.
"""

from __future__ import annotations

import contextlib
import io
import socket
from collections.abc import Iterator

from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Ping, TextMessage
from wsproto.utilities import LocalProtocolError, generate_accept_token

from ._faults import Faults

__all__ = ["Peer", "accept_token", "write"]


def accept_token(key: str) -> str:
    """Return the `Sec-WebSocket-Accept` for a client's key."""
    return generate_accept_token(key.encode("latin-1")).decode()


def write(sock: socket.socket, data: bytes, faults: Faults) -> None:
    """Send `data`, byte by byte if the fault `dribble` is on."""
    if faults.dribble and faults.strikes("dribble"):
        for position in range(len(data)):
            sock.sendall(data[position : position + 1])
    else:
        sock.sendall(data)


class Peer:
    """A client behind an upgraded socket. Used by one thread; `drop` is for any."""

    def __init__(self, sock: socket.socket, stream: io.BufferedIOBase, faults: Faults) -> None:
        self._sock = sock
        self._stream = stream
        self._faults = faults
        self._connection = Connection(ConnectionType.SERVER)
        self._gone = False

    def texts(self) -> Iterator[str]:
        """Yield each message, a binary one as text too, until the stream ends."""
        text: list[str] = []
        data: list[bytes] = []
        while True:
            for event in self._connection.events():
                if isinstance(event, TextMessage):
                    text.append(event.data)
                elif isinstance(event, BytesMessage):
                    data.append(bytes(event.data))
                elif isinstance(event, Ping):
                    self._write(self._connection.send(event.response()))
                elif isinstance(event, CloseConnection):
                    self._answer_close(event)
                    return
                if isinstance(event, (TextMessage, BytesMessage)) and event.message_finished:
                    yield "".join(text) or b"".join(data).decode(errors="replace")
                    text, data = [], []
            received = self._read()
            if not received:
                return
            self._connection.receive_data(received)

    def send(self, text: str) -> None:
        """Send a frame; when the client has gone this does nothing."""
        if not self._gone:
            self._write(self._connection.send(TextMessage(text)))

    def drop(self) -> None:
        """Cut the TCP connection, without a close frame."""
        self._gone = True
        with contextlib.suppress(OSError):  # it was gone already
            self._sock.shutdown(socket.SHUT_RDWR)

    def _answer_close(self, event: CloseConnection) -> None:
        if self._connection.state not in (ConnectionState.OPEN, ConnectionState.REMOTE_CLOSING):
            return
        with contextlib.suppress(LocalProtocolError):  # a code that may not be sent
            self._write(self._connection.send(CloseConnection(event.code)))

    def _read(self) -> bytes:
        try:
            return self._stream.read1(256 * 1024)
        except (OSError, ValueError):
            return b""

    def _write(self, data: bytes) -> None:
        if self._gone:
            return
        try:
            write(self._sock, data, self._faults)
        except OSError:
            self._gone = True
