"""`fluxbase-aichat batch`: every question answered once, whatever interrupts it."""

from __future__ import annotations

import errno
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from servers import Gate, Peer, RawServer, content, done, error, refusing_port
from test_cli import Process, interruptible, run  # noqa: F401 - a fixture

from fluxbase_aichat import (
    AuthenticationError,
    ChatbotNotFoundError,
    ConfigurationError,
    ConnectError,
    QuotaError,
    RateLimitError,
    Reply,
)
from fluxbase_aichat.cli import batch as module
from fluxbase_aichat.cli._app import app
from fluxbase_aichat.devserver import DevServer
from fluxbase_aichat.testing import FakeServer


class Files:
    """The two files of a batch, and the command on them."""

    def __init__(self, folder: Path) -> None:
        self.questions = folder / "questions.jsonl"
        self.answers = folder / "answers.jsonl"

    def ask(self, *questions: Any) -> None:
        """Write the questions."""
        self.questions.write_text("".join(json.dumps(question) + "\n" for question in questions))

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The answers' lines."""
        return [json.loads(line) for line in self.answers.read_text().splitlines()]

    @property
    def texts(self) -> dict[Any, str]:
        """The texts of the replies, by their questions."""
        return {
            line.get("id", line["question"]): line["reply"]["text"]
            for line in self.lines
            if "reply" in line
        }

    def arguments(self, *options: str, chatbot: str = "sql-assistant") -> list[str]:
        """Return the command's arguments."""
        return ["batch", chatbot, str(self.questions), "-o", str(self.answers), *options]

    def run(self, url: str, token: str | None, *options: str, **more: str) -> Result:
        """Run the command."""
        return CliRunner().invoke(
            app,
            self.arguments(*options, **more),
            env={"FLUXBASE_URL": url, "FLUXBASE_TOKEN": token},
        )


@pytest.fixture
def files(tmp_path) -> Files:
    return Files(tmp_path)


def asked(server: DevServer) -> Counter[str]:
    """Return how often each message was sent."""
    return Counter(r.frame["content"] for r in server.received if r.frame["type"] == "message")


def test_every_question_is_answered(files) -> None:
    """Texts and objects, with ids and without; blank lines are none."""
    files.questions.write_text(
        '\ufeff"say one"\n\n{"question": "say two"}\n  \n{"question": "say three", "id": "q3"}\r\n'
        '{"id": 4, "question": "How many users are there?"}'
    )
    with DevServer() as server:
        result = files.run(server.ws_url, server.token())
        assert (0, "4 of 4 questions are answered.\n") == (result.exit_code, result.output)
        assert 4 == sum(asked(server).values())
    texts = files.texts
    assert ("one", "two", "three") == (texts["say one"], texts["say two"], texts["q3"])
    assert "**30** users" in texts[4]
    (users,) = [line["reply"] for line in files.lines if line.get("id") == 4]
    reply = Reply.from_dict(users)
    assert [30] == [row["count"] for row in reply.table]
    assert reply.usage is not None


def test_what_failed_is_asked_again(files) -> None:
    """Its error is a line of its own, and the exit code says that something is missing."""
    files.ask("say one", {"question": "fail", "id": "f"}, "say two")
    with DevServer() as server:
        first = files.run(server.ws_url, server.token())
        assert 1 == first.exit_code
        assert first.output == (
            "2 of 3 questions are answered, 1 failed; the same command asks the others.\n"
        )
        (failed,) = [line for line in files.lines if "error" in line]
        assert ("f", "fail") == (failed["id"], failed["question"])
        assert "ProviderError" == failed["error"]["type"]
        assert "STREAM_ERROR" == failed["error"]["code"]
        second = files.run(server.ws_url, server.token())
        assert 1 == second.exit_code
        assert Counter({"say one": 1, "say two": 1, "fail": 2}) == asked(server)
        files.questions.write_text('"say one"\n"say two"\n')
        assert 0 == files.run(server.ws_url, server.token()).exit_code
    assert 4 == len(files.lines)


def test_the_same_question_twice_is_two_questions(files) -> None:
    """Both are asked, and neither again; a third one is."""
    files.ask("say one", "say one", {"question": "say one", "id": 1})
    with DevServer() as server:
        for count, more in ((3, []), (3, []), (4, ["say one"])):
            files.ask("say one", "say one", {"question": "say one", "id": 1}, *more)
            assert 0 == files.run(server.ws_url, server.token()).exit_code
            assert Counter({"say one": count}) == asked(server)
    assert 4 == len(files.lines)


