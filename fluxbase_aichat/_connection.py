"""One connection: its I/O thread, its protocol, its outgoing buffer.

Callers never touch the socket. Under the lock a request is registered and its payload put into
the outgoing buffer, in one step; the I/O thread alone reads and writes. So two threads cannot
write in another order than they registered, and Ctrl-C cannot tear a frame. What outlives a
connection (the queue, the conversations) is `_session`'s.
"""

from __future__ import annotations

import logging
import math
import threading
from typing import Protocol

import attrs

from ._deadline import Clock, Deadline, join, start
from ._handshake import Redactor, token_of
from ._logs import about
from ._net import Waker, pause
from ._protocol import ChatProtocol, Delivery, Message, Request
from ._transport import Transport
from ._watch import Due, Watch
from ._wire import Decoder, Item, Malformed
from .config import Settings
from .errors import (
    AuthenticationError,
    ConnectError,
    ConnectionLostError,
    ConnectTimeoutError,
    FluxbaseChatError,
    RemoteProtocolError,
)
from .events import ErrorEvent, UnknownEvent

__all__ = ["Connection", "Sink"]

# So many unknown types of message are told to the log, each once; a server may invent them.
_UNKNOWN_TYPES = 100

_log = logging.getLogger("fluxbase_aichat.connection")


class Sink(Protocol):
    """Who is told what happens on a connection: always on its I/O thread, holding no lock."""

    settings: Settings
    """Those of the next connection: its token may be another one by then."""

    def opened(self, connection: Connection) -> None:
        """Requests can be sent."""

    def open_failed(self, connection: Connection, error: FluxbaseChatError) -> None:
        """It could not be opened; nothing more will come."""

    def delivered(self, connection: Connection, deliveries: list[Delivery], size: int) -> None:
        """Take what arrived in one read of the socket, `size` bytes of payloads."""

    def expired(self, connection: Connection, request: Request, phase: Due) -> None:
        """Take a request on the wire that has used up its time."""

    def settle(self) -> None:
        """Do what was put off while this thread held the connection's lock."""

    def paused(self) -> bool:
        """Say whether nothing may be read for now; `Connection.wake` says that it changed."""

    def ended(
        self, connection: Connection, error: FluxbaseChatError, unsent: list[Request]
    ) -> None:
        """The connection is over, and what was unanswered on it; `unsent` was never written."""


