"""`fluxbase-aichat chat`: a conversation in a terminal, and without one."""

# ruff: noqa: F401, F811 - fixtures are imported by name

from __future__ import annotations

import json
import stat
import subprocess

import pytest
from click.testing import CliRunner, Result
from commands import (
    COMMAND,
    DEADLINE,
    ESCAPE,
    PROMPT,
    ROOT,
    Process,
    environment,
    failure,
    home,
    interruptible,
    invoke,
    server,
    variables,
)
from servers import Gate

from fluxbase_aichat import ConnectError, Conversation, ConversationNotResumedError, FluxbaseAI
from fluxbase_aichat.cli._app import app
from fluxbase_aichat.cli._errors import hint_of
from fluxbase_aichat.cli._typed import typed_file
from fluxbase_aichat.devserver import DevServer


def chat(server: DevServer, *lines: str, bot: str = "keeper", options=()) -> Result:
    """Hold a chat without a terminal."""
    text = "".join(f"{line}\n" for line in lines)
    return CliRunner().invoke(app, ["chat", bot, *options], input=text, env=variables(server))


def terminal(server: DevServer, *arguments: str) -> Process:
    return Process("chat", *arguments, terminal=True, TERM="xterm-256color", **variables(server))


def asked(server: DevServer) -> list[tuple[str, str]]:
    """Return what was asked, each with the chatbot that was started last before it."""
    found, bot = [], ""
    for received in server.received:
        bot = received.frame.get("chatbot", bot)
        if received.frame["type"] == "message":
            found.append((bot, received.frame["content"]))
    return found


# -- without a terminal -----------------------------------------------------------------------


def test_lines_are_questions_of_one_conversation(server) -> None:
    """The answers alone are on stdout."""
    result = chat(server, "say one", "", "say two")
    assert (0, "one\n\ntwo\n") == (result.exit_code, result.stdout)
    assert 2 == result.stderr.count(" tokens (")
    (summary,) = FluxbaseAI(server.url, server.token()).list_conversations()
    assert 4 == summary.message_count


def test_questions_of_several_lines(server) -> None:
    """By a backslash at the end, or between three quotes."""
    chat(server, "say one\\", "say two", '"""', "/say", "", "  three\\", '"""')
    assert ["say one\nsay two", "/say\n\n  three\\"] == [text for _, text in asked(server)]


def test_lines_of_another_system(server) -> None:
    """A mark at the beginning and carriage returns are no part of a question or a command."""
    text = (
        b'\xef\xbb\xbf/bot support\r\nsay one\\\r\nsay caf\xc3\xa9\r\n"""\r\nsay three\r\n"""\r\n'
    )
    ran = subprocess.run(  # noqa: S603 - our own command
        [*COMMAND, "chat", "keeper"],
        cwd=ROOT,
        env=environment(PYTHONIOENCODING="ascii", **variables(server)),
        input=text,
        capture_output=True,
        timeout=DEADLINE,
        check=False,
    )
    assert (0, b"onecaf?\n\nthree\n") == (ran.returncode, ran.stdout)
    assert [("support", "say one\nsay café"), ("support", "say three")] == asked(server)


def test_a_block_that_does_not_end_is_not_sent(server) -> None:
    """Half of a question is none."""
    assert 0 == chat(server, '"""', "say one").exit_code
    assert [] == asked(server)


def test_switching_chatbots(server) -> None:
    """Coming back goes on with the conversation that was left; /new does not."""
    result = chat(
        server, "say one", "/bot support", "say two", "/bot keeper", "say three", "/new", "say four"
    )
    assert 0 == result.exit_code
    assert ["keeper", "support", "keeper", "keeper"] == [bot for bot, _ in asked(server)]
    api = FluxbaseAI(server.url, server.token())
    counts = [summary.message_count for summary in api.list_conversations()]
    assert [2, 4] == sorted(counts)


def test_a_new_conversation_that_does_not_begin(server, monkeypatch) -> None:
    """The one before is not forgotten: coming back goes on with it."""
    begin, calls = Conversation.start, []

    def start(conversation: Conversation, **options) -> str:
        calls.append(conversation.chatbot)
        if len(calls) == 2:
            raise ConnectError("no")
        return begin(conversation, **options)

    monkeypatch.setattr(Conversation, "start", start)
    result = chat(server, "/cid", "/new", "/bot support", "/bot keeper", "/cid")
    first, last = result.stdout.split()
    assert first == last
    assert "Error: no\n" in result.stderr
    assert ["keeper", "keeper", "support", "keeper"] == calls


def test_a_conversation_that_the_server_has_lost(server) -> None:
    """It is said what begins another, in the words of each command."""
    missing = "00000000-0000-4000-8000-000000000000"
    error = failure(invoke(server, "ask", "sql-assistant", "say one", "--cid", missing))
    assert "without --continue and --cid it is a new one" == hint_of(error)

    def forget(_: object, received: object) -> None:
        raise ConversationNotResumedError("lost", hint=hint)

    hint = "the new one is usable under its own id"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Conversation, "send", forget)
        result = chat(server, "say one")
    assert "Error: lost\nHint: /new begins a new one\n" == result.stderr


