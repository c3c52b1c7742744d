"""One WebSocket over one socket, for one thread: payloads in batches in, frames out.

The only user of websocket-client, which does the handshake, masking, control frames, fragments
and every check. It is given a guarded socket instead of a real one: reading it never waits,
writing to it fills a buffer, and what it may be fed is bounded. Complete text frames, which are
nearly all there are, are cut out of the buffer before it sees them: it needs ten calls a frame.

    socket ── recv 256 KiB ──> buffer ── whole text frames ───────────────> payloads
                                 └────── anything else ──> websocket-client ──┘
    frames ──> websocket-client (masking) ──> buffer ── send ──> socket
"""

from __future__ import annotations

import selectors
import socket
import ssl
import time
from collections import deque
from typing import Any, Final

import websocket
from websocket import ABNF, continuous_frame, frame_buffer

from . import _handshake
from ._deadline import Clock, Deadline
from ._net import Waker, bounded, open_socket, tls_error
from .config import Settings
from .errors import (
    ConnectionLostError,
    ConnectTimeoutError,
    FluxbaseChatError,
    HandshakeError,
    RemoteProtocolError,
)

__all__ = ["Transport", "dial"]

# 256 KiB is about 2,700 deltas a read; 16 KiB costs a fifth of the speed, and more gives nothing.
_READ_BYTES = 256 * 1024
# So many messages at once, and yet not half a buffer full: a fast server writes them one by one.
# A read of a few, and the wake-up that the server's next write pays for, cost more than they do:
# waiting for more doubles the speed (benchmarks/RESULTS.md), and nobody sees it.
_FEW_MESSAGES = 8
_GATHER_SECONDS = 0.003
# The websockets library takes as many; each costs memory however small it is.
_MAX_FRAGMENTS = 4096
# A peer that takes no byte for so long is gone, or does not mean to read.
_WRITE_STALL_SECONDS = 10.0

_TEXT_FIN: Final = 0x81  # a whole text message in one frame
_LENGTH_16: Final = 126  # the length follows in 16 bits; 127: in 64
_MASKED: Final = 0x80


class _TooBigError(Exception):
    """A message is beyond its limit. Never leaves this module."""


class _Fragments(continuous_frame):
    """websocket-client's fragments, joined once and not with `+=`, and bounded."""

    def __init__(self, limit: int) -> None:
        # UTF-8 is checked where it is decoded: the library's own check is 200 times slower.
        super().__init__(fire_cont_frame=False, skip_utf8_validation=True)
        self._limit = limit
        self._size = 0

    def add(self, frame: ABNF) -> None:
        if self.cont_data is None:
            self.recving_frames = frame.opcode
            self.cont_data = [frame.opcode, []]
            self._size = 0
        parts = self.cont_data[1]
        parts.append(frame.data)
        self._size += len(frame.data)
        if self._size > self._limit:
            raise _TooBigError(f"a message is larger than {self._limit:,} bytes")
        if len(parts) > _MAX_FRAGMENTS:
            raise _TooBigError(f"a message has more than {_MAX_FRAGMENTS:,} fragments")
        if frame.fin:
            self.recving_frames = None

    def extract(self, frame: ABNF) -> tuple[int, ABNF]:
        assert self.cont_data is not None  # noqa: S101 - a frame was added before
        opcode, parts = self.cont_data
        self.cont_data = None
        frame.data = b"".join(parts)
        return opcode, frame


class _WebSocket(websocket.WebSocket):
    """websocket-client's connection with our limits, used by one thread."""

    def __init__(self, limit: int) -> None:
        super().__init__(enable_multithread=False)
        # UTF-8 is checked of the reason of a close frame.
        self.frame_buffer = frame_buffer(self._recv, skip_utf8_validation=False)
        self.cont_frame = _Fragments(limit)
        self.close_sent = False
        self.pong_due: bytes | None = None

    @property
    def between_messages(self) -> bool:
        """Whether the library holds no fragment of a message."""
        return self.cont_frame.cont_data is None

    def pong(self, payload: Any = b"") -> None:
        # RFC 6455, 5.5.3: answering the latest ping is enough, so a flood of them costs nothing.
        self.pong_due = payload

    def send_close(self, status: int = 1000, reason: Any = b"") -> None:
        if not self.close_sent:
            self.close_sent = True
            super().send_close(status, reason)


