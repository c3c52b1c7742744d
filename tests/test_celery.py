"""examples/celery_batch, with a real Redis, Celery's prefork workers and the dev server."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from scripts.process import Script
from servers import WAIT, Gate, refusing_port

from fluxbase_aichat.devserver import DevServer

pytest.importorskip("celery")
redis = pytest.importorskip("redis")
pytestmark = pytest.mark.skipif(
    shutil.which("redis-server") is None, reason="redis-server is not installed"
)

ROOT = Path(__file__).parent.parent
# Some tests start four processes, each of which imports Celery.
SECONDS = 50.0
CLAIM = "celery_batch-claim-*"


class Batch:
    """A file of questions, a Redis to carry them, and the dev server that is asked."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._stack = stack
        self.gate = Gate("pause")
        self.server = stack.enter_context(DevServer(pause=lambda _: self.gate.wait(SECONDS)))
        stack.callback(self.gate.open)
        # A socket's path must be short.
        socket = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "redis.sock"
        self._redis = stack.enter_context(Script("redis_server.py", str(socket), seconds=SECONDS))
        while "eady to accept connections" not in self._redis.line():
            pass
        self.broker = f"redis+socket://{socket}"
        self.redis = stack.enter_context(redis.Redis(unix_socket_path=str(socket)))
        self.questions = folder / "questions.jsonl"
        self.answers = folder / "answers.jsonl"

    def worker(self, processes: int = 2, **variables: str) -> Script:
        """Start a worker; it need not be ready to be given questions."""
        settings = {
            "CELERY_BROKER_URL": self.broker,
            "FLUXBASE_URL": self.server.ws_url,
            "FLUXBASE_EMAIL": "ann@example.com",
            "FLUXBASE_PASSWORD": "ann-password",
            "BATCH_DELAY": "0.01",
        } | variables
        options = ["--concurrency", str(processes)]
        return self._script("worker", settings, options)

    def collect(self, *questions: Any, options: tuple[str, ...] = ()) -> Script:
        """Write the questions, and start the command that spreads them and collects."""
        lines = [json.dumps(question) + "\n" for question in questions]
        self.questions.write_text("".join(lines), encoding="utf-8")
        arguments = [str(self.questions), str(self.answers), *options]
        return self._script("collect", {"CELERY_BROKER_URL": self.broker}, arguments)

    def _script(self, side: str, settings: dict[str, str], arguments: list[str]) -> Script:
        variables = [f"{name}={value}" for name, value in settings.items()]
        return self._stack.enter_context(
            Script("celery_batch.py", side, *variables, "--", *arguments, seconds=SECONDS)
        )

    @property
    def lines(self) -> list[dict[str, Any]]:
        """What was written."""
        return [json.loads(line) for line in self.answers.read_text("utf-8").splitlines()]

    @property
    def asked(self) -> Counter[str]:
        """How often the server got each message."""
        frames = [received.frame for received in self.server.received]
        return Counter(frame["content"] for frame in frames if frame["type"] == "message")

    def wait_for(self, predicate: Callable[[], bool]) -> None:
        """Wait for something at the server; a worker may have to start before."""
        assert self.server.wait_for(predicate, 3 * WAIT), "in vain"

    def queued(self) -> bytes:
        """Wait until a question is in the queue that no worker reads, and return its message."""
        message = self.redis.blmove("celery", "celery", 3 * WAIT)
        assert message is not None, "no question was sent"
        return message

    def claim(self) -> str:
        """Return the key of the only claim."""
        (key,) = self.redis.keys(CLAIM)
        return key.decode()


@pytest.fixture
def batch(tmp_path: Path) -> Iterator[Batch]:
    with ExitStack() as stack:
        yield Batch(tmp_path, stack)


def told(script: Script) -> tuple[int, str, str]:
    """Wait for the end of the command; return its status, and its output without the progress."""
    status, out, err = script.end()
    lines = [line for line in err.splitlines() if not line.endswith("with the workers.")]
    return status, out, "\n".join(lines)


TYPES = "sql SELECT * FROM types WHERE i2 = 1\n---\nsay Typed."