def test_the_questions_may_change_between_runs(files) -> None:
    """Their order and number are free: a question is known by its id, or else by its text."""
    with DevServer() as server:
        files.ask("say one", {"question": "say two", "id": 2})
        files.run(server.ws_url, server.token())
        files.ask("say three", {"question": "say two", "id": 2}, "say one", "say two")
        result = files.run(server.ws_url, server.token())
        assert "4 of 4 questions are answered.\n" == result.output
        assert Counter({"say one": 1, "say two": 2, "say three": 1}) == asked(server)
        files.ask({"question": "say something else", "id": 2})
        before = files.answers.read_bytes()
        result = files.run(server.ws_url, server.token())
        assert 2 == result.exit_code
        assert "id 2 stands there with another question" in result.output
        assert before == files.answers.read_bytes()


@pytest.mark.parametrize("kept", ["nothing", "a byte", "half", "all but the end", "all"])
def test_a_line_that_was_torn_off(files, kept) -> None:
    """A process that was killed may leave one; it is taken away, and its question asked again."""
    files.ask("say one", "say two")
    with DevServer() as server:
        files.run(server.ws_url, server.token(), "--workers", "1")
        content = files.answers.read_bytes()
        first, last = content.splitlines(keepends=True)
        end = {
            "nothing": 0,
            "a byte": 1,
            "half": len(last) // 2,
            "all but the end": len(last) - 2,
            "all": len(last) - 1,
        }[kept]
        files.answers.write_bytes(first + last[:end])
        result = files.run(server.ws_url, server.token())
        assert (0, "2 of 2 questions are answered.\n") == (result.exit_code, result.output)
        assert Counter({"say one": 1, "say two": 1 if kept == "all" else 2}) == asked(server)
    assert ["say one", "say two"] == [line["question"] for line in files.lines]
    assert {"say one": "one", "say two": "two"} == files.texts


@pytest.mark.parametrize(
    "content",
    [
        b"my diary",
        b'{"question": "say one", "reply"\n{"question": "say two", "reply": {}}\n',
        b'{"question": "say one"}\n',
        b'"say one"\n',
        b'{"question": 7, "reply": {}}\n',
        b'{"question": "say one", "id": [], "reply": {}}\n',
        b"[" * 100_000,
        b"\xff\xfe\n",
    ],
)
def test_a_file_of_somebody_else_stays_as_it_is(files, content) -> None:
    """Nothing is asked, and nothing is written."""
    files.ask("say one")
    files.answers.write_bytes(content)
    with DevServer() as server:
        result = files.run(server.ws_url, server.token())
        assert 0 == server.connections
    assert 2 == result.exit_code
    assert "is none of this command's; nothing was changed" in " ".join(result.output.split())
    assert content == files.answers.read_bytes()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("say one", "line 2: it is not JSON"),
        ("[" * 100_000, "line 2: it is not JSON"),
        ("7", "line 2: a question must be text: a str, not int"),
        ('""', "line 2: a question must be text, and it is empty"),
        ('"\\ud800"', "line 2: a question has half of a surrogate pair"),
        ("{}", 'line 2: an object has a "question", and may have an "id"'),
        ('{"question": "a", "ID": 1}', 'line 2: an object has a "question"'),
        ('{"question": "a", "id": 1.5}', "line 2: an id is a text or a whole number"),
        ('{"question": "a", "id": true}', "line 2: an id is a text or a whole number"),
        ('{"question": "a", "id": "x"}', "line 2: its id has occurred before"),
    ],
)
def test_a_bad_question_is_found_before_anything_is_sent(files, line, message) -> None:
    """With its line."""
    files.questions.write_text(f'{{"question": "say one", "id": "x"}}\n{line}\n')
    with DevServer() as server:
        result = files.run(server.ws_url, server.token())
        assert 0 == server.connections
    assert 2 == result.exit_code
    assert message in " ".join(result.output.split())
    assert not files.answers.exists()


def test_bad_files(files, tmp_path) -> None:
    """None of the questions, the same for both, or none that can be gone on with."""
    url = "ws://localhost"
    assert "does not exist" in files.run(url, None).output
    files.ask("say one")
    files.answers = files.questions
    assert "it is the file of the questions" in files.run(url, None).output
    files.answers = tmp_path / "no" / "answers"
    assert "cannot write" in files.run(url, None).output
    files.answers = Path(os.devnull)
    assert "no file that can be gone on with" in files.run(url, None).output
    assert "0<=x" not in files.run(url, None, "--workers", "0").output
    assert 2 == files.run(url, None, "--workers", "0").exit_code


def test_no_url(files) -> None:
    """The error says which variable is meant."""
    files.ask("say one")
    result = CliRunner().invoke(app, files.arguments())
    assert isinstance(result.exception, ConfigurationError)
    assert "FLUXBASE_URL is not set" in str(result.exception)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (ChatbotNotFoundError, {"chatbot": "nobody"}),
        (AuthenticationError, {"token": "wrong"}),
        (ConfigurationError, {"token": " "}),
        (ConnectError, {"url": "refused"}),
    ],
)
def test_what_would_fail_for_every_question_ends_it(files, kind, options) -> None:
    """At once, and none is said to have failed."""
    files.ask(*[f"say {n}" for n in range(50)])
    with DevServer() as server, refusing_port() as port:
        url = f"ws://127.0.0.1:{port}" if "url" in options else server.ws_url
        chatbot = options.get("chatbot", "sql-assistant")
        result = files.run(url, options.get("token", server.token()), chatbot=chatbot)
        assert isinstance(result.exception, kind)
        assert result.output.startswith("0 of 50 questions are answered; the same command")
        assert Counter() == asked(server)
    assert "" == files.answers.read_text()


