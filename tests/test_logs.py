"""The log: which loggers say what, where the ids stand, and that it is silent by itself."""

from __future__ import annotations

import ast
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import Heard

import fluxbase_aichat
from fluxbase_aichat import ConnectionLostError, FluxbaseAIChat, RateLimitError
from fluxbase_aichat.testing import FakeServer

BOT = "sql-assistant"
SECRET = "what nobody should see"


LOGGING = sorted(
    path
    for path in Path(fluxbase_aichat.__file__).parent.glob("*.py")
    if "logging.getLogger(" in path.read_text(encoding="utf-8")
)


@pytest.mark.parametrize("path", LOGGING, ids=lambda path: path.stem)
def test_every_record_has_the_ids(path: Path) -> None:
    """So a formatter may name them: each call of a logger gives `extra`."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    methods = {"debug", "info", "warning", "error", "exception"}
    calls = [
        call
        for call in ast.walk(tree)
        if isinstance(call, ast.Call)
        for named in [call.func, *call.args[:1]]  # of partial() it is the first argument
        if isinstance(named, ast.Attribute)
        and named.attr in methods
        and isinstance(named.value, ast.Name)
        and named.value.id.endswith("_log")
    ]
    assert calls or path.stem == "_logs"
    assert [] == [
        call.lineno for call in calls if "extra" not in {keyword.arg for keyword in call.keywords}
    ]


def lines(caplog: pytest.LogCaptureFixture, name: str) -> list[str]:
    """Return what one logger has said."""
    return [r.getMessage() for r in caplog.records if r.name == f"fluxbase_aichat.{name}"]


def test_turns_are_logged_with_their_ids(
    fluxbase_server: FakeServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Each start and message has its end; the ids are attributes, and in no message."""
    caplog.set_level(logging.DEBUG, "fluxbase_aichat")
    fluxbase_server.on(BOT, "error").error(SECRET, "RATE_LIMITED")
    fluxbase_server.on(BOT).say(SECRET)
    with FluxbaseAIChat(fluxbase_server.url, token="my-jwt") as chat:
        conversation_id = chat.start_chat(BOT)
        chat.send_message(conversation_id, SECRET).wait()
        with pytest.raises(RateLimitError):
            chat.send_message(conversation_id, f"error {SECRET}").result()
    turns = [r for r in caplog.records if r.name == "fluxbase_aichat.turn"]
    assert [
        "a conversation is started",
        "a message is to be sent",
        "an answer is whole",
        "a message is to be sent",
        "an answer ended with RateLimitError",
    ] == [r.getMessage() for r in turns]
    assert [(conversation_id, BOT)] * len(turns) == [
        (r.__dict__["conversation_id"], r.__dict__["chatbot"]) for r in turns
    ]
    for secret in (SECRET, conversation_id, "my-jwt"):
        assert secret not in caplog.text


def test_the_connection_is_logged(
    fluxbase_server: FakeServer, fluxbase_no_waiting: None, caplog: pytest.LogCaptureFixture
) -> None:
    """Its opening, its loss and the attempts, once each."""
    caplog.set_level(logging.INFO, "fluxbase_aichat")
    fluxbase_server.on(BOT).drop()
    heard = Heard()
    with FluxbaseAIChat(fluxbase_server.url, on_event=heard) as chat:
        with pytest.raises(ConnectionLostError):
            chat.ask(BOT, "hello")
        heard.wait_for_type("reconnected")
    told = lines(caplog, "connection")
    assert ["connected", "disconnected", "reconnecting", "reconnected", "disconnected"] == [
        line.split(":")[0] for line in told
    ]
    assert "reconnecting: attempt 1 in 0.0 s" == told[2]
    assert [] == lines(caplog, "turn")


def test_a_callback_that_raises_is_logged_with_its_conversation(
    fluxbase_server: FakeServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Which conversation it was is an attribute of the record."""
    fluxbase_server.on(BOT).say("Hi")
    with FluxbaseAIChat(fluxbase_server.url, on_content=lambda _: 1 / 0) as chat:
        turn = chat.conversation(BOT).send("hello")
        turn.wait()
    (record,) = [r for r in caplog.records if r.name == "fluxbase_aichat.callbacks"]
    assert turn.conversation_id == record.__dict__["conversation_id"]
    assert "ZeroDivisionError" in caplog.text


def test_the_library_is_silent_by_itself() -> None:
    """Without a handler of the application nothing reaches its standard error."""
    script = (
        "import logging; from fluxbase_aichat import FluxbaseAIChat\n"
        "with FluxbaseAIChat('demo:', on_content=lambda _: 1 / 0) as chat:\n"
        "    chat.conversation('support').send('say Hi').wait()\n"
        "assert logging.root.handlers == []\n"
    )
    ran = subprocess.run(  # noqa: S603 - our own
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert ("", "") == (ran.stdout, ran.stderr)


def demo(level: str) -> subprocess.CompletedProcess[str]:
    """Run the demo without a terminal."""
    return subprocess.run(
        [sys.executable, "-m", "fluxbase_aichat", "demo"],
        env=os.environ | {"FLUXBASE_AICHAT_LOG": level},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=50,
        check=False,
    )


def test_the_command_line_shows_the_log_when_asked() -> None:
    """At `debug` with the turns and their ids, at `info` with the connection alone."""
    ran = demo("debug")
    assert 0 == ran.returncode
    assert "INFO fluxbase_aichat.connection: connected\n" in ran.stderr
    assert " DEBUG fluxbase_aichat.turn: an answer is whole [chatbot=sql-assistant " in ran.stderr
    ran = demo("INFO")
    assert "connected" in ran.stderr
    assert "DEBUG" not in ran.stderr
    assert "" == demo("").stderr


def test_a_level_that_does_not_exist() -> None:
    """The command says which ones do, and does nothing."""
    ran = demo("loud")
    assert (2, "") == (ran.returncode, ran.stdout)
    assert "must be one of debug, info, warning, error, not 'loud'" in ran.stderr
