"""`fluxbase-aichat ask`: where the answer goes, who asks, and what ends it."""

# ruff: noqa: F401, F811 - fixtures are imported by name

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from commands import (
    COMMAND,
    DEADLINE,
    ESCAPE,
    ROOT,
    Process,
    environment,
    failure,
    home,
    interruptible,
    invoke,
    run,
    server,
    variables,
)
from servers import Gate, refusing_port

from fluxbase_aichat import FluxbaseAI, Reply
from fluxbase_aichat.cli._app import app
from fluxbase_aichat.cli._errors import exit_code, hint_of, message_of
from fluxbase_aichat.devserver import DevServer
from fluxbase_aichat.stored import ConversationSummary

BOT = "sql-assistant"
KEEPER = "keeper"
"""Its conversations are stored."""
FULL = Path("/dev/full")
EVIL = f"{ESCAPE}]0;owned\x07{ESCAPE}[2J\x9b31m\u202e"
"""A title, a cleared screen, red, and a turned direction of writing."""


def questions(server: DevServer) -> list[str]:
    return [r.frame["content"] for r in server.received if r.frame["type"] == "message"]


# -- the answer -------------------------------------------------------------------------------


def test_the_answer_is_on_stdout_and_its_cost_on_stderr(server) -> None:
    """So a pipe gets the answer and nothing else; it is plain text."""
    ran = run("ask", BOT, "Show me the top 10 users by order count", **variables(server))
    assert 0 == ran.returncode
    assert "The top user is Calm Heron with 34 orders." in ran.stdout
    assert "Calm Heron         34   4076.60\n" in ran.stdout
    assert "tokens" not in ran.stdout
    assert "[thinking]" not in ran.stdout
    assert ran.stdout.startswith("Let me count the orders")
    assert ran.stderr.startswith("444 tokens (418 read, 26 written) · ")
    assert ESCAPE not in ran.stdout + ran.stderr


@pytest.mark.parametrize("arguments", [(), ("-",)], ids=str)
def test_the_question_comes_from_a_pipe(server, arguments) -> None:
    """All of it, without the blanks round it, and whatever system has written it."""
    result = invoke(server, "ask", BOT, *arguments, input="\ufeffsay one\r\nsay two\n\n")
    assert result.exception is None
    assert ["say one\nsay two"] == questions(server)


@pytest.mark.parametrize(
    ("data", "told"), [(b"", "is empty"), (b" \n", "is empty"), (b"\xff", "not text in UTF-8")]
)
def test_a_pipe_without_a_question_is_a_wrong_call(server, data, told) -> None:
    """Nothing is sent."""
    result = invoke(server, "ask", BOT, input=data)
    assert 2 == result.exception.exit_code
    assert told in result.exception.message
    assert 0 == server.connections


def test_a_question_that_is_no_text(server) -> None:
    """Bytes of another encoding are a wrong call, and nothing is sent."""
    ran = run("ask", BOT, "say \udcff", **variables(server))
    assert 2 == ran.returncode
    assert "the QUESTION is not text in UTF-8: is the locale right?" in ran.stderr
    assert 0 == server.connections


def test_no_question_at_a_terminal_is_a_wrong_call(server) -> None:
    """It does not wait for one that nobody knows to type."""
    with Process("ask", BOT, terminal=True, **variables(server)) as ask:
        code, text = ask.end()
    assert 2 == code
    assert "there is no QUESTION" in text


def test_json_is_the_whole_reply(server) -> None:
    """In one line, as `Reply.to_dict` has it: another process builds the reply again."""
    result = invoke(server, "ask", BOT, "How many users are there?", "--json")
    assert 1 == result.stdout.count("\n")
    reply = Reply.from_dict(json.loads(result.stdout))
    assert "**30** users" in reply.text
    assert [30] == [row["count"] for row in reply.table]
    assert reply.conversation_id
    assert "" == result.stderr


def test_numbers_in_json_are_numbers(server) -> None:
    """And none that only this library reads."""
    result = invoke(server, "ask", BOT, "sql SELECT 12.5 AS a", "--json")
    assert [{"a": 12.5}] == json.loads(result.stdout)["query_results"][0]["data"]


def test_csv_is_the_last_table(server) -> None:
    """Nothing is cut, whatever the width."""
    long = "long " * 50
    sql = f"SELECT 'a,b' AS a, NULL AS b, 12.5 AS c, '{long}' AS d"
    result = invoke(server, "ask", BOT, f"sql {sql}", "--csv")
    assert result.exception is None
    header, row = csv.reader(io.StringIO(result.stdout))
    assert ["a", "b", "c", "d"] == header
    assert ["a,b", "", "12.50", long] == row