class _GuardedSocket:
    """What websocket-client takes for its socket.

    While `opening`, it writes and reads through our deadline and hands the head of the answer
    on after it was checked. Later it reads from the buffer and writes to one, and never waits.
    """

    _closed = False  # websocket-client looks at this name of the standard library's sockets

    def __init__(
        self,
        sock: socket.socket,
        settings: Settings,
        token: str | None,
        deadline: Deadline,
        waker: Waker,
    ) -> None:
        self._sock = sock
        self._settings = settings
        self._token = token
        self._deadline = deadline
        self._waker = waker
        self.opening = True
        self.head: bytes | None = None
        self.rest = b""
        self.incoming = b""
        self.position = 0
        self.outgoing: deque[memoryview] = deque()
        self.frames = 0

    def gettimeout(self) -> float:
        """Say that nothing here waits: websocket-client then makes one plain call."""
        return 0.0

    def settimeout(self, value: float | None) -> None:
        """Ignore it."""

    def close(self) -> None:
        """Leave the socket to its owner."""

    def send(self, data: bytes) -> int:
        """Take all of `data`."""
        if self.opening:
            # Its cookie jar is shared by the whole process: what another client was told to
            # keep is nobody's business here. A caller's own Cookie header is not its last line.
            head, _, cookie = data.removesuffix(b"\r\n\r\n").rpartition(b"\r\n")
            own = {f"{name}: {value}".encode("latin-1") for name, value in self._settings.headers}
            if cookie.startswith(b"Cookie: ") and cookie not in own:
                request = head + b"\r\n\r\n"
            else:
                request = data
            _handshake.send_all(self._sock, request, self._deadline, self._waker)
        else:
            self.outgoing.append(memoryview(data))
            self.frames += 1
        return len(data)

    def recv(self, size: int) -> bytes:
        """Give up to `size` bytes; raise `TimeoutError` when there are none yet."""
        if self.opening and self.head is None:
            self.head = self.incoming = self._read_head()
        chunk = self.incoming[self.position : self.position + size]
        if not chunk:
            raise TimeoutError
        self.position += len(chunk)
        return chunk

    def _read_head(self) -> bytes:
        head = _handshake.read_head(self._sock, self._deadline, self._waker)
        if head.status != 101:  # noqa: PLR2004 - Switching Protocols
            body = _handshake.read_body(self._sock, head, self._deadline, self._waker)
            retry_after = head.get("retry-after")
            raise _handshake.refusal(head.status, retry_after, body, self._settings, self._token)
        for name in ("extensions", "protocol"):
            if head.get(f"sec-websocket-{name}") is not None:
                raise HandshakeError(f"the server chose a WebSocket {name} that nobody offered")
        self.rest = head.rest
        # It strips and lowers names as is done here, whatever stands before and behind them.
        kept = [
            line for line in head.lines if line.partition(":")[0].strip().lower() != "set-cookie"
        ]
        return "\r\n".join([*kept, "", ""]).encode()


def dial(settings: Settings, deadline: Deadline, waker: Waker) -> socket.socket:
    """Open a non-blocking socket to the settings' server: through its proxy, with TLS.

    Raises `ConnectError` and its kinds, `MissingExtraError`, `NotConnectedError`.
    """
    through = None
    if settings.proxy is not None:
        from ._proxy import opener  # noqa: PLC0415 - few need it, and urllib.request is large

        through = opener(settings)
    return open_socket(settings.endpoint, settings.ssl_context, deadline, waker, through)


