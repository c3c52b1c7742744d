"""Sockets: each wait ends by its deadline, by a wake, or with what it waited for."""

from __future__ import annotations

import selectors
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from helpers import run
from servers import Gate, Peer, RawServer, refusing_port

from fluxbase_aichat import FluxbaseAIChat, Timeouts, _net
from fluxbase_aichat._deadline import Deadline
from fluxbase_aichat._net import Waker, call, connect_tcp, open_socket, pause, wait_for
from fluxbase_aichat.config import Endpoint
from fluxbase_aichat.errors import ConnectError, ConnectTimeoutError, NotConnectedError


@pytest.fixture
def waker() -> Iterator[Waker]:
    """Give a waker."""
    waker = Waker()
    yield waker
    waker.close()


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Give two sockets that are connected."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def soon() -> Deadline:
    """Return a deadline for what is not going to happen."""
    return Deadline(0.05)


# -- the waker ------------------------------------------------------------------------------


def test_wake_before_the_wait(waker) -> None:
    """A wake that came before ends the next wait, and only that one."""
    waker.wake()
    waker.wake()
    wait_for(None, 0, Deadline(None), waker)
    with pytest.raises(TimeoutError):
        wait_for(waker._sender, selectors.EVENT_READ, soon(), waker)


def test_wake_from_another_thread(waker) -> None:
    """A wake ends a wait that is on."""
    waiting = run(wait_for, None, 0, Deadline(None), waker)
    waker.wake()
    waiting.result()


def test_stop(waker) -> None:
    """A stop ends this wait and all later ones."""
    waiting = run(wait_for, None, 0, Deadline(None), waker)
    waker.stop()
    for _ in range(2):
        with pytest.raises(NotConnectedError) as caught:
            waiting.result()
        waiting = run(wait_for, None, 0, Deadline(None), waker)
    assert caught.value.sent is False
    with pytest.raises(NotConnectedError):
        waiting.result()


def test_more_wakes_than_fit(waker) -> None:
    """Wakes that nobody takes cost nothing and block nobody."""
    for _ in range(200_000):
        waker.wake()
    waker.drain()
    with pytest.raises(BlockingIOError):
        waker._receiver.recv(1)


def test_wake_after_close() -> None:
    """A closed waker may be woken, stopped and closed again."""
    waker = Waker()
    waker.close()
    waker.close()
    waker.wake()
    waker.stop()
    assert waker.stopped


def test_close_while_others_wake() -> None:
    """A close among wakes writes to no descriptor that is somebody else's by then."""
    for _ in range(50):
        waker = Waker()
        wakers = [run(lambda: [waker.wake() for _ in range(100)]) for _ in range(3)]  # noqa: B023
        waker.close()
        for one in wakers:
            one.result()


def test_after_fork_with_a_lost_lock(waker) -> None:
    """In a child the lock may be held by a thread that is not there."""
    held, over = Gate(), Gate()

    def hold() -> None:
        with waker._lock:
            held.open()
            over.wait()

    holding = run(hold)
    held.wait()
    waker.after_fork()
    waker.wake()
    over.open()
    holding.result()


# -- waits ----------------------------------------------------------------------------------


def test_wait_for_a_socket(waker, pair) -> None:
    """A wait ends when the socket is ready; a wake in between does not end it."""
    ours, theirs = pair
    wait_for(ours, selectors.EVENT_WRITE, Deadline(None), waker)
    waiting = run(wait_for, ours, selectors.EVENT_READ, Deadline(None), waker)
    waker.wake()
    theirs.sendall(b"x")
    waiting.result()


def test_wait_for_a_socket_in_vain(waker, pair) -> None:
    """The deadline is a TimeoutError without a number: the system's own have one."""
    with pytest.raises(TimeoutError) as caught:
        wait_for(pair[0], selectors.EVENT_READ, soon(), waker)
    assert caught.value.errno is None


