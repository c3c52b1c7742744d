"""The command line as a person meets it: processes of their own, some of them in a terminal."""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner
from commands import (
    COMMAND,
    DEADLINE,
    ESCAPE,
    PROMPT,
    ROOT,
    Process,
    environment,
    interruptible,  # noqa: F401 - a fixture
    run,
)
from rich.console import Console

from fluxbase_aichat import FluxbaseAIChat, ProviderError, QueryResult, cli, results
from fluxbase_aichat._harmless import harmless
from fluxbase_aichat.cli import _screen
from fluxbase_aichat.cli._app import app
from fluxbase_aichat.cli._paragraphs import Paragraphs
from fluxbase_aichat.cli._screen import Screen
from fluxbase_aichat.cli.demo import QUESTIONS
from fluxbase_aichat.devserver import DevServer

# -- the demo without a terminal --------------------------------------------------------------


def test_the_demo_without_a_terminal_runs_its_questions() -> None:
    """Every question gets its progress, SQL, table, words and tokens; then it ends well."""
    ran = run("demo")
    assert (0, "") == (ran.returncode, ran.stderr)
    position = 0
    for part in (
        QUESTIONS[0],
        "[thinking] Thinking...",
        "Let me count the orders of each user.",
        "[querying] Executing: users by orders",
        "SELECT u.name, count(*) AS orders",
        "name           orders   revenue\n",
        "Calm Heron         34   4076.60\n",
        "The top user is Calm Heron with 34 orders.",
        "444 tokens (418 read, 26 written) · ",
        QUESTIONS[1],
        "Dapper Heron   4604.70       27\n",
        QUESTIONS[2],
        "2025-03-01   5232.50       35\n",
        QUESTIONS[3],
        "Query failed to execute",
        "I could not answer that",
    ):
        position = ran.stdout.index(part, position) + len(part)


@pytest.mark.parametrize("variables", [{}, {"FORCE_COLOR": "1"}, {"TTY_COMPATIBLE": "1"}], ids=str)
def test_the_demo_without_a_terminal_is_plain_text(variables: dict[str, str]) -> None:
    """Nothing in it moves a cursor or sets a colour, whatever the environment wants."""
    ran = run("demo", **variables)
    assert 0 == ran.returncode
    assert ESCAPE not in ran.stdout
    assert "\r" not in ran.stdout