def test_csv_of_an_answer_without_rows_is_an_error(server) -> None:
    """It is no empty file that looks like an answer."""
    result = invoke(server, "ask", BOT, "say one", "--csv")
    assert "the answer has no query result" == str(failure(result))
    assert "" == result.stdout


def test_s08_escapes_in_the_servers_text_are_stripped(server) -> None:
    """In an answer, a table, CSV and JSON, in a terminal too: none reaches it."""
    script = f"say {EVIL}hello\nsql SELECT '{EVIL}value' AS \"{EVIL}name\""
    for form in ((), ("--csv",), ("--json",)):
        result = invoke(server, "ask", BOT, script, *form)
        assert result.exception is None
        assert not set(EVIL) - set("]0;owned[2J31m") & set(result.output), form
        assert "value" in result.output
    assert "\\u001b" in result.stdout  # JSON keeps them, in a form that no terminal obeys
    with Process("ask", BOT, script, terminal=True, TERM="xterm", **variables(server)) as ask:
        code, _ = ask.end()
        assert 0 == code
        assert b"owned" not in ask._raw
        assert b"\x1b[2J" not in ask._raw
        assert b"value" in ask._raw


def test_s08_escapes_in_an_error_are_stripped(server) -> None:
    """What the server says of a failure is its text too."""
    ran = run("ask", f"{EVIL}nobody", "hello", **variables(server))
    assert 1 == ran.returncode
    assert ESCAPE not in ran.stderr
    assert "\x07" not in ran.stderr


# -- in a terminal ----------------------------------------------------------------------------


def test_a_terminal_gets_blocks_and_a_spinner() -> None:
    """What is complete stays; the spinner is gone at the end."""
    gate = Gate()
    with (
        DevServer(pause=lambda _: gate.is_open or gate.wait(30)) as server,
        Process(
            "ask", BOT, "say **One**.\n\npause 1\nsay Two.", terminal=True,
            TERM="xterm-256color", **variables(server),
        ) as ask,
    ):  # fmt: skip
        ask.until("One.")
        gate.open()
        code, rest = ask.end()
    assert 0 == code
    assert "Two." in rest
    assert " tokens (" in rest


def test_a_pipe_with_a_terminal_beside_it_gets_a_spinner_there() -> None:
    """It turns on stderr, and the pipe has the answer alone."""
    gate = Gate()
    end, inner = os.openpty()
    with (
        DevServer(pause=lambda _: gate.is_open or gate.wait(30)) as server,
        subprocess.Popen(  # noqa: S603 - our own command
            [*COMMAND, "ask", BOT, "pause 1\nsay One."],
            cwd=ROOT,
            env=environment(TERM="xterm-256color", **variables(server)),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=inner,
        ) as process,
    ):
        os.close(inner)
        shown = b""
        while b"Generating response..." not in shown:
            shown += os.read(end, 4096)
        gate.open()
        assert process.stdout is not None
        assert b"One.\n" == process.stdout.read()
        assert 0 == process.wait(DEADLINE)
    os.close(end)


def test_ctrl_c_cancels_and_leaves() -> None:
    """The server is told, the exit code is the shell's, and there is no traceback."""
    gate = Gate()
    with (
        DevServer(pause=lambda _: gate.is_open or gate.wait(30)) as server,
        Process("ask", BOT, "say Begun\npause 1", terminal=True, TERM="xterm-256color",
                **variables(server)) as ask,
    ):  # fmt: skip
        ask.until("Begun")
        ask.type("\x03")
        code, rest = ask.end()
        gate.open()
        assert server.wait_for(lambda: "cancel" in [r.frame["type"] for r in server.received])
    assert 130 == code
    assert "Cancelled." in rest
    assert "Traceback" not in rest