def test_pause(waker) -> None:
    """A pause lasts as long as it should, whatever wakes; a stop ends it."""
    began = time.monotonic()
    waker.wake()
    pause(0.05, time.monotonic, waker)
    assert 0.05 <= time.monotonic() - began < 2
    pause(0, time.monotonic, waker)
    pausing = run(pause, 3600, time.monotonic, waker)
    waker.stop()
    with pytest.raises(NotConnectedError):
        pausing.result()


# -- calls that cannot be interrupted -------------------------------------------------------


def test_call(waker) -> None:
    """A call gives its value or raises its error, from a daemon thread with a telling name."""
    where = call(threading.current_thread, Deadline(None), waker, "test")
    assert ("fluxbase-aichat-test", True) == (where.name, where.daemon)

    def fail() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError, match="x"):
        call(fail, Deadline(None), waker, "test")


def test_call_that_is_left_behind(waker) -> None:
    """A call that does not return is left at the deadline, or when told to stop."""
    over = Gate()
    with pytest.raises(TimeoutError):
        call(over.wait, soon(), waker, "test")
    calling = run(call, over.wait, Deadline(None), waker, "test")
    waker.stop()
    with pytest.raises(NotConnectedError):
        calling.result()
    over.open()


def test_call_that_ends_after_the_waker(waker) -> None:
    """What is left behind may end when there is nobody to wake."""
    over = Gate()
    calling = run(call, over.wait, Deadline(None), waker, "test")
    waker.stop()
    with pytest.raises(NotConnectedError):
        calling.result()
    waker.close()
    over.open()


# -- addresses ------------------------------------------------------------------------------