class Transport:
    """An open WebSocket. Only `wake` may be called from other threads, on its `Waker`.

    Make one with `Transport.open`, and free it with `close`.
    """

    def __init__(
        self,
        sock: socket.socket,
        ws: _WebSocket,
        guard: _GuardedSocket,
        waker: Waker,
        *,
        limit: int,
        clock: Clock,
        redact: _handshake.Redactor,
    ) -> None:
        self.redact = redact
        """Takes this connection's credentials out of a text that the server has sent."""
        self._sock = sock
        self._ws = ws
        self._guard = guard
        self._waker = waker
        self._limit = limit
        self._clock = clock
        self._chunks: list[bytes] = []
        self._have = 0
        self._need = 2
        self._stalled_since: float | None = None
        self._gather = False
        self.end: FluxbaseChatError | None = None
        """Why nothing more will come, once that is so."""
        self.written = 0
        """How many frames were written as a whole."""
        self.pongs = 0
        """How many pongs have come."""
        self._selector = selectors.DefaultSelector()
        self._selector.register(waker, selectors.EVENT_READ)
        self._selector.register(sock, selectors.EVENT_READ)
        self._events = selectors.EVENT_READ
        if guard.rest:
            self._add(guard.rest)

    @classmethod
    def open(
        cls, settings: Settings, token: str | None, deadline: Deadline, waker: Waker, clock: Clock
    ) -> Transport:
        """Connect and shake hands, all by the deadline.

        Raises `ConnectError`, `AuthenticationError`, `PermissionDeniedError`, `RateLimitError` or,
        when the waker was stopped, `NotConnectedError`.
        """
        endpoint = settings.endpoint
        sock = dial(settings, deadline, waker)
        try:
            limit = settings.limits.message_bytes
            guard = _GuardedSocket(sock, settings, token, deadline, waker)
            ws = _WebSocket(limit)
            target = endpoint.target(token if settings.token_in_query else None)
            try:
                ws.connect(  # type: ignore[no-untyped-call]
                    f"{'wss' if endpoint.secure else 'ws'}://{endpoint.authority}{target}",
                    socket=guard,
                    header=_handshake.request_headers(settings, token),
                    host=endpoint.authority,
                    suppress_origin=True,
                    redirect_limit=0,
                )
            except (FluxbaseChatError, KeyboardInterrupt):
                raise
            except websocket.WebSocketTimeoutException:
                raise ConnectTimeoutError(
                    f"no connection to {endpoint} in time: waiting for the upgrade"
                ) from None
            except OSError as error:
                if isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError):
                    # In TLS 1.3 a server's alert comes when the client has done its part.
                    raise tls_error(endpoint, error) from error
                why = error.strerror or type(error).__name__
                raise HandshakeError(f"the connection broke in the handshake: {why}") from error
            except Exception as error:  # noqa: BLE001 - whatever it trips over, we name it
                # Its text can quote the server's headers, so it is left behind.
                raise HandshakeError(
                    "the answer is no valid WebSocket handshake", hint=type(error).__name__
                ) from None
            guard.opening = False
            guard.incoming, guard.position = b"", 0
            redact = _handshake.Redactor(settings, token)
            return cls(sock, ws, guard, waker, limit=limit, clock=clock, redact=redact)
        except BaseException:
            sock.close()
            raise

    # -- in ---------------------------------------------------------------------------------

    def receive(self) -> list[bytes]:
        """Read the socket once, without waiting, and return the messages that are now whole.

        When `end` is set afterwards, these were the last.
        """
        if self.end is None:
            try:
                self._add(self._read())
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                pass
            except OSError as error:
                why = error.strerror or type(error).__name__
                self._lost(f"the connection broke: {why}", error)
        if self._have < self._need:
            return []
        payloads: list[bytes] = []
        read = self._have
        try:
            self._cut(payloads)
        except _TooBigError as error:
            self._broken(str(error), 1009)
        except Exception as error:  # noqa: BLE001 - whatever it trips over, we name it
            self._broken(_violation(error), 1002)
        self._gather = len(payloads) >= _FEW_MESSAGES and read < _READ_BYTES // 2
        return payloads

    def _read(self) -> bytes:
        data = self._sock.recv(_READ_BYTES)
        if isinstance(self._sock, ssl.SSLSocket):
            # A selector does not see what TLS has already taken out of the socket.
            parts = [data]
            while data and self._sock.pending() and sum(map(len, parts)) < _READ_BYTES:
                data = self._sock.recv(_READ_BYTES)
                parts.append(data)
            data = b"".join(parts)
        if not data:
            self._lost("the connection ended without a close frame", None)
        return data

    def _add(self, data: bytes) -> None:
        self._chunks.append(data)
        self._have += len(data)

    def _cut(self, payloads: list[bytes]) -> None:
        """Cut the buffer into messages; keep what is not whole, and say how much it needs."""
        data = b"".join(self._chunks) if len(self._chunks) > 1 else self._chunks[0]
        size = len(data)
        limit = self._limit
        position = 0
        need = 2
        ours = self._ws.between_messages
        while size - position >= 2 and self.end is None:  # noqa: PLR2004 - the shortest head
            if ours:
                position = _cut_texts(data, position, limit, payloads)
                if size - position < 2:  # noqa: PLR2004
                    break
            simple = ours and data[position] == _TEXT_FIN
            length = data[position + 1]
            start = position + 2
            if length >= _LENGTH_16:
                if length & _MASKED:  # as no server should: the library unmasks it
                    simple = False
                    length ^= _MASKED
                    start += 4
                if length >= _LENGTH_16:
                    wide = 2 if length == _LENGTH_16 else 8
                    start += wide
                    if size < start:
                        need = start - position
                        break
                    length = int.from_bytes(data[position + 2 : position + 2 + wide])
                if length > limit:  # not worth waiting for
                    raise _TooBigError(f"a message is larger than {limit:,} bytes")
            end = start + length
            if end > size:
                need = end - position
                break
            if simple and length <= limit:
                payloads.append(data[start:end])
            else:
                self._by_library(data[position:end], payloads)
                ours = self._ws.between_messages
            position = end
        self._chunks = [data[position:]] if position < size else []
        self._have = size - position
        self._need = need

    def _by_library(self, frame: bytes, payloads: list[bytes]) -> None:
        """Let websocket-client read one frame.

        It is given whole ones only: each part of one would cost it a look at all parts before.
        """
        guard = self._guard
        guard.incoming, guard.position = frame, 0
        try:
            opcode, message = self._ws.recv_data_frame(True)
        except websocket.WebSocketTimeoutException:
            return  # a fragment, and no message yet
        finally:
            guard.incoming, guard.position = b"", 0
        if opcode in {ABNF.OPCODE_TEXT, ABNF.OPCODE_BINARY}:
            payloads.append(message.data)
        elif opcode == ABNF.OPCODE_PONG:
            self.pongs += 1
        elif opcode == ABNF.OPCODE_CLOSE:
            self._lost(self.redact(_goodbye(message.data)), None)

    def _lost(self, why: str, cause: BaseException | None) -> None:
        if self.end is None:
            self.end = ConnectionLostError(why)
            self.end.__cause__ = cause

    def _broken(self, why: str, code: int) -> None:
        self._chunks, self._have = [], 0
        self.end = RemoteProtocolError(f"the server broke the protocol: {why}")
        self.say_goodbye(code)

    # -- out --------------------------------------------------------------------------------

    @property
    def unsent(self) -> bool:
        """Whether something waits to be written."""
        return bool(self._guard.outgoing) or self._ws.pong_due is not None

    def send(self, payload: bytes) -> int:
        """Put one message into the outgoing buffer; return what `written` is when it is out."""
        self._gather = False  # the answer to this one is not on its way yet
        self._ws.send(payload, ABNF.OPCODE_TEXT)
        return self._guard.frames

    def ping(self) -> None:
        """Put a ping into the outgoing buffer."""
        self._ws.ping()

    def say_goodbye(self, code: int = 1000) -> None:
        """Put a close frame into the outgoing buffer; nothing may be sent after it."""
        self._ws.send_close(code)

    def flush(self) -> None:
        """Write what the socket takes now; sets `end` when it is broken or takes nothing."""
        outgoing = self._guard.outgoing
        try:
            while outgoing or self._put_pong():
                sent = self._sock.send(outgoing[0])
                self._stalled_since = None
                if sent < len(outgoing[0]):
                    outgoing[0] = outgoing[0][sent:]
                else:
                    outgoing.popleft()
                    self.written += 1
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            now = self._clock()
            if self._stalled_since is None:
                self._stalled_since = now
            elif now - self._stalled_since >= _WRITE_STALL_SECONDS:
                self._lost(f"the server takes nothing for {_WRITE_STALL_SECONDS:g} s", None)
        except OSError as error:
            outgoing.clear()
            self._lost(f"the connection broke: {error.strerror or type(error).__name__}", error)

    def _put_pong(self) -> bool:
        """Put the pong that is due into the empty buffer; say whether there was one.

        Not before it is empty: a server that asks for pongs and reads none would fill it.
        """
        pong, self._ws.pong_due = self._ws.pong_due, None
        if pong is None or self._ws.close_sent:
            return False
        self._ws.send(pong, ABNF.OPCODE_PONG)
        return True

    # -- waiting ----------------------------------------------------------------------------

    @property
    def buffered(self) -> int:
        """The bytes of a message that is not whole yet."""
        return self._have

    @property
    def unread(self) -> bool:
        """Whether there is something to read that the selector cannot see."""
        tls = isinstance(self._sock, ssl.SSLSocket) and self._sock.pending() > 0
        return tls or self._have >= self._need

    def wait(self, seconds: float | None, *, reading: bool = True, streaming: bool = False) -> None:
        """Wait until there is something to read, room to write, a wake, or the time is up.

        `streaming` says that more of an answer is to come, and may be gathered meanwhile.
        """
        if reading and self.unread:
            return
        if streaming and reading and self._gather and not self.unsent:
            self._gather = False
            time.sleep(_GATHER_SECONDS if seconds is None else min(_GATHER_SECONDS, seconds))
        events = selectors.EVENT_READ if reading else 0
        if self.unsent:
            events |= selectors.EVENT_WRITE
            seconds = min(_WRITE_STALL_SECONDS, seconds if seconds is not None else 1e9)
        if events != self._events:
            if not events:
                self._selector.unregister(self._sock)
            elif not self._events:
                self._selector.register(self._sock, events)
            else:
                self._selector.modify(self._sock, events)
            self._events = events
        for key, _ in self._selector.select(bounded(seconds)):
            if key.fileobj is self._waker:
                self._waker.drain()

    def close(self) -> None:
        """Free the socket and the selector. The waker stays its owner's."""
        self._selector.close()
        self._sock.close()