def test_a_reader_who_leaves_gets_no_traceback(server) -> None:
    """`fluxbase-aichat ask ... | head -1` is quiet."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        ran = subprocess.run(  # noqa: S603 - our own command
            [*COMMAND, "ask", BOT, "say one"],
            cwd=ROOT,
            env=environment(**variables(server)),
            stdin=subprocess.DEVNULL,
            stdout=writer,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            timeout=DEADLINE,
            check=False,
        )
    finally:
        os.close(writer)
    assert 1 == ran.returncode
    assert "Traceback" not in ran.stderr


@pytest.mark.skipif(not FULL.exists(), reason="a device that is always full")
@pytest.mark.parametrize(
    "arguments",
    [
        ("--help",),
        ("bots",),
        ("doctor",),
        ("ask", BOT, "say one"),
        ("ask", BOT, "say one", "--json"),
        ("chat", BOT),
        ("serve", "--port", "0"),
    ],
    ids=str,
)
def test_an_output_that_cannot_be_written(server, arguments) -> None:
    """It is told in a line, once, and the exit code says that something is missing."""
    with FULL.open("wb") as full:
        ran = subprocess.run(  # noqa: S603 - our own command
            [*COMMAND, *arguments],
            cwd=ROOT,
            env=environment(PYTHONUNBUFFERED="", **variables(server)),
            input="say one\n",
            stdout=full,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            timeout=DEADLINE,
            check=False,
        )
    assert 1 == ran.returncode
    (line,) = [line for line in ran.stderr.splitlines() if " tokens (" not in line]
    assert "Error: cannot write the output: No space left on device" == line


@pytest.mark.parametrize(
    ("code", "arguments"),
    [(0, ("ask", BOT, "say one")), (2, ("ask", BOT)), (0, ("chat", BOT)), (2, ("login", "ann"))],
)
def test_a_process_without_standard_streams(server, code, arguments) -> None:
    """A service manager may give it none; that is no traceback."""
    command = "import os, sys; os.closerange(0, 3); os.execv(sys.executable, sys.argv[1:])"
    ran = subprocess.run(  # noqa: S603 - our own command
        [sys.executable, "-c", command, *COMMAND, *arguments],
        cwd=ROOT,
        env=environment(**variables(server)),
        timeout=DEADLINE,
        check=False,
    )
    assert code == ran.returncode


# -- going on ---------------------------------------------------------------------------------


def test_going_on_with_a_conversation(server) -> None:
    """With the last one, with one by its id, by the beginning of its id, or with a new one."""
    first = json.loads(invoke(server, "ask", KEEPER, "say one", "--json").stdout)["conversation_id"]
    for option in (("-c",), ("--cid", first), ("--cid", first[:10].upper())):
        result = invoke(server, "ask", KEEPER, "say more", "--json", *option)
        assert first == json.loads(result.stdout)["conversation_id"], option
    other = json.loads(invoke(server, "ask", KEEPER, "say new", "--json").stdout)["conversation_id"]
    assert first != other
    stored = FluxbaseAI(server.url, server.token()).get_conversation(first)
    asked = [message.content for message in stored.messages if message.role == "user"]
    assert ["say one", "say more", "say more", "say more"] == asked


def test_nothing_to_go_on_with(server) -> None:
    """Each is told with what would be right, and begins no conversation."""
    error = failure(invoke(server, "ask", BOT, "hello", "-c"))
    assert "no stored conversation with sql-assistant" in str(error)
    assert "leave --continue out" in error.hint
    error = failure(invoke(server, "ask", BOT, "hello", "--cid", "abc"))
    assert "no conversations have an id that begins with 'abc'" in str(error)
    assert "`history` lists them" == error.hint
    for option in ("--cid", ""), ("--cid", " "):
        assert "is empty" in str(failure(invoke(server, "ask", BOT, "hello", *option)))
    result = invoke(server, "ask", BOT, "hello", "-c", "--cid", "abc")
    assert "exclude each other" in str(result.exception)
    assert [] == questions(server)


def test_an_ambiguous_id(server, monkeypatch) -> None:
    """None of them is taken."""
    same = [ConversationSummary(id=f"abc{n}") for n in range(2)]
    monkeypatch.setattr(FluxbaseAI, "iter_conversations", lambda _: iter(same))
    error = failure(invoke(server, "ask", BOT, "hello", "--cid", "abc"))
    assert "2 conversations have an id that begins with 'abc'" in str(error)
    assert "write more of it" == error.hint
    assert [] == questions(server)


# -- who asks, and where ----------------------------------------------------------------------


def test_a_token_on_the_command_line_is_warned_of(server) -> None:
    """It works, and the warning does not show it."""
    token = server.token("bob")
    result = invoke(server, "ask", KEEPER, "say one", "--token", token)
    assert "Warning: a token on the command line" in result.stderr
    assert token not in result.output
    assert 1 == FluxbaseAI(server.url, token).list_conversations().total


def test_a_token_from_a_file(server, tmp_path) -> None:
    """It goes before the environment's, and its newline is no part of it."""
    file = tmp_path / "token"
    file.write_text(f"{server.token('bob')}\n")
    result = invoke(server, "ask", KEEPER, "say one", "--token-file", str(file))
    assert result.exception is None
    assert "Warning" not in result.stderr
    assert 1 == FluxbaseAI(server.url, server.token("bob")).list_conversations().total


@pytest.mark.parametrize(
    ("content", "told"), [(b"", "there is no token in it"), (b"\xff\xfe", "it is not text")]
)
def test_a_token_file_without_a_token(server, tmp_path, content, told) -> None:
    """The anonymous call that it looks like is not made."""
    file = tmp_path / "token"
    file.write_bytes(content)
    result = invoke(server, "ask", BOT, "hello", "--token-file", str(file))
    assert 2 == result.exception.exit_code
    assert told in result.exception.message
    assert 0 == server.connections