def addresses(monkeypatch, *found: tuple[int, str, int]) -> list[str]:
    """Have chat.example at these families, hosts and ports; return who was looked up."""
    getaddrinfo = socket.getaddrinfo
    asked = []

    def known(host, *args, **options):
        if host == "chat.example" and not options.get("flags", 0):
            asked.append(host)
            return [
                (family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (where, port))
                for family, where, port in found
            ]
        return getaddrinfo(host, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", known)
    return asked


def test_addresses_are_not_looked_up(monkeypatch, waker) -> None:
    """For an address no thread is started and no name service is asked."""
    monkeypatch.setattr(_net, "call", None)
    with RawServer(Peer.serve) as server:
        connect_tcp("127.0.0.1", server.port, Deadline(None), waker).close()


def test_all_addresses_fail(monkeypatch, waker) -> None:
    """When none answers, the last one's error is told."""
    with refusing_port() as port:
        asked = addresses(
            monkeypatch,
            (socket.AF_INET, "255.255.255.255", 9),
            (socket.AF_INET, "127.0.0.1", port),
            (socket.AF_INET, "127.0.0.2", port),
        )
        with pytest.raises(ConnectionRefusedError):
            connect_tcp("chat.example", port, Deadline(None), waker)
    assert ["chat.example"] == asked


@pytest.fixture
def black_hole() -> Iterator[int]:
    """Give a port that swallows: it takes no connection and refuses none."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]
        for filler in fillers:
            filler.close()


def test_black_hole_first(monkeypatch, waker, black_hole) -> None:
    """An address that swallows gets a part of the time, the next one the rest."""
    monkeypatch.setattr(_net, "_ADDRESS_SECONDS", 0.05)
    with RawServer(Peer.serve) as server:
        addresses(
            monkeypatch,
            (socket.AF_INET, "127.0.0.1", black_hole),
            (socket.AF_INET, "127.0.0.1", server.port),
        )
        connect_tcp("chat.example", 80, Deadline(None), waker).close()
        assert server.peer()


def test_black_holes_only(monkeypatch, waker, black_hole) -> None:
    """One deadline is over all addresses, and is not begun anew with each."""
    monkeypatch.setattr(_net, "_ADDRESS_SECONDS", 0.1)
    addresses(monkeypatch, *[(socket.AF_INET, "127.0.0.1", black_hole)] * 50)
    began = time.monotonic()
    with pytest.raises(TimeoutError, match="waiting for TCP"):
        connect_tcp("chat.example", 80, Deadline(0.25), waker)
    assert 0.25 <= time.monotonic() - began < 1


def test_stop_between_addresses(monkeypatch, waker, black_hole) -> None:
    """A stop ends the whole attempt, not that of one address."""
    addresses(monkeypatch, *[(socket.AF_INET, "127.0.0.1", black_hole)] * 3)
    connecting = run(connect_tcp, "chat.example", 80, Deadline(None), waker)
    waker.stop()
    with pytest.raises(NotConnectedError):
        connecting.result()


def test_ipv6() -> None:
    """The other loopback is reached by its address, in brackets."""
    try:
        listener = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError:
        pytest.skip("no IPv6 here")
    seen = []

    def script(peer: Peer) -> None:
        peer.read_request()
        seen.append(peer.headers["host"])
        peer.serve()

    server = RawServer(script)
    server._listener.close()
    server._listener = listener
    port = listener.getsockname()[1]
    with server, FluxbaseAIChat(f"ws://[::1]:{port}", token="t0k3n") as chat:
        assert "You said: Hi" == chat.ask("support", "Hi").text
    assert [f"[::1]:{port}"] == seen


def test_broken_ipv6_before_ipv4(monkeypatch) -> None:
    """A name with both kinds of addresses works where the first kind does not."""
    with RawServer(Peer.serve) as server:
        addresses(
            monkeypatch,
            (socket.AF_INET6, "100::1", 9),  # the discard prefix: no route, or a black hole
            (socket.AF_INET, "127.0.0.1", server.port),
        )
        monkeypatch.setattr(_net, "_ADDRESS_SECONDS", 0.1)
        with FluxbaseAIChat("ws://chat.example") as chat:
            assert "You said: Hi" == chat.ask("support", "Hi").text


def test_sockets_are_tuned(waker) -> None:
    """A socket never waits, sends small frames at once, and notices a peer that vanished."""
    with (
        RawServer(Peer.serve) as server,
        connect_tcp("127.0.0.1", server.port, Deadline(None), waker) as sock,
    ):
        assert sock.gettimeout() == 0.0
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


# -- what an opening that fails is called ---------------------------------------------------


def test_step_of_the_deadline(waker, black_hole, monkeypatch) -> None:
    """The error at the deadline says what was being waited for."""

    def opened(host: str, port: int, secure: bool = False) -> str:
        with pytest.raises(ConnectTimeoutError) as caught:
            open_socket(Endpoint(secure, host, port, "/"), None, soon(), waker)
        return str(caught.value)

    looked, over = Gate(), Gate()
    monkeypatch.setattr(_net, "_resolve", lambda *args: call(looked.wait, *args[2:], "dns"))
    assert "looking up the name" in opened("chat.example", 80)
    looked.open()
    monkeypatch.undo()
    assert "waiting for TCP" in opened("127.0.0.1", black_hole)
    with RawServer(lambda peer: peer.socket.recv(1) and over.wait()) as server:
        assert "waiting for TLS" in opened("127.0.0.1", server.port, secure=True)
        over.open()


@pytest.mark.parametrize("name", ["x" * 70 + ".example", "a..b"])
@pytest.mark.parametrize("secure", [False, True])
def test_names_that_are_none(name, secure, waker) -> None:
    """A name that the system refuses to look up is a ConnectError."""
    with pytest.raises(ConnectError):
        open_socket(Endpoint(secure, name, 9, "/"), None, Deadline(5), waker)


def test_no_thread_can_be_started(monkeypatch, waker) -> None:
    """Where no thread starts any more (at the interpreter's exit) there is no connection."""

    def refuse(*args, **options):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(ConnectError, match="can't start new thread"):
        open_socket(Endpoint(False, "chat.example", 80, "/"), None, Deadline(None), waker)


@pytest.mark.parametrize("seconds", [2.0**31, 1e12])
def test_a_deadline_in_many_years(seconds) -> None:
    """It is no different from none, though selectors count in fewer bits."""
    names = ("connect", "start", "idle", "turn")
    timeouts = Timeouts(**dict.fromkeys(names, seconds))
    with RawServer(Peer.serve) as server, FluxbaseAIChat(server.url, timeouts=timeouts) as chat:
        assert "You said: hello" == chat.ask("support", "hello").text