def test_the_commands(server) -> None:
    """Each does what /help says."""
    first = chat(server, "say one", "/cid").stdout.split()[-1]
    result = chat(server, "say two", f"/cid {first[:8]}", "say three", "/history", "/bots", "/help")
    assert 0 == result.exit_code
    for part in ("two", "say one", "three", "say three", "sql-assistant", "/quit"):
        assert part in result.stdout
    shown = result.stdout[result.stdout.index("/bots   ") :]
    assert max(map(len, shown.splitlines())) <= 79, "in a terminal of 80 columns no line is broken"
    stored = FluxbaseAI(server.url, server.token()).get_conversation(first)
    assert ["say one", "one", "say three", "three"] == [m.content for m in stored.messages]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("/nope", "/nope is no command"),
        ("/bot", "/bot is no command, or has other arguments"),
        ("/bto keeper", "Hint: did you mean /bot? /help shows them"),
        ("/bot nobody", "not found"),
        ("/cid zz", "no conversations have an id that begins with 'zz'"),
        ("fail", "STREAM_ERROR"),
    ],
)
def test_what_is_wrong_is_told_and_the_chat_goes_on(server, line, told) -> None:
    """With the chatbot as before; the exit code says that something was."""
    result = chat(server, line, "say still here")
    assert 1 == result.exit_code
    assert told in result.stderr
    assert "still here" in result.stdout
    assert "say still here" == asked(server)[-1][1]


def test_what_is_no_text_is_a_wrong_call(server) -> None:
    """And no traceback."""
    result = CliRunner().invoke(app, ["chat", "keeper"], input=b"\xff\n", env=variables(server))
    assert 2 == result.exit_code
    assert "not text in UTF-8" in result.stderr
    assert [] == asked(server)


def test_quitting(server) -> None:
    """Nothing behind it is asked."""
    assert 0 == chat(server, "say one", "/quit", "say two").exit_code
    assert [("keeper", "say one")] == asked(server)


def test_going_on(server) -> None:
    """`-c` and `--cid` as with `ask`."""
    chat(server, "say one")
    chat(server, "say two", options=("-c",))
    api = FluxbaseAI(server.url, server.token())
    (summary,) = [found for found in api.list_conversations() if found.message_count]
    chat(server, "say three", options=("--cid", summary.id))
    assert 6 == len(api.get_conversation(summary.id).messages)


def test_s08_escapes_in_a_chat_are_stripped(server) -> None:
    """In answers, errors and the stored history."""
    evil = f"{ESCAPE}]0;owned\x07{ESCAPE}[2J"
    result = chat(server, f"say {evil}text", "/history", f"/{evil}", f"/bot {evil}")
    assert "text" in result.stdout
    assert ESCAPE not in result.output
    assert "\x07" not in result.output


def test_answers_as_json_and_csv(server) -> None:
    """A line, or a table, for each; an answer without a table fails."""
    result = chat(server, "say one", "say two", options=("--json",))
    assert ["one", "two"] == [json.loads(line)["text"] for line in result.stdout.splitlines()]
    result = chat(server, "How many users are there?", "say two", options=("--csv",))
    assert (1, "count\n30\n") == (result.exit_code, result.stdout)
    assert "the answer has no query result" in result.stderr


# -- in a terminal ----------------------------------------------------------------------------


def test_a_chat_in_a_terminal(server) -> None:
    """The prompt names the chatbot; Ctrl-D leaves."""
    with terminal(server, "sql-assistant") as talk:
        talk.until("You are talking to sql-assistant.", f"sql-assistant {PROMPT}")
        talk.type("How many users are there per country?\r")
        talk.until("Hungary       8", " tokens", PROMPT)
        talk.type("/bot support\r")
        talk.until(f"support {PROMPT}")
        talk.type("say one \\\r")
        talk.until("... ")
        talk.type("say two\r")
        talk.until(" tokens", PROMPT)
        talk.type("\x04")
        code, rest = talk.end()
    assert 0 == code
    assert "Traceback" not in rest
    assert ("support", "say one \nsay two") == asked(server)[-1]


def test_the_arrow_keys_know_the_last_chat(server) -> None:
    """What was typed is kept as soon as it is, and readable by its owner alone."""
    with terminal(server, "keeper") as talk:
        talk.until(PROMPT)
        talk.type("say one\r")
        talk.until(" tokens", PROMPT)
        assert "say one" in typed_file().read_text()
    assert 0o600 == stat.S_IMODE(typed_file().stat().st_mode)
    with terminal(server, "keeper") as talk:
        talk.until(PROMPT)
        talk.type(f"{ESCAPE}[A\r")
        talk.until(" tokens", PROMPT)
    assert [("keeper", "say one")] * 2 == asked(server)


def test_ctrl_c_cancels_the_turn_and_twice_leaves() -> None:
    """The first is the answer's end; the next, at the prompt, the chat's."""
    gate = Gate()
    with (
        DevServer(pause=lambda _: gate.is_open or gate.wait(30)) as server,
        terminal(server, "keeper") as talk,
    ):
        talk.until(PROMPT)
        talk.type("say Begun\npause 1\r".replace("\n", "\\\r"))
        talk.until("Begun", "Begun")  # once as it is typed
        talk.type("\x03")
        talk.until("Cancelled.", PROMPT)
        gate.open()
        talk.type("say still here\r")
        talk.until(" tokens", PROMPT)
        talk.interrupt_at_prompt()
        code, rest = talk.end()
    assert 130 == code
    assert "Traceback" not in rest


def test_ctrl_c_behind_a_cancel_leaves() -> None:
    """Cancelling was the first."""
    gate = Gate()
    with (
        DevServer(pause=lambda _: gate.is_open or gate.wait(30)) as server,
        terminal(server, "keeper") as talk,
    ):
        talk.until(PROMPT)
        talk.type("flood 3 3\\\rpause 1\r")
        talk.until("xxx")
        talk.type("\x03")
        talk.until("Cancelled.", PROMPT)
        talk.interrupt_at_prompt()
        code, rest = talk.end()
        gate.open()
    assert 130 == code
    assert "Ctrl-C again" not in rest
