"""Faults of exits (X): Ctrl-C, a script that just ends, and what is done at the very end."""

from __future__ import annotations

import contextlib
import contextvars
import queue
import threading

import pytest
from scripts.process import INTERRUPTED, Script, find_python
from servers import WAIT, Gate, Peer, RawServer, content, done

from fluxbase_aichat import ConnectError, FluxbaseAIChat
from fluxbase_aichat._deadline import SLICE, Deadline
from fluxbase_aichat._dispatch import Post
from fluxbase_aichat.devserver import DevServer

CID = "c-1"
DEV = ("-X", "dev", "-W", "error")
AT_ONCE = 4.0
"""Seconds that an end may take on a busy machine; every limit of the scripts is a minute."""

LINE = (
    "fluxbase_aichat: the script ended while {} turn(s) with callbacks were unfinished; "
    "wait() for a turn, or wait_idle() for all, before the end\n"
)


def keyboard_interrupt(err: str) -> bool:
    """Whether this is the traceback of one KeyboardInterrupt, and nothing else."""
    return (
        err.startswith("Traceback (most recent call last):\n")
        and err.endswith("\nKeyboardInterrupt\n")
        and 1 == err.count("Traceback")
    )


# -- X06 ------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["recover", "list_chatbots", "token"])
def test_x06_ctrl_c_in_a_rest_call(call) -> None:
    """It raises at once, and the process ends as it should."""
    asked = Gate()

    def script(peer: Peer) -> None:
        peer.read_request()
        peer.read_exactly(int(peer.headers.get("content-length", "0")))
        asked.open()
        peer.until_closed()

    with RawServer(script) as server, Script("interrupted.py", server.url, call) as running:
        asked.wait()
        running.interrupt()
        status, _, err = running.end()
        assert INTERRUPTED == status
        assert keyboard_interrupt(err)
        server.join()


@pytest.mark.parametrize(
    "call",
    ["ask", "ask(timeout)", "result", "wait", "wait_idle", "iterate", "text_stream", "with"],
)
def test_x06_ctrl_c_in_a_turn(call) -> None:
    """It raises at once, the turn is cancelled on the wire, and the process ends as it should."""
    asked = Gate()

    def script(peer: Peer) -> None:
        peer.accept()
        peer.start(CID)
        peer.message()
        peer.send_text(content(CID, "One"))
        peer.settle()
        asked.open()
        peer.until_closed()

    with RawServer(script) as server, Script("interrupted.py", server.url, call) as running:
        asked.wait()
        if call not in ("ask", "ask(timeout)", "with"):
            assert "waiting" == running.line()
        running.interrupt()
        status, _, err = running.end()
        assert INTERRUPTED == status, err
        if call == "wait_idle":
            assert err.endswith(LINE.format(1))  # nobody has ended the turn
            err = err.removesuffix(LINE.format(1))
        assert keyboard_interrupt(err), err
        assert running.took < AT_ONCE
        server.join()
        rest = [message for _, message in server.received[2:]]
        # wait_idle() is no wait of the turn's.
        cancel = {"type": "cancel", "conversation_id": CID}
        assert rest == ([] if call == "wait_idle" else [cancel])


@pytest.mark.parametrize("call", ["connect", "start_chat", "start_chat(timeout)", "disconnect"])
def test_x06_ctrl_c_outside_of_a_turn(call) -> None:
    """It raises at once, whatever the server does not answer; nothing is cancelled."""
    waiting = Gate()

    def script(peer: Peer) -> None:
        peer.polite = False
        if call == "connect":
            peer.read_request()
        elif call == "disconnect":
            peer.accept()
            peer.start(CID)
            peer.recv_control()
        else:
            peer.accept()
            peer.recv_json()
        waiting.open()
        peer.until_closed()

    with RawServer(script) as server, Script("interrupted.py", server.url, call) as running:
        waiting.wait()
        running.interrupt()
        status, _, err = running.end()
        assert INTERRUPTED == status, err
        assert keyboard_interrupt(err), err
        assert running.took < AT_ONCE
        server.join()
        assert "cancel" not in [message["type"] for _, message in server.received]