def test_the_demo_prints_to_a_terminal_of_an_old_encoding() -> None:
    """What ASCII lacks is replaced; nothing fails."""
    ran = run("demo", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert (0, "") == (ran.returncode, ran.stderr)
    assert f"> {QUESTIONS[0]}\n" in ran.stdout


def test_a_reader_who_leaves_gets_no_traceback() -> None:
    """`fluxbase-aichat demo | head -1` is quiet."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        ran = subprocess.run(  # noqa: S603 - our own command
            [*COMMAND, "demo"],
            cwd=ROOT,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=writer,
            stderr=subprocess.PIPE,
            timeout=DEADLINE,
            check=False,
        )
    finally:
        os.close(writer)
    assert (1, b"") == (ran.returncode, ran.stderr)


# -- the demo in a terminal -------------------------------------------------------------------


def test_the_demo_in_a_terminal_takes_questions() -> None:
    """After its own questions it answers the user's, until an empty line."""
    with Process("demo", terminal=True, TERM="xterm-256color") as demo:
        demo.until(*QUESTIONS, "Now you", PROMPT)
        demo.type("How many users are there per country?\r")
        demo.until("country   users", "Hungary       8", "from 5 countries", " tokens", PROMPT)
        demo.type("/quit\r")
        assert 0 == demo.end()[0]


def test_ctrl_c_cancels_an_answer_and_the_chat_goes_on() -> None:
    """The answer ends, the next question is answered in the same conversation; Ctrl-D ends it."""
    with Process("demo", terminal=True, TERM="xterm-256color") as demo:
        demo.until("Now you", PROMPT)
        demo.type("flood 5000 3\r")
        demo.until("xxx")
        demo.type("\x03")
        assert "Traceback" not in demo.until("Cancelled.", PROMPT)
        demo.type("say still here\r")
        demo.until("still here", " tokens", PROMPT)
        demo.type("\x04")
        assert 0 == demo.end()[0]


def test_ctrl_c_at_the_prompt_ends_the_demo() -> None:
    """It ends well, without a traceback."""
    with Process("demo", terminal=True, TERM="xterm-256color") as demo:
        demo.until("Now you", PROMPT)
        demo.interrupt_at_prompt()
        code, rest = demo.end()
        assert 0 == code
        assert "Traceback" not in rest


def test_ctrl_c_during_the_demos_questions_cancels_the_one() -> None:
    """The next of them follows."""
    with Process("demo", terminal=True, TERM="xterm-256color") as demo:
        demo.until(QUESTIONS[0], "Let me")
        demo.type("\x03")
        shown = demo.until(QUESTIONS[1])
        assert "Cancelled." in shown
        demo.until("The top user by revenue", "Now you", PROMPT)
        demo.type("\x04")
        assert 0 == demo.end()[0]


def test_an_error_in_the_users_chat_is_a_line() -> None:
    """A failing answer is told, and the next question can be asked."""
    with Process("demo", terminal=True, TERM="xterm-256color") as demo:
        demo.until("Now you", PROMPT)
        demo.type("fail\r")
        shown = demo.until("Error: Error generating response (STREAM_ERROR)", PROMPT)
        assert "Traceback" not in shown
        demo.type("cut\r")
        demo.until("Error: ", PROMPT)
        demo.type("say back again\r")
        demo.until("back again", PROMPT)
        demo.type("\r")
        assert 0 == demo.end()[0]


def test_a_terminal_that_can_do_nothing_gets_plain_text() -> None:
    """No cursor is moved in one without the means."""
    with Process("demo", terminal=True, TERM="dumb") as demo:
        demo.until(*QUESTIONS, "Now you", PROMPT)
        demo.type("\x04")
        assert 0 == demo.end()[0]


# -- serve ------------------------------------------------------------------------------------


def test_serve_says_how_to_connect_and_answers() -> None:
    """What it prints is enough for a client; Ctrl-C ends it with 0 and no traceback."""
    with Process("serve", "--port", "0", "--delay", "0") as serve:
        shown = serve.until("this run of the server only.\n")
        assert re.search(r"listens at http://127\.0\.0\.1:\d+;", shown)
        settings = dict(re.findall(r"^export (\w+)=(\S+)$", shown, re.MULTILINE))
        with FluxbaseAIChat(settings["FLUXBASE_URL"], token=settings["FLUXBASE_TOKEN"]) as chat:
            reply = chat.ask("sql-assistant", "How many orders are there?")
        assert "There are **420** orders" in reply.text
        serve.interrupt()
        assert (0, "\nThe dev server has ended.\n") == serve.end()


def test_what_serve_prints_can_be_pasted_into_a_shell() -> None:
    """The lines for another terminal work there as they are."""
    with Process("serve", "--port", "0", "--delay", "0") as serve:
        shown = serve.until("this run of the server only.\n")
        lines = shown[shown.index("export FLUXBASE_URL") : shown.index("\nThe token")]
        ran = subprocess.run(  # noqa: S603 - our own lines
            ["/bin/sh", "-c", lines],
            env=environment(),
            capture_output=True,
            encoding="utf-8",
            timeout=DEADLINE,
            check=False,
        )
        assert (0, "") == (ran.returncode, ran.stderr)
        assert "The top user is **Calm Heron**" in ran.stdout
        serve.interrupt()
        assert 0 == serve.end()[0]


def test_serve_on_a_port_in_use_is_told_in_a_line() -> None:
    """The error names the port."""
    with DevServer() as server:
        port = server.url.rpartition(":")[2]
        ran = run("serve", "--port", port)
    assert 1 == ran.returncode
    assert ran.stderr.startswith(f"Error: cannot listen on 127.0.0.1:{port}: ")
    assert 1 == ran.stderr.count("\n")


def test_serve_serves_this_machine_only() -> None:
    """Another address is refused in one readable line."""
    ran = run("serve", "--host", "0.0.0.0")  # noqa: S104 - which is the point
    assert 2 == ran.returncode
    assert "Error: the dev server serves loopback only, not '0.0.0.0'\n" == ran.stderr


@pytest.mark.parametrize("port", ["-1", "65536", "http"])
def test_a_port_that_is_none_is_a_wrong_call(port: str) -> None:
    """The exit code is that of a wrong call, and the message names the option."""
    ran = run("serve", "--port", port)
    assert 2 == ran.returncode
    assert "'--port'" in ran.stderr


# -- the command itself -----------------------------------------------------------------------


def test_help_lists_the_commands() -> None:
    """`--help` and no command at all say what there is."""
    ran = run("--help")
    assert 0 == ran.returncode
    commands = [
        "ask",
        "chat",
        "bots",
        "history",
        "batch",
        "login",
        "doctor",
        "demo",
        "serve",
        "completion",
    ]
    listed = ran.stdout.partition("Commands:\n")[2]
    assert commands == re.findall(r"^  (\w+)  .+$", listed, re.MULTILINE)
    assert ran.stdout == run().stderr


def test_a_slip_of_the_pen() -> None:
    """The command that was meant is named; where none is like it, none."""
    runner = CliRunner()
    assert "No such command 'hist'. Did you mean 'history'?" in runner.invoke(app, ["hist"]).stderr
    result = runner.invoke(app, ["zzzz"])
    assert result.stderr.endswith("No such command 'zzzz'.\n")
    assert 2 == result.exit_code


def test_version() -> None:
    """`--version` names the program."""
    ran = run("--version")
    assert 0 == ran.returncode
    assert ran.stdout.startswith("fluxbase-aichat, version ")


@pytest.mark.parametrize(
    ("module", "extra"), [("click", "cli"), ("rich", "cli"), ("wsproto", "devserver")]
)
def test_a_missing_extra_is_told_with_the_line_that_installs_it(
    module: str, extra: str, tmp_path: Path
) -> None:
    """One line on stderr, and the exit code of a wrong call."""
    (tmp_path / f"{module}.py").write_text(
        f"raise ModuleNotFoundError('no {module}', name='{module}')", encoding="utf-8"
    )
    ran = run("demo", first_on_path=str(tmp_path))
    assert (2, "") == (ran.returncode, ran.stdout)
    assert ran.stderr.startswith("Error: ")
    assert ran.stderr.endswith(f"needs {module}: pip install 'fluxbase-aichat[{extra}]'\n")
    assert 1 == ran.stderr.count("\n")


def test_the_library_needs_none_of_it() -> None:
    """`import fluxbase_aichat` imports neither click nor rich."""
    program = "import fluxbase_aichat, sys; print({'click', 'rich'} & set(sys.modules))"
    ran = subprocess.run(  # noqa: S603 - our own program
        [sys.executable, "-c", program],
        env=environment(),
        capture_output=True,
        encoding="utf-8",
        timeout=DEADLINE,
        check=True,
    )
    assert "set()\n" == ran.stdout


def test_ctrl_c_before_a_command_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes while modules are imported, and is no traceback either."""

    def interrupted() -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_open_streams", lambda: None)
    monkeypatch.setattr(cli, "_run", interrupted)
    assert 130 == cli.main()


# -- what is shown ----------------------------------------------------------------------------


@pytest.fixture
def console() -> Console:
    """Print into memory, 40 characters wide."""
    return Console(file=io.StringIO(), width=40, color_system=None, highlight=False)


def printed(console: Console) -> str:
    """Return what was printed."""
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def show(console: Console, *scripts: str) -> None:
    """Show the dev server's answers to some scripts."""
    with (
        DevServer() as server,
        FluxbaseAIChat(server.ws_url, token=server.token) as chat,
        contextlib.suppress(ProviderError),
    ):
        conversation = chat.conversation("sql-assistant")
        for script in scripts:
            Screen(console, live=False).answer(conversation.send(script))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain, zażółć 😀\n\ttext", "plain, zażółć 😀\n\ttext"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07after", "after"),
        ("\x1b]8;;http://example.com\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1bP1$r\x1b\\after", "after"),
        ("\x1bcreset \x1b(0graphics", "reset graphics"),
        ("\x9b31mred \x9d0;title\x9cafter", "red after"),
        ("a\x00b\x07c\x08d\x7fe\x85f\rg", "abcdefg"),
        ("one\r\ntwo", "one\ntwo"),
        ("\x1b[", "["),
        ("\x1b]0;no end", "]0;no end"),
        ("evil\u202egnp.exe\u2066", "evilgnp.exe"),
        ("half \ud83d", "half \ufffd"),
    ],
)
def test_text_is_made_harmless(text: str, expected: str) -> None:
    """No escape sequence and no control character but newline and tab is left."""
    assert expected == harmless(text)