@pytest.mark.parametrize(
    ("code", "kind"), [("RATE_LIMITED", RateLimitError), ("DAILY_LIMIT", QuotaError)]
)
def test_a_limit_ends_it(files, code, kind) -> None:
    """The answers before it are kept, and the others are not burnt in vain."""
    files.ask("one", "two", *["more"] * 48)

    def script(peer: Peer) -> None:
        peer.accept()
        peer.start("c-1")
        peer.answer("One")
        while True:  # one more may be on its way when the first is told
            peer.start("c-2")
            peer.message()
            peer.send_text(error("Enough", code, "c-2"))

    with RawServer(script) as server:
        result = files.run(server.url, None, "--workers", "1", chatbot="support")
        questions = [m["content"] for _, m in server.received if m["type"] == "message"]
    assert isinstance(result.exception, kind)
    assert ["one", "two"] == questions[:2]
    assert len(questions) < 50
    assert {"one": "One"} == files.texts
    assert result.output.startswith("1 of 50 questions are answered; the same command")


def test_a_429_tells_when_to_come_back(files) -> None:
    """So a person knows when to run the command again."""
    files.ask("say One")
    with DevServer() as server:
        server.faults.set(status=429, retry_after=900)
        variables = {"FLUXBASE_URL": server.ws_url, "FLUXBASE_TOKEN": server.token()}
        result = run(*files.arguments(), **variables)
    assert 5 == result.returncode
    assert "Hint: come back in 15 minutes\n" in result.stderr


def test_a_lost_connection_is_told_in_the_words_of_the_command(files) -> None:
    """A file of answers has no `error.turn`."""
    files.ask("hello")
    with FakeServer() as server:
        server.on("support").say("Hi").drop()
        files.run(server.url, "t", chatbot="support")
    (line,) = files.lines
    assert "Hi" == line["error"]["partial_text"]
    told = line["error"]["message"]
    assert told.endswith("(the message was sent; `fluxbase-aichat history` may show its answer)")


def test_a_full_disk(files, monkeypatch) -> None:
    """It is a line that names the file."""

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    files.ask("say one", "say two")
    monkeypatch.setattr(module, "_write", full)
    with DevServer() as server:
        result = files.run(server.ws_url, server.token())
    assert 1 == result.exit_code
    assert f"cannot write {files.answers}: No space left on device" in result.output


def test_no_secret_is_written(files) -> None:
    """Neither the token nor the conversations' ids: files are shared."""

    def script(peer: Peer) -> None:
        peer.accept()
        peer.start("the-secret-id")
        peer.message()
        peer.send_text(content("the-secret-id", "One"), done("the-secret-id"))
        peer.until_closed()

    files.ask("one")
    with RawServer(script) as server:
        result = files.run(server.url, "the-secret-token", chatbot="support")
    shown = files.answers.read_text() + result.output
    assert "One" in shown
    assert "the-secret" not in shown


def test_ctrl_c_and_going_on(files) -> None:
    """Each answer is in the file when it is there; after Ctrl-C none is asked for again."""
    go_on = Gate()
    quick, slow = [f"say {n}" for n in range(5)], ["say Slow\npause 1", "say Slower\npause 1"]
    files.ask(*quick[:3], *slow, *quick[3:])
    # Its script's pauses last until the gate is open.
    with DevServer(pause=lambda _: go_on.is_open or go_on.wait(30)) as server:
        variables = {"FLUXBASE_URL": server.ws_url, "FLUXBASE_TOKEN": server.token()}
        arguments = files.arguments("--workers", "3")
        with Process(*arguments, terminal=True, TERM="xterm-256color", **variables) as process:
            process.until("5/7")
            assert set(quick) == set(files.texts)
            process.type("\x03")
            code, rest = process.end()
        assert 130 == code
        assert "5 of 7 questions are answered; the same command asks the others." in rest
        assert "Traceback" not in rest
        assert set(quick) == set(files.texts)
        go_on.open()
        result = run(*arguments, **variables)
        assert (0, "") == (result.returncode, result.stdout)
        assert "7 of 7 questions are answered.\n" == result.stderr
        counts = asked(server)
        assert {1} == {counts[question] for question in quick}
        assert {2} == {counts[question] for question in slow}
    assert {*quick, *slow} == set(files.texts)
    assert 7 == len(files.lines)