def test_x06_the_next_call_works() -> None:
    """Who catches Ctrl-C goes on with the same client; the server sees one cancel a turn."""
    # The server comes to a cancel when its turn has ended.
    pauses: queue.Queue[threading.Event] = queue.Queue()

    def pause(_: float) -> None:
        go_on = threading.Event()
        pauses.put(go_on)
        go_on.wait(WAIT)

    with (
        DevServer(pause=pause) as server,
        Script("interrupted_again.py", server.ws_url) as running,
    ):

        def cancels() -> int:
            return sum(received.frame["type"] == "cancel" for received in server.received)

        for count, call in enumerate(
            ["ask", "conversation.ask", "result", "wait", "iterate", "text_stream"], 1
        ):
            go_on = pauses.get(timeout=WAIT)
            running.interrupt()
            assert f"{call} fine" == running.line()
            go_on.set()
            assert server.wait_for(lambda count=count: count == cancels()), call
        assert (0, "", "") == running.end()
        assert server.wait_for(lambda: 0 == server.active)
        assert 6 == cancels()


def test_x06_no_wait_is_long(monkeypatch) -> None:
    """Ctrl-C in the moment in which a wait begins does not end it: the next slice does."""
    waits: list[float | None] = []
    join = threading.Thread.join
    wait = threading.Condition.wait

    def noting_join(thread: threading.Thread, timeout: float | None = None) -> None:
        if thread.name.startswith("fluxbase-aichat"):
            waits.append(timeout)
        join(thread, timeout)

    def noting_wait(condition: threading.Condition, timeout: float | None = None) -> bool:
        if "fluxbase" not in threading.current_thread().name:
            waits.append(timeout)
        return wait(condition, timeout)

    slow, called = Gate(), Gate()

    def on_done(_usage: object) -> None:
        called.open()
        slow.wait()

    with RawServer(Peer.serve) as server:
        chat = FluxbaseAIChat(server.url, on_done=on_done)
        chat.ask("support", "Hi")
        called.wait()
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "join", noting_join)
            patch.setattr(threading.Condition, "wait", noting_wait)
            dispatcher = chat._session._telling.dispatcher
            assert not dispatcher.wait_idle(Deadline(0.01))
            dispatcher.post(Post(contextvars.copy_context(), []))
            slow.open()
            assert dispatcher.wait_idle(Deadline(None))
            chat.disconnect(timeout=None)
    assert waits
    assert all(seconds is not None and seconds <= SLICE for seconds in waits), waits


def test_x06_ctrl_c_while_a_thread_begins(monkeypatch) -> None:
    """`threading` may make a RuntimeError of it: it is Ctrl-C all the same, and the threads run."""
    start = threading.Thread.start
    interrupted: list[str] = []

    def interrupting(thread: threading.Thread) -> None:
        start(thread)
        if thread.name.startswith("fluxbase") and thread.name not in interrupted:
            interrupted.append(thread.name)
            try:
                raise KeyboardInterrupt
            finally:
                raise RuntimeError("release unlocked lock")

    with RawServer(Peer.serve) as server:
        chat = FluxbaseAIChat(server.url, on_content=len)
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", interrupting)
            with pytest.raises(KeyboardInterrupt):
                chat.ask("support", "Hi")
        assert ["callbacks", "io"] == [name.split("-")[2] for name in interrupted]
        assert "You said: Hi" == chat.ask("support", "Hi").text
        chat.disconnect()


def test_x06_no_thread_can_be_started_while_ctrl_c_is_handled(monkeypatch) -> None:
    """A call in an `except KeyboardInterrupt` says so, too: that Ctrl-C was another one."""

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with RawServer(Peer.serve) as server:
        chat = FluxbaseAIChat(server.url, on_content=len)
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            try:
                raise KeyboardInterrupt  # noqa: TRY301 - as one that has come before
            except KeyboardInterrupt:
                with pytest.raises(ConnectError, match="can't start new thread"):
                    chat.ask("support", "Hi")
        assert "You said: Hi" == chat.ask("support", "Hi").text
        chat.disconnect()


def test_x06_ctrl_c_at_any_moment() -> None:
    """Wherever it strikes, no lock stays taken, and nothing is waited for in vain."""

    def script(peer: Peer) -> None:
        peer.accept()
        while True:
            request = peer.recv_json()
            if request["type"] == "start_chat":
                peer.send_text({**request, "type": "chat_started", "conversation_id": CID})
            elif request["type"] == "message":
                for _ in range(30):
                    peer.send_text(content(CID, "x"))
                peer.send_text(done(CID))
            else:
                peer.send_text({"type": "cancelled", "conversation_id": CID})
                return

    with (
        RawServer(script) as server,
        Script("interrupted_anywhere.py", server.url, "1", "600") as running,
    ):
        status, out, err = running.end()
        # Python names on stderr, and swallows, what is raised in a finalizer.
        assert (0, "fine\n") == (status, out), err


