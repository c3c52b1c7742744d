"""A WebSocket server on a raw socket that does exactly what a test scripts, and a gate to wait at.

    def script(peer):
        peer.accept()
        peer.start("c-1")
        peer.recv_json()
        peer.send_text({"type": "done", "conversation_id": "c-1"})
        peer.until_closed()

    with RawServer(script) as server, FluxbaseAIChat(server.url) as chat:
        ...

An exception in a script surfaces when the `with` block is left; that its client has gone is none.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Final, Self

__all__ = [
    "BINARY",
    "CLOSE",
    "CONTINUATION",
    "PING",
    "PONG",
    "TEXT",
    "WAIT",
    "Gate",
    "Gone",
    "Peer",
    "RawServer",
    "accept_token",
    "content",
    "done",
    "error",
    "frame",
    "refusing_port",
    "text",
]

WAIT: Final = 5.0
"""Seconds that anything may take that is going to happen."""

SILENCE: Final = 20.0
"""Seconds after which a client that neither speaks nor reads has failed its test."""

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA

Script = Callable[["Peer"], object]


class Gate:
    """One thread waits at it until another opens it; waiting in vain fails the test."""

    def __init__(self, name: str = "gate") -> None:
        self._name = name
        self._event = threading.Event()

    def open(self, *_: object) -> None:
        """Let everybody pass, from now on. Takes anything, so that it serves as a callback."""
        self._event.set()

    @property
    def is_open(self) -> bool:
        """Whether it was opened."""
        return self._event.is_set()

    def wait(self, seconds: float = WAIT) -> None:
        """Wait until it is open."""
        assert self._event.wait(seconds), f"nobody opened the {self._name} within {seconds:g} s"


class Gone(Exception):  # noqa: N818 - it is how a script ends, not an error
    """The client, or the server as a whole, has closed the connection."""


def accept_token(key: str) -> str:
    """Return the `Sec-WebSocket-Accept` that belongs to a key (RFC 6455, 4.2.2)."""
    digest = hashlib.sha1((key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").encode())  # noqa: S324
    return base64.b64encode(digest.digest()).decode()


def frame(
    opcode: int, payload: bytes = b"", *, fin: bool = True, rsv: int = 0, length: int | None = None
) -> bytes:
    """Return the bytes of an unmasked frame; `length` is what the head says, if not the truth."""
    size = len(payload) if length is None else length
    head = bytes([(fin << 7) | (rsv << 4) | opcode])
    if size < 126:
        return head + bytes([size]) + payload
    if size < 1 << 16:
        return head + b"\x7e" + struct.pack("!H", size) + payload
    return head + b"\x7f" + struct.pack("!Q", size) + payload


def text(message: object) -> bytes:
    """Return the frame of a message: JSON, or a `str` or `bytes` as it is."""
    if isinstance(message, str):
        message = message.encode()
    elif not isinstance(message, bytes):
        message = json.dumps(message).encode()
    return frame(TEXT, message)


def content(conversation_id: str, delta: str) -> dict[str, Any]:
    """Return a delta as the server sends it."""
    return {"type": "content", "conversation_id": conversation_id, "delta": delta}


def done(conversation_id: str, usage: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the end of a turn as the server sends it."""
    message: dict[str, Any] = {"type": "done", "conversation_id": conversation_id}
    return message if usage is None else {**message, "usage": usage}


def error(message: str, code: str = "", conversation_id: str = "") -> dict[str, Any]:
    """Return an error as the server sends it, without the fields that are empty."""
    fields = {"type": "error", "conversation_id": conversation_id, "error": message, "code": code}
    return {name: value for name, value in fields.items() if value}