def test_s08_the_servers_text_is_harmless_wherever_it_is_shown(console: Console) -> None:
    """Words, SQL, names of columns, values: none sends the terminal a sequence."""
    evil = f"{ESCAPE}]0;owned\x07{ESCAPE}[2J"
    show(console, f"say {evil}hello\nsql SELECT '{evil}value' AS \"{evil}name\"\n---\nfail")
    text = printed(console)
    assert ESCAPE not in text
    assert "hello" in text
    assert "name\n─" in text
    assert "value\n" in text


def test_a_table_is_cut_to_the_width(console: Console) -> None:
    """No line is longer than the terminal is wide; what was cut off is marked."""
    columns = ", ".join(f"'{'long ' * 20}' AS column_{i}" for i in range(4))
    show(console, f"sql SELECT {columns}, 12.5 AS number")
    lines = printed(console).splitlines()
    assert max(map(len, lines)) <= 40
    assert any("…" in line for line in lines)


def test_the_widest_column_is_cut_first() -> None:
    """What is short, such as an id to be copied, stays whole."""
    wide = Console(file=io.StringIO(), width=40, color_system=None)
    wide.print(_screen.table(("id", "about"), [{"id": "0123abcd", "about": "word " * 20}]))
    assert "0123abcd   word word word word word wor…\n" in printed(wide)