# -- X08, X10 -------------------------------------------------------------------------------


def endings(peer: Peer) -> None:
    """Serve what ends.py asks for: a turn gets its first word, and `disconnect` an answer."""
    peer.accept()
    peer.start(CID)
    peer.message()
    peer.send_text(content(CID, "One"))
    peer.until_closed()


def answering(peer: Peer) -> None:
    """Serve a whole answer."""
    peer.serve(CID)


def silent(peer: Peer) -> None:
    """Do not answer the opening request."""
    peer.read_request()
    peer.until_closed()


def dropping(peer: Peer) -> None:
    """End the stream as soon as there is one."""
    peer.accept()
    peer.cut()


ENDS = {
    "new": (endings, 0),
    "opening": (silent, 0),
    "reconnecting": (dropping, 0),
    "idle": (endings, 0),
    "disconnected": (answering, 0),
    "answered": (answering, 0),
    "turn": (endings, 0),
    "callback turn": (endings, 1),
    "callback turn, dropped": (endings, 1),
    "callback turns": (endings, 3),
    "two clients": (endings, 2),
    "in a callback": (endings, 1),
    "in its last callback": (answering, 1),
    "cancelled": (endings, 0),
    "asking in a daemon thread": (endings, 0),
    "no stderr": (endings, 0),
    "exit 3": (endings, 1),
    "an exception": (endings, 1),
}


def ends(state: str, options: tuple[str, ...]) -> None:
    """Check how a script ends in that state."""
    script, unfinished = ENDS[state]
    with (
        RawServer(script) as server,
        Script("ends.py", server.url, state, options=options) as running,
    ):
        if state == "opening":
            server.peer()
        elif state == "reconnecting":
            server.join()
        elif state == "asking in a daemon thread":
            server.wait_for(lambda: 2 == len(server._received))
        if state in ("opening", "reconnecting", "asking in a daemon thread"):
            running.say()
        assert "ready" == running.line()
        status, out, err = running.end()
    line = LINE.format(unfinished) if unfinished else ""
    if state == "an exception":
        assert err.startswith("Traceback")
        assert err.endswith("LookupError: of the script\n" + line)
    else:
        assert line == err
    assert "" == out
    assert {"exit 3": 3, "an exception": 1}.get(state, 0) == status
    assert running.took < AT_ONCE


@pytest.mark.parametrize("state", ["idle", "turn", "callback turn", "exit 3"])
def test_x08_the_script_just_ends(state) -> None:
    """It exits at once with its own status; one line if callbacks were unfinished, else none."""
    ends(state, ())


@pytest.mark.parametrize("state", ENDS)
def test_x10_nothing_under_dev_mode(state) -> None:
    """Nothing else is said with all warnings as errors: no socket is left to its finalizer."""
    ends(state, DEV)


# -- X09 ------------------------------------------------------------------------------------

LATE = {
    "disconnect, registered before": {"disconnected"},
    "disconnect, registered behind": {"disconnected"},
    "ask, registered before": {"You said: Hi", "NotConnectedError", "ConnectError"},
    "ask, registered behind": {"You said: Hi"},
    "first use": {"You said: Hi", "ConnectError"},
    "__del__": {"disconnected"},
    "__del__, the lock is held": {"disconnected"},
}


@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13"])
def test_x09_at_the_very_end(version) -> None:
    """A client used in atexit or in a finalizer neither hangs nor fails to say what it cannot."""
    python = find_python(version)
    if python is None:
        pytest.skip(f"there is no Python {version} here")
    with RawServer(answering) as server, contextlib.ExitStack() as stack:
        scripts = {
            when: stack.enter_context(
                Script("late.py", server.url, when, python=python, options=DEV)
            )
            for when in LATE
        }
        ended = {when: script.end() for when, script in scripts.items()}
    for when, (status, out, err) in ended.items():
        assert (0, "") == (status, err), when
        assert out.strip() in LATE[when], when