def test_two_tokens_are_a_wrong_call(server, tmp_path) -> None:
    """Neither is guessed."""
    (tmp_path / "token").write_text("x")
    file = str(tmp_path / "token")
    result = invoke(server, "ask", BOT, "hello", "--token", "x", "--token-file", file)
    assert 2 == result.exception.exit_code


def test_a_file_without_certificates(server, tmp_path) -> None:
    """The message names the option's file."""
    (tmp_path / "ca.pem").write_text("none")
    result = invoke(server, "ask", BOT, "hello", "--ca-file", str(tmp_path / "ca.pem"))
    assert 2 == result.exception.exit_code
    assert "no certificates" in result.exception.message


def test_the_names_of_chatbots_help_with_a_wrong_one(server) -> None:
    """The hint has what was probably meant."""
    error = failure(invoke(server, "ask", "sql-asistant", "hello"))
    assert "did you mean sql-assistant?" == error.hint
    error = failure(invoke(server, "ask", BOT, "hello", "--namespace", "nowhere"))
    assert "it is in the namespace default: use --namespace" == error.hint


def test_the_demo_needs_no_server() -> None:
    """`--url demo:` is a dev server in the process."""
    result = CliRunner().invoke(app, ["ask", "--url", "demo:", BOT, "How many users are there?"])
    assert 0 == result.exit_code
    assert "There are 30 users" in result.stdout


def test_an_answer_that_takes_too_long() -> None:
    """`--timeout` bounds it; what has come is shown."""
    gate = Gate()
    with DevServer(pause=lambda _: gate.is_open or gate.wait(30)) as server:
        result = invoke(server, "ask", BOT, "say Begun\npause 1", "--timeout", "0.5")
        gate.open()
    assert 3 == exit_code(failure(result))
    assert "Begun" in result.stdout


# -- exit codes -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "arguments", "token"),
    [
        (0, ("ask", BOT, "say one"), None),
        (1, ("ask", BOT, "fail"), None),
        (1, ("ask", "nobody", "hello"), None),
        (2, ("ask", BOT, "hello", "--url", "ftp://x"), None),
        (2, ("ask", BOT, "hello", "--timeout", "0"), None),
        (2, ("ask", BOT, "hello", "--timeout", "nan"), None),
        (2, ("ask", BOT, "hello", "--timeout", "inf"), None),
        (2, ("ask", BOT, "hello", "--token", " "), None),
        (2, ("ask",), None),
        (2, ("ask", BOT, "a", "b"), None),
        (4, ("ask", BOT, "hello"), "wrong"),
    ],
)
def test_exit_codes(server, code, arguments, token) -> None:
    """A script can tell one from the other, and a person reads a line or two."""
    ran = run(*arguments, **variables(server, token))
    assert code == ran.returncode, ran
    assert "Traceback" not in ran.stderr
    if code:
        assert "Error: " in ran.stderr
        assert "" == ran.stdout


def test_the_exit_code_without_a_server() -> None:
    """It is not that of a failed answer: trying again may help."""
    with refusing_port() as port:
        ran = run("ask", BOT, "hello", FLUXBASE_URL=f"ws://127.0.0.1:{port}")
    assert 3 == ran.returncode
    assert ran.stderr.startswith("Error: cannot connect to ")


def test_no_url_is_told_with_where_it_goes() -> None:
    """In two lines."""
    ran = run("ask", BOT, "hello", FLUXBASE_URL="")
    assert 2 == ran.returncode
    assert (
        "Error: FLUXBASE_URL is not set\n"
        "Hint: it is the server's URL, such as wss://example.com; --url names it too\n"
    ) == ran.stderr


@pytest.mark.parametrize("url", ["example.com", "ftp://x", "http://u:p@x", "http://x#y", "http://"])
@pytest.mark.parametrize("command", [("ask", BOT, "hello"), ("bots",), ("login", "ann")], ids=str)
def test_a_url_that_is_none(server, command, url) -> None:
    """Each command says so in the same words, which are not those of Python."""
    error = failure(invoke(server, *command, "--url", url))
    assert str(error).startswith("the URL ")
    assert "token=" not in hint_of(error) + message_of(error)


def test_the_demo_needs_no_login() -> None:
    """And has none to forget."""
    for arguments in (("ann@example.com",), ("--forget",)):
        ran = run("login", *arguments, FLUXBASE_URL="demo:")
        assert 2 == ran.returncode
        assert "the demo needs no login" in ran.stderr


@pytest.mark.parametrize("faults", [{"status": 429}], ids=str)
def test_the_exit_code_of_a_limit(server, faults) -> None:
    """Later is better."""
    server.faults.set(**faults)
    assert 5 == exit_code(failure(invoke(server, "ask", BOT, "hello")))