def test_columns_that_there_is_no_room_for_are_counted(console: Console) -> None:
    """Those before them can be read, each by its name; rich would draw the frame alone."""
    row = {f"column_{number}": number * 1000 for number in range(60)}
    console.print(_screen.table(list(row), [row]))
    head, _, values, more = printed(console).splitlines()
    assert ["col"] * 5 == [name[:3] for name in head.split()]
    assert ["0", "1000", "2000", "3000", "4000"] == values.split()
    assert "… and 55 more columns" == more


def test_columns_that_have_room_are_all_there(console: Console) -> None:
    """In no more room than they need; a narrower terminal leaves out the last of them."""
    row = dict.fromkeys(("abcd", "efgh", "ijkl", "mnop", "qrst", "uvwx"), 1)
    console.print(_screen.table(list(row), [row]))
    assert "abcd   efgh   ijkl   mnop   qrst   uvwx\n" in printed(console)
    console.width = 38
    console.print(_screen.table(list(row), [row]))
    assert printed(console).endswith("\n… and 1 more column\n")


def test_a_table_has_no_blanks_at_the_ends_of_its_lines(console: Console) -> None:
    """In a file they are of no use, and a copied line has them in it."""
    rows = [{"id": 1, "about": "short"}, {"id": 2, "about": "not so short"}, {"id": 3}]
    console.print(_screen.table(("id", "about"), rows))
    lines = printed(console).splitlines()
    assert [line.rstrip() for line in lines] == lines
    assert [" id   about", "  1   short", "  2   not so short", "  3   null"] == [
        line for line in lines if "─" not in line
    ]


@pytest.mark.parametrize(
    ("markdown", "expected"),
    [
        ("Use <name> and List<int>, <b>please</b>", "Use <name> and List<int>, <b>please</b>"),
        ("<div>\nall\n</div>", "<div> all </div>"),
        ("See ![a plan](http://x.example) here", "See !a plan (http://x.example) here"),
        ("a | b\n--|--\n<x> | ~~c~~", " a    b\n ──────\n <x>  c"),
    ],
)
def test_html_and_pictures_are_shown_as_text(
    console: Console, markdown: str, expected: str
) -> None:
    """No word of an answer is left out because it looks like a tag."""
    Screen(console, live=False)._words(markdown)
    shown = "\n".join(line for line in printed(console).splitlines() if line.strip())
    assert expected == shown


def test_words_in_a_file_have_no_blanks_at_their_ends(console: Console) -> None:
    """Nor two empty lines in a row."""
    screen = Screen(console, live=False)
    screen._words("One:\n\n")
    screen._words("- two\n- three\n\n`four`")
    assert "\nOne:\n\n • two\n • three\n\nfour\n" == printed(console)