def _cut_texts(data: bytes, position: int, limit: int, payloads: list[bytes]) -> int:
    """Cut whole text frames of less than 64 KiB up to the first that is none; return its position.

    Nearly all frames are such: this loop is the hot path, and knows nothing else.
    """
    begin = position
    size = len(data)
    last = size - 4  # where the longest of these heads fits in
    short = min(_LENGTH_16 - 1, limit)
    while position <= last and data[position] == _TEXT_FIN:
        length = data[position + 1]
        if length <= short:
            start = position + 2
        elif length == _LENGTH_16:
            start = position + 4
            length = data[position + 2] << 8 | data[position + 3]
            if length > limit:
                break
        else:
            break
        begin = position
        position = start + length
        payloads.append(data[start:position])
    if position > size:  # the last one is not whole
        payloads.pop()
        return begin
    return position


def _violation(error: Exception) -> str:
    text = str(error)
    if "rsv" in text:
        return "a frame is compressed, which was not agreed on"
    # The texts about frames out of order quote nothing that came; others do.
    return text[:100] if isinstance(error, websocket.WebSocketProtocolException) else "a bad frame"


def _goodbye(data: bytes) -> str:
    """Say how the server closed; its reason is checked UTF-8 of at most 123 bytes."""
    if len(data) < 2:  # noqa: PLR2004 - a close frame may be empty
        return "the server closed the connection"
    reason = data[2:].decode("utf-8", "replace")
    code = int.from_bytes(data[:2])
    return f"the server closed the connection ({code}{' ' + reason if reason else ''})"