def test_answers_are_in_order_whole_and_from_both_processes(batch: Batch) -> None:
    """Two processes, each signed in by itself, hold an answer at the same time."""
    batch.worker()
    command = batch.collect(
        {"id": "first", "question": "say One\npause 1"},
        "say Two\npause 1",
        {"id": 3, "question": "How many users are there?"},
        {"id": "types", "question": TYPES},
        # Celery's own JSON would make a UUID of this row.
        "sql SELECT 'uuid' AS __type__, 'none' AS __value__",
    )
    batch.wait_for(lambda: batch.server.running == 2)
    batch.gate.open()
    assert (0, "", "5 are answered, 0 failed.") == told(command)
    one, two, users, types, row = batch.lines
    assert [("first", "One"), (None, "Two"), (3, "Let me count.\n\nThere are **30** users.")] == [
        (line["id"], line["text"]) for line in (one, two, users)
    ]
    assert [None, None, [{"count": 30}]] == [line["rows"] for line in (one, two, users)]
    assert users["usage"]["total_tokens"] > 0
    assert users["error"] is None
    (values,) = types["rows"]
    expected = {
        "u": "00000000-0000-4000-8000-000000000001",
        "n": "12345678901234567890.123456789",
        "d": "2026-02-28T00:00:00Z",
        "tm": "12:34:56",
        "iv": "1 day, 2:03:04",
        "i8": 9223372036854775807,
        "nul": None,
        "j": {"a": [1, "2.5"], "b": 1},
    }
    assert expected == {name: values[name] for name in expected}
    assert [{"__type__": "uuid", "__value__": "none"}] == row["rows"]
    assert 2 == batch.server.connections
    sign_ins = [asked for asked in batch.server.requests if "signin" in asked.target]
    assert 2 == len(sign_ins)
    assert not batch.answers.with_name("answers.jsonl.run").exists()


def test_what_was_sent_is_not_asked_again(batch: Batch) -> None:
    """A cut answer and a failing model, though worth another try: errors in their places."""
    batch.worker(processes=1)
    command = batch.collect("say One\ncut", "fail", "say Three")
    assert (1, "", "1 are answered, 2 failed.") == told(command)
    cut, failed, _ = batch.lines
    assert [None, None, "Three"] == [line["text"] for line in batch.lines]
    assert ("ConnectionLostError", True) == (cut["error"]["type"], cut["error"]["sent"])
    assert "One" == cut["error"]["partial_text"]
    assert "STREAM_ERROR" == failed["error"]["code"]
    assert (True, True) == (failed["error"]["sent"], failed["error"]["retryable"])
    assert {"say One\ncut": 1, "fail": 1, "say Three": 1} == batch.asked


def test_a_server_that_is_down_is_tried_again(batch: Batch) -> None:
    """Until it is up; then the question is sent, once."""
    batch.server.faults.refuse = True
    worker = batch.worker(processes=1, BATCH_DELAY="0.5")
    command = batch.collect("say Hello")
    assert ["ready", "RETRY"] == [worker.line(), worker.line()]
    batch.server.faults.clear()
    assert (0, "", "1 are answered, 0 failed.") == told(command)
    assert "Hello" == batch.lines[0]["text"]
    assert {"say Hello": 1} == batch.asked


def test_tries_come_to_an_end(batch: Batch) -> None:
    """The error of the last one stands in place of the answer."""
    batch.server.kill()
    worker = batch.worker(processes=1, BATCH_TRIES="3")
    assert (1, "", "0 are answered, 1 failed.") == told(batch.collect("say Hello"))
    assert ["ready", "RETRY", "RETRY", "SUCCESS"] == [worker.line() for _ in range(4)]
    error = batch.lines[0]["error"]
    assert ("ConnectError", False, True) == (error["type"], error["sent"], error["retryable"])


def test_the_server_says_when_to_come_back(batch: Batch) -> None:
    """Its delay counts, and not the worker's own."""
    batch.server.faults.set(status=429, retry_after=1, times=1)
    worker = batch.worker(processes=1, BATCH_DELAY="800")
    assert (0, "", "1 are answered, 0 failed.") == told(batch.collect("say Hello"))
    assert ["ready", "RETRY", "SUCCESS"] == [worker.line() for _ in range(3)]