def test_words_in_a_terminal_have_one_empty_line_between_them() -> None:
    """A list is no further from its text than the next paragraph."""
    terminal = Console(file=io.StringIO(), width=40, force_terminal=True, color_system=None)
    screen = Screen(terminal, live=False)
    for words in ("One:\n\n", "- two\n- three\n\n", "four\n\n", "```\n\n```\n"):
        screen._words(words)
    shown = "\n".join(line.rstrip() for line in printed(terminal).split("\n"))
    assert "\nOne:\n\n \u2022 two\n \u2022 three\n\nfour\n" in shown
    assert "\n\n\n" not in shown.rstrip()


def test_many_rows_are_cut_and_counted(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest is a number."""
    monkeypatch.setattr(_screen, "_ROWS", 3)
    show(console, "sql SELECT id FROM shop.orders ORDER BY id")
    assert " 3\n… and 417 more rows\n" in printed(console)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1, None], ["1", "null"]),
        (["2026-02-28T00:00:00Z", None], ["2026-02-28", "null"]),
        (["2026-02-28T00:00:00Z", "2026-02-28T12:34:56Z"],
         ["2026-02-28 00:00:00", "2026-02-28 12:34:56"]),
        (["2026-02-28T00:00:00Z", "later"], ["2026-02-28T00:00:00Z", "later"]),
        (["two\n lines", True], ["two lines", "True"]),
    ],
)  # fmt: skip
def test_values_are_shown_as_people_write_them(
    values: Sequence[object], expected: list[str]
) -> None:
    """Dates without a time, a null by its name, all on one line."""
    assert expected == [cell.plain for cell in _screen._cells(values)]


def test_a_query_is_broken_before_its_clauses_only(console: Console) -> None:
    """Quoted text stays as it is."""
    query = "SELECT 'a FROM b' AS x FROM t WHERE y ORDER BY z"
    Screen(console, live=False)._result(QueryResult(query=query))
    assert "SELECT 'a FROM b' AS x\nFROM t\nWHERE y\nORDER BY z\n" in printed(console)


@pytest.mark.parametrize(
    ("text", "complete"),
    [
        ("one line", ""),
        ("one\n\ntwo", "one\n\n"),
        ("one\n\ntwo\n\nthree", "one\n\ntwo\n\n"),
        ("```\ncode\n\nmore", ""),
        ("```\ncode\n\nmore\n```\n\nafter", "```\ncode\n\nmore\n```\n\n"),
        ("one\n", ""),
    ],
)
@pytest.mark.parametrize("size", [1, 2, 1000])
def test_paragraphs_are_complete_at_a_blank_line(text: str, complete: str, size: int) -> None:
    """A blank line inside a fence ends nothing; in whatever pieces it comes, no letter is lost."""
    paragraphs, taken = Paragraphs(), ""
    for start in range(0, len(text), size):
        paragraphs.add(text[start : start + size])
        taken += paragraphs.take()
    assert complete == taken
    assert bool(paragraphs) == (text != complete)
    assert text == taken + paragraphs.take_all()
    assert not paragraphs


def test_the_end_of_a_long_paragraph_is_drawn() -> None:
    """As much as there is room for; of code with the fence, so that it is drawn as code."""
    paragraphs = Paragraphs()
    paragraphs.add("".join(f"line {n}\n" for n in range(100)))
    paragraphs.add("and more")
    assert "line 98\nline 99\nand more" == paragraphs.end(20, 3)
    code = "Text\n```sql\n" + "x\n" * 100
    paragraphs.add(f"\n\n{code}")
    paragraphs.take()
    assert "```sql\nx\nx\n" == paragraphs.end(20, 3)
    assert code == paragraphs.end(20, 1000)
    paragraphs.take_all()
    paragraphs.add("y" * 1000)
    assert "y" * 60 == paragraphs.end(20, 3)


def test_an_answer_without_usage_has_no_tokens() -> None:
    """What the server does not tell is not shown."""
    assert "12 ms" == _screen._footer(results.Reply(duration=0.012)).plain
    assert "" == _screen._footer(results.Reply()).plain
