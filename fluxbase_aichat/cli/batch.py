"""`fluxbase-aichat batch`: a file of questions to a file of answers, several at once.

The answers' file is what is known of a run: it is only appended to, a line an answer, and read
again by the next run, which asks what has no answer in it.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Final

import attrs
import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fluxbase_aichat._many import Answered, ask_each
from fluxbase_aichat.config import check_name
from fluxbase_aichat.errors import ConfigurationError, FluxbaseChatError, QuotaError, RateLimitError
from fluxbase_aichat.results import Reply

from ._errors import text_of
from ._files import lock
from ._server import Server, chatbot_argument, namespace_option, server_options

__all__ = ["batch"]

Id = str | int | None

# What every line of the answers begins with: so a line that was torn off is known as one.
_BEGIN: Final = b'{"question": '


@attrs.frozen
class _Question:
    text: str
    id: Id


@click.command()
@chatbot_argument
@click.argument("questions", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where the answers go; an existing file is gone on with.",
)
@click.option(
    "--workers",
    type=click.IntRange(1, 64),
    default=4,
    show_default=True,
    help="As many questions are asked at once.",
)
@namespace_option
@server_options
def batch(
    *,
    chatbot: str,
    questions: Path,
    output: Path,
    workers: int,
    namespace: str | None,
    server: Server,
) -> None:
    """Ask CHATBOT the QUESTIONS of a file, and write each answer when it is there.

    A line of QUESTIONS is a text in JSON, or an object {"question": ..., "id": ...}, where the id
    may be left out. A line of the output is {"question": ..., "id": ..., "reply": ...}, or has an
    "error" in place of the reply. The answers come in any order.

    Run the same command again after an interruption: what has a reply is not asked again, what
    has failed is.
    """
    asked = _read_questions(questions)
    if output.exists():
        if output.samefile(questions):
            raise click.BadParameter("it is the file of the questions", param_hint="--output")
        if not output.is_file():
            raise click.BadParameter(
                "it is no file that can be gone on with", param_hint="--output"
            )
    failed = 0

    with contextlib.ExitStack() as stack:
        file = stack.enter_context(_appending(output))
        todo = _unanswered(asked, output)
        _end_line(file, output)
        answered = len(asked) - len(todo)
        stack.callback(lambda: _summary(answered, failed, len(asked)))
        progress = stack.enter_context(_progress())
        task = progress.add_task(chatbot, total=len(asked), completed=answered)

        def tell(number: int, answer: Answered) -> None:
            nonlocal answered, failed
            if isinstance(answer, FluxbaseChatError) and _concerns_all(answer):
                raise answer
            _write(file, todo[number], answer)
            if isinstance(answer, Reply):
                answered += 1
            else:
                failed += 1
            progress.update(task, completed=answered + failed)

        texts = [question.text for question in todo]
        with server.naming(chatbot):
            ask_each(server.settings, chatbot, texts, tell, workers=workers, namespace=namespace)
    if failed:
        raise click.exceptions.Exit(1)


def _concerns_all(error: FluxbaseChatError) -> bool:
    """Whether the next question would fail as well: the server was not asked, or wants a rest."""
    return error.sent is False or isinstance(error, (RateLimitError, QuotaError))


def _summary(answered: int, failed: int, total: int) -> None:
    text = f"{answered} of {total} questions are answered"
    if failed:
        text += f", {failed} failed"
    if answered < total:
        text += "; the same command asks the others"
    click.echo(f"{text}.", err=True)


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    )


# -- the questions ------------------------------------------------------------------------------


def _read_questions(path: Path) -> list[_Question]:
    found = []
    seen: set[Id] = set()
    for number, line in _lines(path, "QUESTIONS"):
        try:
            question = _question(json.loads(line))
            if question.id is not None and question.id in seen:
                raise ConfigurationError("its id has occurred before")
        except (ValueError, RecursionError) as error:  # ConfigurationError is one of them
            known = isinstance(error, ConfigurationError)
            reason = str(error) if known else 'it is not JSON, such as "How many users are there?"'
            raise click.BadParameter(f"line {number}: {reason}", param_hint="QUESTIONS") from None
        seen.add(question.id)
        found.append(question)
    return found


def _question(value: Any) -> _Question:
    if isinstance(value, dict):
        unknown = value.keys() - {"question", "id"}
        if unknown or "question" not in value:
            raise ConfigurationError('an object has a "question", and may have an "id"')
        text, number = value["question"], value.get("id")
        if isinstance(number, bool) or not isinstance(number, (str, int, type(None))):
            raise ConfigurationError("an id is a text or a whole number")
    else:
        text, number = value, None
    return _Question(check_name("a question", text, what="text"), number)


def _lines(path: Path, hint: str) -> Iterator[tuple[int, bytes]]:
    """Yield the lines that are not blank, with their numbers."""
    try:
        content = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        raise click.BadParameter(f"cannot read it: {error.strerror}", param_hint=hint) from error
    for number, line in enumerate(content.split(b"\n"), 1):
        if line.strip():
            yield number, line


# -- the answers --------------------------------------------------------------------------------


def _unanswered(asked: list[_Question], output: Path) -> list[_Question]:
    """Return the questions without a reply in the answers' file."""
    by_id: dict[Id, str] = {}
    by_text: Counter[str] = Counter()  # the same question may be asked several times
    for question in _read_answered(output):
        if question.id is None:
            by_text[question.text] += 1
        else:
            by_id[question.id] = question.text
    todo = []
    for question in asked:
        if question.id is None:
            by_text[question.text] -= 1
            if by_text[question.text] < 0:
                todo.append(question)
        elif question.id not in by_id:
            todo.append(question)
        elif by_id[question.id] != question.text:
            raise click.BadParameter(
                f"id {question.id!r} stands there with another question", param_hint="--output"
            )
    return todo