def test_a_delay_that_is_too_long_is_an_error(batch: Batch) -> None:
    """Redis would give the waiting question to another worker as well."""
    batch.server.faults.set(status=429, retry_after=3000)
    batch.worker(processes=1)
    assert (1, "", "0 are answered, 1 failed.") == told(batch.collect("say Hello"))
    assert "RateLimitError" == batch.lines[0]["error"]["type"]


def test_a_process_that_is_killed_costs_its_answer_only(batch: Batch) -> None:
    """It is reported, and not asked again; another process answers the rest."""
    batch.worker(processes=1)
    command = batch.collect("say One\npause 1", "say Two")
    batch.wait_for(lambda: batch.server.running == 1)
    holder = batch.redis.get(batch.claim()).decode()
    os.kill(int(holder.rpartition(" ")[2]), signal.SIGKILL)
    assert (1, "", "1 are answered, 1 failed.") == told(command)
    error = batch.lines[0]["error"]
    assert ("WorkerLostError", None, False) == (error["type"], error["sent"], error["retryable"])
    assert "Two" == batch.lines[1]["text"]
    assert {"say One\npause 1": 1, "say Two": 1} == batch.asked


def test_an_answer_that_takes_too_long_is_ended(batch: Batch) -> None:
    """What has come of it is told, and its process answers the next."""
    batch.worker(processes=1, BATCH_SECONDS="1")
    command = batch.collect("say One\npause 1", "say Two")
    assert (1, "", "1 are answered, 1 failed.") == told(command)
    error = batch.lines[0]["error"]
    assert ("ChatTimeoutError", True, "One") == (
        error["type"],
        error["sent"],
        error["partial_text"],
    )
    assert "Two" == batch.lines[1]["text"]


def test_a_machine_that_dies_costs_its_answer_only(batch: Batch) -> None:
    """Nobody is left to say so: the command does, when the answer is long overdue."""
    worker = batch.worker(processes=1)
    first = batch.collect("say One\npause 1")
    batch.wait_for(lambda: batch.server.running == 1)
    first.interrupt()
    assert 130 == told(first)[0]
    os.killpg(worker.pid, signal.SIGKILL)
    worker.end()
    batch.redis.expire(batch.claim(), 1000)  # it was begun long ago
    second = batch.worker(processes=1)
    command = batch.collect("say One\npause 1", "say Two")
    assert (1, "", "1 are answered, 1 failed.") == told(command)
    assert ["ready", "IGNORED", "SUCCESS"] == [second.line() for _ in range(3)]
    error = batch.lines[0]["error"]
    assert ("Lost", None) == (error["type"], error["sent"])
    assert "celery@" in error["message"]
    assert 1 == batch.asked["say One\npause 1"]


def test_what_is_delivered_twice_is_asked_once(batch: Batch) -> None:
    """And its message holds no token, no password and no address of the server."""
    command = batch.collect("say Hello")
    message = batch.queued()
    for secret in ("ann", "eyJ", batch.server.url):
        assert secret not in message.decode()
    batch.redis.lpush("celery", message)
    worker = batch.worker(processes=1)
    assert ["ready", "SUCCESS", "IGNORED"] == [worker.line() for _ in range(3)]
    assert (0, "", "1 are answered, 0 failed.") == told(command)
    assert "Hello" == batch.lines[0]["text"]
    assert {"say Hello": 1} == batch.asked


def test_an_interrupted_command_goes_on(batch: Batch) -> None:
    """The workers go on meanwhile; nothing is asked twice, and no line is written twice."""
    questions = ["fail", "say Two\npause 1", "say Three"]
    worker = batch.worker(processes=1)
    first = batch.collect(*questions)
    batch.wait_for(lambda: batch.server.running == 1 and batch.server.turns == 1)
    first.interrupt()
    assert (130, "", "interrupted; the same command goes on.") == told(first)
    batch.gate.open()
    assert ["ready", "SUCCESS", "SUCCESS", "SUCCESS"] == [worker.line() for _ in range(4)]
    with batch.answers.open("ab") as file:
        file.write(b'{"id": null, "quest')  # torn off by a full disk
    other = batch.collect(*questions, options=("--chatbot", "other"))
    begun = f"{batch.answers} was begun with the chatbot sql-assistant; nothing was changed"
    assert (1, "", begun) == told(other)
    assert (1, "", "2 are answered, 1 failed.") == told(batch.collect(*questions))
    assert [None, "Two", "Three"] == [line["text"] for line in batch.lines]
    assert dict.fromkeys(questions, 1) == batch.asked