class Peer:
    """The server's end of one connection, for the thread that runs its script."""

    def __init__(self, server: RawServer, sock: socket.socket, number: int) -> None:
        self._server = server
        self._sock = sock
        self._buffer = b""
        self._pings = 0
        self.polite = True
        """Whether a close frame is answered with one."""
        self.number = number
        """The how-manieth connection it is, from 1."""
        self.request = ""
        """The head of the opening request."""
        self.accepted = False
        """Whether the protocol was switched."""
        self.received: list[Any] = []
        """The client's messages so far, parsed."""
        self.control: list[tuple[int, bytes]] = []
        """The client's control frames so far: opcode and payload."""

    # -- the handshake ----------------------------------------------------------------------

    def read_request(self) -> str:
        """Read the head of the opening request and return it."""
        while b"\r\n\r\n" not in self._buffer:
            self._fill()
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        self.request = head.decode("latin-1")
        return self.request

    @property
    def headers(self) -> dict[str, str]:
        """The fields of the request, their names in lower case."""
        lines = [line.partition(":") for line in self.request.split("\r\n")[1:]]
        return {name.strip().lower(): value.strip() for name, _, value in lines}

    def accept(
        self,
        *,
        token: str | None = "",
        headers: dict[str, str] | None = None,
        status: str = "101 Switching Protocols",
        then: bytes = b"",
    ) -> str:
        """Read the request if that was not done, and switch protocols. Return the request.

        `token` replaces the right `Sec-WebSocket-Accept` (`None` leaves it out), `headers` come in
        addition, and `then` goes out behind the head in the same write.
        """
        if not self.request:
            self.read_request()
        fields = {"Upgrade": "websocket", "Connection": "Upgrade"}
        if token is not None:
            fields["Sec-WebSocket-Accept"] = token or accept_token(
                self.headers["sec-websocket-key"]
            )
        fields |= headers or {}
        lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in fields.items())]
        self.accepted = True
        self.send_raw("\r\n".join([*lines, "", ""]).encode("latin-1") + then)
        return self.request

    def refuse(self, status: str, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        """Read the request and answer it with another status than 101."""
        if not self.request:
            self.read_request()
        fields = {"Content-Length": str(len(body)), **(headers or {})}
        lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in fields.items())]
        self.send_raw("\r\n".join([*lines, "", ""]).encode("latin-1") + body)

    # -- out --------------------------------------------------------------------------------

    def send_raw(self, data: bytes) -> None:
        """Write these bytes."""
        try:
            self._sock.sendall(data)
        except OSError as gone:
            raise Gone from gone

    def send_text(self, *messages: object) -> None:
        """Write messages, JSON or as they are, each a frame and all in one write."""
        self.send_raw(b"".join(map(text, messages)))

    def send_frame(self, opcode: int, payload: bytes = b"", *, fin: bool = True) -> None:
        """Write one frame."""
        self.send_raw(frame(opcode, payload, fin=fin))

    def close_frame(self, code: int | None = 1000, reason: bytes = b"") -> None:
        """Write a close frame; without a code it is empty."""
        self.send_frame(CLOSE, b"" if code is None else struct.pack("!H", code) + reason)

    # -- in ---------------------------------------------------------------------------------

    def recv_frame(self) -> tuple[int, bytes]:
        """Read one frame of the client and unmask it; raise `Gone` at the end of the stream.

        A close frame is answered, and the end as well, unless `polite` is switched off.
        """
        opcode, payload = self._read_frame()
        if opcode == CLOSE and self.polite:
            self.control.append((opcode, payload))
            with contextlib.suppress(Gone):
                self.send_frame(CLOSE, payload[:2])
            raise Gone
        return opcode, payload

    def _read_frame(self) -> tuple[int, bytes]:
        first, second = self._exactly(2)
        size = second & 0x7F
        if size == 126:
            (size,) = struct.unpack("!H", self._exactly(2))
        elif size == 127:
            (size,) = struct.unpack("!Q", self._exactly(8))
        assert second & 0x80, "a client's frame is not masked"
        assert first & 0xF0 == 0x80, "a client's frame is a fragment or has reserved bits"
        mask = self._exactly(4)
        masked = self._exactly(size)
        key = int.from_bytes((mask * (size // 4 + 1))[:size])
        return first & 0x0F, (int.from_bytes(masked) ^ key).to_bytes(size)

    def recv_json(self) -> Any:
        """Read the client's next message and return it; control frames are put aside."""
        while True:
            opcode, payload = self.recv_frame()
            if opcode == TEXT:
                message = json.loads(payload)
                self.received.append(message)
                self._server._note(self.number, message)
                return message
            self.control.append((opcode, payload))

    def recv_control(self) -> tuple[int, bytes]:
        """Read the client's next control frame and return it; messages are put aside."""
        while True:
            opcode, payload = self.recv_frame()
            if opcode != TEXT:
                self.control.append((opcode, payload))
                return opcode, payload
            self.received.append(json.loads(payload))
            self._server._note(self.number, self.received[-1])

    def until_closed(self) -> list[Any]:
        """Read until the client closes the connection; return its messages."""
        with contextlib.suppress(Gone):
            while True:
                self.recv_json()
        return self.received

    def settle(self) -> list[Any]:
        """Return what the client had to say by now: messages that come before its next pong.

        The client writes in order, so what it had registered before it read our ping comes first.
        """
        before = len(self.received)
        self._pings += 1
        self.send_frame(PING, b"settle %d" % self._pings)
        while self.recv_control() != (PONG, b"settle %d" % self._pings):
            pass
        return self.received[before:]

    @property
    def close_code(self) -> int | None:
        """The code of the client's close frame: 1005 without one in it, `None` without a frame."""
        for opcode, payload in self.control:
            if opcode == CLOSE:
                return int.from_bytes(payload[:2]) if payload else 1005
        return None

    # -- the chat's own words ---------------------------------------------------------------

    def start(self, conversation_id: str) -> dict[str, Any]:
        """Read a `start_chat` and answer it with this id. Return what was read."""
        request = self.recv_json()
        assert request["type"] == "start_chat", f"a start_chat was expected, not {request}"
        self.send_text(
            {
                "type": "chat_started",
                "conversation_id": conversation_id,
                "chatbot": request["chatbot"],
            }
        )
        return dict(request)

    def message(self) -> dict[str, Any]:
        """Read a `message` and return it."""
        request = self.recv_json()
        assert request["type"] == "message", f"a message was expected, not {request}"
        return dict(request)

    def answer(self, *deltas: str, usage: dict[str, Any] | None = None) -> dict[str, Any]:
        """Read a `message` and answer it with these deltas. Return what was read."""
        request = self.message()
        cid = request["conversation_id"]
        self.send_text(*(content(cid, delta) for delta in deltas), done(cid, usage))
        return request

    def serve(self, conversation_id: str = "c-1", *, reply: str = "You said: {}") -> None:
        """Accept, then answer every start and message until the client closes the connection.

        A start without an id gets `conversation_id`, with a number behind it from the second on.
        """
        if not self.accepted:
            self.accept()
        started = 0
        with contextlib.suppress(Gone):
            while True:
                request = self.recv_json()
                if request["type"] == "start_chat":
                    new = conversation_id + (f"-{started + 1}" if started else "")
                    started += "conversation_id" not in request
                    self.send_text(
                        {
                            "type": "chat_started",
                            "conversation_id": request.get("conversation_id", new),
                            "chatbot": request["chatbot"],
                        }
                    )
                elif request["type"] == "message":
                    cid = request["conversation_id"]
                    self.send_text(content(cid, reply.format(request["content"])), done(cid))
                else:
                    self.send_text({"type": "cancelled", "conversation_id": "c-1"})
                    return

    # -- the end ----------------------------------------------------------------------------

    def cut(self) -> None:
        """End the stream without a close frame, as a killed server does."""
        self._sock.close()

    def finish(self) -> None:
        """End our side of the stream only; the client can still be heard."""
        self._sock.shutdown(socket.SHUT_WR)

    def rst(self) -> None:
        """Reset the connection."""
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._sock.close()

    def read_exactly(self, size: int) -> bytes:
        """Read that many raw bytes."""
        return self._exactly(size)

    @property
    def socket(self) -> socket.socket:
        """The socket, for what has no method here."""
        return self._sock

    def _fill(self) -> None:
        try:
            data = self._sock.recv(65536)
        except TimeoutError:
            raise AssertionError(f"the client said nothing for {SILENCE:g} s") from None
        except OSError as gone:
            raise Gone from gone
        if not data:
            raise Gone
        self._buffer += data

    def _exactly(self, size: int) -> bytes:
        if len(self._buffer) < size:
            parts, have = [self._buffer], len(self._buffer)
            while have < size:
                self._buffer = b""
                self._fill()
                parts.append(self._buffer)
                have += len(self._buffer)
            self._buffer = b"".join(parts)
        data, self._buffer = self._buffer[:size], self._buffer[size:]
        return data


class RawServer:
    """Listens on a free port of loopback and runs a script per connection, each in a thread.

    One script serves every connection; of several, each serves one, in order.
    """

    def __init__(self, *scripts: Script, context: ssl.SSLContext | None = None) -> None:
        self._scripts = scripts
        self._context = context
        self._changed = threading.Condition()  # guards all below
        self._peers: list[Peer] = []
        self._threads: list[threading.Thread] = []
        self._received: list[tuple[int, Any]] = []
        self._failures: list[BaseException] = []
        self._stopping = False
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._acceptor = threading.Thread(target=self._accept, name="raw-accept", daemon=True)

    @property
    def url(self) -> str:
        """Where its chat is."""
        return f"{'wss' if self._context else 'ws'}://127.0.0.1:{self.port}/ai/ws"

    @property
    def connections(self) -> int:
        """How many connections there were so far."""
        with self._changed:
            return len(self._peers)

    @property
    def received(self) -> list[tuple[int, Any]]:
        """Every message of the clients so far, with its connection's number."""
        with self._changed:
            return self._received.copy()

    def peer(self, number: int = 1) -> Peer:
        """Wait for a connection and return it, the first being 1."""
        self.wait_for(lambda: len(self._peers) >= number, f"connection {number}")
        return self._peers[number - 1]

    def wait_for(self, predicate: Callable[[], bool], what: str = "it") -> None:
        """Wait until `predicate()` holds, asking again after every connection and message."""
        with self._changed:
            assert self._changed.wait_for(predicate, WAIT), f"{what} did not come"

    def join(self, number: int = 1) -> None:
        """Wait until the script of a connection has ended."""
        self.peer(number)
        thread = self._threads[number - 1]
        thread.join(WAIT)
        assert not thread.is_alive(), f"the script of connection {number} has not ended"

    def __enter__(self) -> Self:
        self._acceptor.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        raised: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._changed:
            self._stopping = True
            peers = self._peers.copy()
        # A shutdown ends the accept() that is on; a close alone does not.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._acceptor.join(WAIT)
        self._listener.close()
        for peer in peers:
            with contextlib.suppress(OSError):
                peer.socket.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(WAIT)
            assert not thread.is_alive(), "a script has not ended"
        for failure in self._failures:
            if raised is None or isinstance(raised, Exception):
                # The script's failure is why the test failed too.
                raise failure from raised

    def _note(self, number: int, message: Any) -> None:
        with self._changed:
            self._received.append((number, message))
            self._changed.notify_all()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.settimeout(SILENCE)
            with self._changed:
                if self._stopping:
                    sock.close()
                    return
                peer = Peer(self, sock, len(self._peers) + 1)
                thread = threading.Thread(
                    target=self._run, args=(peer,), name=f"raw-{peer.number}", daemon=True
                )
                self._peers.append(peer)
                self._threads.append(thread)
                thread.start()
                self._changed.notify_all()

    def _run(self, peer: Peer) -> None:
        try:
            with contextlib.suppress(Gone):
                if self._context is not None:
                    peer._sock = self._tls(peer._sock)
                self._script(peer.number)(peer)
        except BaseException as failure:  # noqa: BLE001 - it surfaces in the test
            self._failures.append(failure)
        finally:
            peer._sock.close()
            with self._changed:
                self._changed.notify_all()

    def _tls(self, sock: socket.socket) -> socket.socket:
        assert self._context is not None
        try:
            return self._context.wrap_socket(sock, server_side=True)
        except (ssl.SSLError, OSError) as gone:
            sock.close()
            raise Gone from gone

    def _script(self, number: int) -> Script:
        if len(self._scripts) == 1:
            return self._scripts[0]
        assert number <= len(self._scripts), f"connection {number} was not expected"
        return self._scripts[number - 1]


@contextlib.contextmanager
def refusing_port() -> Iterator[int]:
    """Hold a port of loopback that nobody listens on, and nobody else can take meanwhile."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]