class Connection:
    """Opens itself on its own thread, and lives until its stream ends or `close` is called."""

    def __init__(
        self,
        settings: Settings,
        sink: Sink,
        *,
        clock: Clock,
        connect: float | None,
        number: int,
        delay: float = 0.0,
    ) -> None:
        self._settings = settings
        self._sink = sink
        self._clock = clock
        self._connect = connect
        self._delay = delay
        self._waker = Waker()
        # Guards the eight below. It is never taken twice: it is asked whether it is (`at_work`).
        self._lock = threading.RLock()
        self.hastened: bool = False
        """Whether it got less time than whoever opened it has."""
        self._opening: Deadline | None = None
        self._protocol = ChatProtocol()
        self._outgoing: list[tuple[bytes, Request | None]] = []
        self._open = False
        self._aborted = False
        self._closing: Deadline | None = None
        self._transport: Transport | None = None
        # The I/O thread's own: the request that is not written as a whole yet, and how many frames
        # are when it is.
        self._unwritten: Request | None = None
        self._written_at = 0
        self._unknown_types: set[str] = set()
        self._thread = threading.Thread(
            target=self._run, name=f"fluxbase-aichat-io-{number}", daemon=True
        )

    # -- any thread -------------------------------------------------------------------------

    def start(self) -> None:
        """Start the I/O thread; raise `ConnectError` where no thread can be started."""
        if self._thread.ident is not None:
            return  # Ctrl-C came when it had just started
        start(self._thread)

    def discard(self) -> None:
        """Free what it has; its thread was never started."""
        self._waker.close()

    @property
    def at_work(self) -> bool:
        """Whether the calling thread is inside, under the lock."""
        return bool(self._lock._is_owned())  # type: ignore[attr-defined]  # noqa: SLF001

    @property
    def ready(self) -> bool:
        """Whether a request can be sent now."""
        with self._lock:
            return self._takes()

    def _takes(self) -> bool:
        # Nothing more goes into one that is about to end: it might go out, and nobody would know.
        ending = self._aborted or self._closing is not None
        return self._open and not ending and self._protocol.ready

    def needs_start(self, conversation_id: str, chatbot: str, namespace: str) -> bool:
        """See `ChatProtocol.needs_start`."""
        with self._lock:
            return self._protocol.needs_start(conversation_id, chatbot, namespace)

    def forget(self) -> None:
        """See `ChatProtocol.forget`."""
        with self._lock:
            self._protocol.forget()

    def send(self, request: Request) -> bool:
        """Register a request and have it written; `False` where the connection is not ready.

        Raises what `ChatProtocol.send` raises for the request itself. Both change nothing.
        """
        with self._lock:
            if not self._takes():
                return False
            try:
                self._outgoing.append((self._protocol.send(request), request))
            except KeyboardInterrupt:
                self._aborted = True  # it may be registered, and would never be written
                self._waker.stop()
                raise
        self._waker.wake()
        return True

    def hasten(self, seconds: float) -> None:
        """Open within so many seconds from now, if it is not open by then."""
        with self._lock:
            self.hastened = True
            self._connect = seconds
            if self._opening is not None:
                self._opening.hasten(seconds)
        self._waker.wake()

    def cancel(self, request: Message) -> bool:
        """Cancel a turn on the wire; `False` when it is not on the wire any more."""
        with self._lock:
            payload = self._protocol.cancel(request)
            if payload is not None:
                self._outgoing.append((payload, None))
        self._waker.wake()
        return payload is not None

    def close(self, seconds: float | None = 0.0) -> None:
        """End it: with a close handshake of at most `seconds` (`None`: no limit), or at once.

        In a turn there is no handshake, because the server would not answer it (PROTOCOL 4.1).
        """
        with self._lock:
            if self._closing is None:
                self._closing = Deadline(seconds, self._clock)
            busy = self._protocol.unanswered is not None or self._protocol.cancelling
            if seconds == 0.0 or busy or not self._open:
                self._aborted = True
        self._waker.stop()

    def wake(self) -> None:
        """Have the I/O thread look again at what it is told."""
        self._waker.wake()

    def abandon(self) -> None:
        """End it at once. Takes no lock of its own: the garbage collector may be inside."""
        self._aborted = True
        self._waker.stop()

    def after_fork(self) -> None:
        """Free the child's copies of the descriptors; the parent's connection stays as it is."""
        self._waker.after_fork()
        if self._transport is not None:
            self._transport.close()

    def join(self, seconds: float | None) -> None:
        """Wait for the I/O thread's end; not when called on it, or before it has started."""
        # One that another thread is about to start finds the waker stopped, and ends.
        if self._thread is not threading.current_thread():
            join(self._thread, Deadline(seconds))

    # -- the I/O thread ---------------------------------------------------------------------

    def _run(self) -> None:
        try:
            try:
                transport = self._open_transport()
            except FluxbaseChatError as refused:
                self._sink.open_failed(self, refused)
                return
            try:
                with self._lock:
                    self._open = True
                    self._transport = transport
                self._sink.opened(self)
                error = self._talk(transport)
            except Exception as bug:  # noqa: BLE001 - silence would leave its callers waiting
                _log.exception("the I/O thread failed", extra=about())
                error = ConnectionLostError("the client failed: see the log")
                error.__cause__ = bug
            finally:
                transport.close()
            with self._lock:
                self._open = False
                self._protocol.receive_end()
                unsent = [request for _, request in self._outgoing if request is not None]
            if self._unwritten is not None:
                # The last write may have sent the rest; half a frame is nothing to the server.
                self._unwritten.stuck = transport.written < self._written_at
                if self._unwritten.stuck:
                    unsent.append(self._unwritten)
            self._sink.ended(self, error, unsent)
        finally:
            self._waker.close()

    def _open_transport(self) -> Transport:
        pause(self._delay, self._clock, self._waker)
        self._settings = self._sink.settings  # its token may have been replaced meanwhile
        with self._lock:
            deadline = self._opening = Deadline(self._connect, self._clock)
        try:
            return self._shake_hands(deadline)
        except ConnectTimeoutError as error:
            if self._connect is not None:
                error.args = (f"{error.args[0]} ({round(self._connect, 3):g} s)",)
            raise
        except FluxbaseChatError:
            raise
        except Exception as bug:
            _log.exception("opening a connection failed", extra=about())
            raise ConnectError("the client failed: see the log") from bug

    def _shake_hands(self, deadline: Deadline, refused: str | None = None) -> Transport:
        settings, waker = self._settings, self._waker
        token = token_of(settings, deadline, waker, refused)
        try:
            return Transport.open(settings, token, deadline, waker, self._clock)
        except AuthenticationError:
            if refused is not None or not callable(settings.token):
                raise
        # It may have expired on its way here; a source of tokens gets a second chance.
        return self._shake_hands(deadline, token)

    def _talk(self, transport: Transport) -> FluxbaseChatError:
        """Read and write until the stream ends; return why it did."""
        decoder = Decoder(exact_numbers=self._settings.exact_numbers)
        watch = Watch(self._clock(), drain=self._settings.timeouts.idle)
        heard = (0, 0)
        while True:
            with self._lock:
                outgoing, self._outgoing = self._outgoing, []
                closing, aborted = self._closing, self._aborted
                draining = self._protocol.cancelling
            self._sink.settle()
            self._write(transport, outgoing)
            if aborted:
                transport.flush()  # a cancel just before the script's end reaches the server
                return ConnectionLostError("the client was disconnected")
            if closing is not None:
                transport.say_goodbye()
                if closing.expired:
                    return ConnectionLostError("the client was disconnected")
            transport.flush()
            now = self._clock()
            if self._unwritten is not None:
                self._unwritten.stuck = transport.written < self._written_at
                if not self._unwritten.stuck:
                    # Written as a whole: from here on its time counts.
                    watch.wrote(self._unwritten, now)
                    self._unwritten = None
            if draining and outgoing:
                watch.drains(now)

            # What drains reaches no callback, so it waits for none.
            paused = closing is None and not draining and self._sink.paused()
            at, due = watch.next()
            if transport.end is None:
                seconds = max(0.0, at - now) if at < math.inf else None
                seconds = seconds if closing is None else closing.remaining()
                transport.wait(seconds, reading=not paused, streaming=watch.request is not None)
            payloads = [] if paused else transport.receive()
            now = self._clock()
            signs = (transport.pongs, transport.buffered)
            if paused:
                watch.paused(now)
            elif payloads or signs != heard:
                heard = signs  # a pong, or more of a message that is not whole yet
                watch.heard(now)
            if payloads and closing is None:
                error = self._take(decoder, payloads, watch, transport)
                if error is not None:
                    transport.flush()
                    return error
            if transport.end is not None:
                transport.flush()  # the answer to a close frame, or why we close
                return transport.end
            if not payloads and closing is None:
                at, due = watch.next()
                if now >= at:
                    error = self._due(due, watch, transport, now)
                    if error is not None:
                        return error

    def _write(self, transport: Transport, outgoing: list[tuple[bytes, Request | None]]) -> None:
        for payload, request in outgoing:
            number = transport.send(payload)
            if request is not None:
                self._unwritten, self._written_at = request, number

    def _take(
        self, decoder: Decoder, payloads: list[bytes], watch: Watch, transport: Transport
    ) -> FluxbaseChatError | None:
        items = [_hushed(item, transport.redact) for item in decoder.decode(payloads)]
        with self._lock:
            deliveries = self._protocol.receive(items)
        if any(d.final and d.request is watch.request for d in deliveries):
            watch.ended(self._clock())
        for item in items:
            if isinstance(item, UnknownEvent) and item.type not in self._unknown_types:
                if len(self._unknown_types) == _UNKNOWN_TYPES:
                    break
                self._unknown_types.add(item.type)
                _log.info(
                    "the server sends an unknown type of message: %.100r",
                    item.type,
                    extra=about(conversation_id=item.conversation_id),
                )
        self._sink.delivered(self, deliveries, sum(map(len, payloads)))
        last = items[-1]
        if not isinstance(last, Malformed):
            return None
        transport.say_goodbye(last.close_code)
        return RemoteProtocolError(f"the server broke the protocol: {last.reason}")

    def _due(
        self, due: Due, watch: Watch, transport: Transport, now: float
    ) -> FluxbaseChatError | None:
        if due == "ping":
            transport.ping()
            watch.pinged(now)
        elif due == "dead":
            return ConnectionLostError("the server does not answer any more")
        elif due == "drained":
            return ConnectionLostError("the cancelled turn did not end")
        elif watch.request is not None:
            request = watch.request
            watch.ended(now)
            self._sink.expired(self, request, due)
        return None


def _hushed(item: Item, redact: Redactor) -> Item:
    """Take our credentials out of what becomes an error or a log line; `raw` stays as it came."""
    if isinstance(item, ErrorEvent):
        return attrs.evolve(item, error=redact(item.error), code=redact(item.code))
    if isinstance(item, UnknownEvent):
        return attrs.evolve(item, type=redact(item.type))
    return item
