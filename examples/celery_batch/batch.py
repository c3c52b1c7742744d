"""Spreads a file of questions over the workers, and collects the answers in their order.

A task's id is made of the run's, which is kept beside the answers until they are all there, and of
the question. So a run that was interrupted sends what has no answer again under the same ids, and
nothing is asked twice: a question that has been begun is claimed (see claims.py).
"""

from __future__ import annotations

import contextlib
import fcntl
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from celery.exceptions import TimeoutError as NotYetError
from celery.result import AsyncResult
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from . import claims
from .answers import (
    Answer,
    Failure,
    Question,
    load,
    read_answered,
    read_questions,
    write_answer,
)
from .app import ASK, KEPT, LONGEST, app

__all__ = ["run"]


def run(questions: Path, output: Path, *, chatbot: str, patience: float) -> bool:
    """Ask the questions of one file, write the answers to the other; return whether none failed.

    `patience` is for how many seconds it waits for a worker to begin with the next question.
    """
    asked = read_questions(questions)
    _check_broker()
    with _one_line(), _run_id(output, chatbot) as run_id, output.open("ab") as file:
        done = read_answered(output)
        todo = asked[len(done.questions) :]
        if asked != [*done.questions, *todo]:
            raise SystemExit(f"{output} has answers to other questions; nothing was changed")
        file.truncate(done.size)
        failed = done.failed
        results = [
            _send(str(uuid.uuid5(run_id, f"{number} {question.text}")), chatbot, question)
            for number, question in enumerate(todo, len(done.questions))
        ]
        _say(f"{len(results)} questions are with the workers")
        for question, result in zip(todo, results, strict=True):
            try:
                answer = _wait(result, patience)
            finally:
                # Otherwise it listens until the interpreter ends, and Redis may have gone before.
                app.backend.remove_pending_result(result)
            failed += isinstance(answer, Failure)
            file.write(write_answer(question, answer))
            file.flush()
            result.forget()  # after it was written: else an interruption would lose it
    _say(f"{len(asked) - failed} are answered, {failed} failed")
    return not failed


def _say(text: str) -> None:
    print(f"{text}.", file=sys.stderr, flush=True)


def _check_broker() -> None:
    """End the program with one line when the broker cannot be reached."""
    with app.connection_for_write() as connection:
        try:
            connection.ensure_connection(max_retries=1, interval_start=0)
        except OperationalError as error:
            # The URL without its password.
            raise SystemExit(f"no broker at {connection.as_uri()}: {error}") from None


@contextlib.contextmanager
def _one_line() -> Iterator[None]:
    """End the program with one line when the broker goes, or the answers cannot be written."""
    try:
        yield
    except OSError as error:
        raise SystemExit(f"cannot write the answers: {error.strerror}") from None
    except (OperationalError, RedisError, RuntimeError) as error:
        cause = error.__cause__ or error  # Celery wraps what it gave up on in a RuntimeError
        if not isinstance(cause, OperationalError | RedisError):
            raise
        raise SystemExit(f"the broker is gone: {cause} The same command goes on.") from None


@contextlib.contextmanager
def _run_id(output: Path, chatbot: str) -> Iterator[uuid.UUID]:
    """Give the id of a new run or of the one that was interrupted; forget it at a good end."""
    path = output.with_name(f"{output.name}.run")
    if output.exists() and not path.exists():
        raise SystemExit(f"{output} is there already; nothing was changed")
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SystemExit(f"another process collects {output}") from None
        file.seek(0)
        text, _, asked = file.read().partition(" ")
        if not text:
            text, asked = str(uuid.uuid4()), chatbot
            file.write(f"{text} {asked}")
            file.flush()  # before the first question is sent
        if asked != chatbot:
            raise SystemExit(f"{output} was begun with the chatbot {asked}; nothing was changed")
        yield uuid.UUID(text)
        path.unlink()


def _send(task_id: str, chatbot: str, question: Question) -> AsyncResult[Any]:
    result: AsyncResult[Any] = app.AsyncResult(task_id)
    if not result.ready():  # the answer may have come since the interruption
        app.send_task(ASK, (chatbot, question.text), task_id=task_id, expires=KEPT)
    return result


def _wait(result: AsyncResult[Any], patience: float) -> Answer:
    """Return what came of a question; the wait ends, whatever has become of the workers."""
    while True:
        claim = claims.find_claim(result.id)
        seconds = patience if claim is None else LONGEST - claim.seconds
        try:
            value = result.get(timeout=max(seconds, 0.1), propagate=False)
        except NotYetError:
            if claim is not None and seconds <= 0:
                return Failure("Lost", f"it was begun by {claim.holder}, which has not come back")
            if claim is None and claims.take(result.id, "nobody"):
                # Nobody can begin it any more.
                message = f"no worker has begun it within {patience:g} s"
                return Failure("NotBegun", message, sent=False, retryable=True)
        else:
            return _answer(result, value)


def _answer(result: AsyncResult[Any], value: Any) -> Answer:
    """Read what a task gave; an exception is Celery's: a process that died, or was too slow."""
    if isinstance(value, str):
        return load(value)
    sent = None if claims.find_claim(result.id) else False
    return Failure(type(value).__name__, str(value), sent=sent)