def test_without_a_worker_it_ends_as_well(batch: Batch) -> None:
    """With an error that says so; a worker that comes too late does not ask."""
    command = batch.collect("say Hello", options=("--patience", "0.1"))
    assert (1, "", "0 are answered, 1 failed.") == told(command)
    error = batch.lines[0]["error"]
    assert ("NotBegun", False, True) == (error["type"], error["sent"], error["retryable"])
    worker = batch.worker(processes=1)
    assert ["ready", "IGNORED"] == [worker.line(), worker.line()]
    assert not batch.asked


def test_a_broker_that_dies_is_one_line(batch: Batch) -> None:
    """While the answers are waited for; the command may be run again."""
    command = batch.collect("say Hello")
    batch.queued()
    batch._redis.terminate()
    status, _, err = told(command)
    assert (1, 1) == (status, err.count("\n") + 1), err
    assert err.startswith("the broker is gone: ")


def test_a_broker_that_is_down_is_one_line(tmp_path: Path) -> None:
    """Without its password; nothing is left behind."""
    (tmp_path / "questions.jsonl").write_text('"say Hello"\n')
    with refusing_port() as port:
        broker = f"CELERY_BROKER_URL=redis://:hidden@127.0.0.1:{port}/0"
        files = (str(tmp_path / "questions.jsonl"), str(tmp_path / "answers.jsonl"))
        with Script("celery_batch.py", "collect", broker, "--", *files) as command:
            status, out, err = command.end()
    assert (1, "") == (status, out)
    assert err.startswith(f"no broker at redis://:**@127.0.0.1:{port}/0: ")
    assert 1 == err.count("\n")
    assert ["questions.jsonl"] == [path.name for path in tmp_path.iterdir()]


def test_a_worker_that_knows_no_user_says_so() -> None:
    """In one line, at its start."""
    with Script("celery_batch.py", "worker", "FLUXBASE_URL=ws://x", "--") as worker:
        expected = "please set FLUXBASE_URL, and FLUXBASE_EMAIL and FLUXBASE_PASSWORD or "
        assert (1, "", f"{expected}FLUXBASE_TOKEN\n") == worker.end()


def test_files_that_are_wrong_are_told(batch: Batch) -> None:
    """Before anything is sent, in one line, and nothing is changed."""
    answers = str(batch.answers)
    for question in ({"question": "say Hi", "more": 1}, " "):
        status, _, err = told(batch.collect("say Hi", question))
        assert (1, 1) == (status, err.count("line 2: "))
    batch.answers.write_text('{"id": null, "question": "say Other", "error": null}\n')
    assert (1, "", f"{answers} is there already; nothing was changed") == told(
        batch.collect("say Hi")
    )
    batch.answers.with_name("answers.jsonl.run").touch()
    expected = f"{answers} has answers to other questions; nothing was changed"
    assert (1, "", expected) == told(batch.collect("say Hi"))
    batch.answers.write_text("Notes\n")
    assert (1, "", f"{answers}, line 1: none of this command's answers; nothing was changed") == (
        told(batch.collect("say Hi"))
    )
    assert not batch.redis.keys("celery")


def test_one_command_brings_all_that_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dev server, a Redis and a worker of its own, and it ends them."""
    monkeypatch.delenv("CELERY_BROKER_URL", raising=False)
    answers = tmp_path / "answers.jsonl"
    command = ["-m", "examples.celery_batch", "examples/celery_batch/questions.jsonl", str(answers)]
    with subprocess.Popen(  # noqa: S603 - our own
        [sys.executable, *command],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            out, err = process.communicate(timeout=50)
        finally:
            process.terminate()  # it ends what it has started
    assert (0, "") == (process.returncode, out), err
    assert err.endswith("\n5 are answered, 0 failed.\n")
    lines = [json.loads(line) for line in answers.read_text().splitlines()]
    assert ["users", "orders", "refunds", "top", "category"] == [line["id"] for line in lines]
    assert "**30** users" in lines[0]["text"]