def _read_answered(output: Path) -> list[_Question]:
    """Return the questions that have a reply; take away a last line that was torn off."""
    if not output.exists():
        return []
    found = []
    for number, line in _lines(output, "--output"):
        try:
            value = json.loads(line)
            question = _question({"question": value["question"], "id": value.get("id")})
            answered = "reply" in value or value["error"] is None
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            if not _take_away(output, line):
                raise click.BadParameter(
                    f"line {number} is none of this command's; nothing was changed",
                    param_hint="--output",
                ) from None
        else:
            found += [question] if answered else []
    return found


def _take_away(output: Path, line: bytes) -> bool:
    """Cut off the last line if it is the beginning of an answer; say whether it was."""
    torn = line.startswith(_BEGIN) or _BEGIN.startswith(line)
    size = output.stat().st_size
    if not torn or not _ends_with(output, line):
        return False
    os.truncate(output, size - len(line))
    return True


def _ends_with(path: Path, end: bytes) -> bool:
    with path.open("rb") as file:
        file.seek(-len(end), os.SEEK_END)
        return file.read() == end


@contextlib.contextmanager
def _appending(output: Path) -> Iterator[IO[bytes]]:
    """Give the answers' file to this run alone: another would ask, and pay for, the same."""
    try:
        with output.open("ab") as file:
            if not lock(file, wait=False):
                raise click.ClickException(
                    f"another run writes {output}: wait for its end, or name another --output"
                )
            yield file
    except OSError as error:
        if isinstance(error, FluxbaseChatError):
            raise
        raise click.ClickException(f"cannot write {output}: {error.strerror}") from error


def _end_line(file: IO[bytes], output: Path) -> None:
    """Write the end of the last line, if that is all it lacks."""
    if output.stat().st_size and not _ends_with(output, b"\n"):
        file.write(b"\n")


def _write(file: IO[bytes], question: _Question, answer: Answered) -> None:
    line: dict[str, Any] = {"question": question.text}
    if question.id is not None:
        line["id"] = question.id
    if isinstance(answer, Reply):
        reply = answer.to_dict()
        del reply["conversation_id"]  # a secret, and files are shared
        line["reply"] = reply
    else:
        line["error"] = {
            "type": type(answer).__name__,
            "message": text_of(answer),
            "code": answer.code,
            "retryable": answer.retryable,
            "partial_text": answer.partial_text,
        }
    file.write(json.dumps(line).encode() + b"\n")
    file.flush()
