"""The two files and what goes through Redis, as text. Nothing here knows Celery.

A line of the questions is a text in JSON, or {"question": ..., "id": ...}, as for `fluxbase-aichat
batch`. A line of the answers is {"id", "question", "text", "rows", "usage", "error"}: `rows` is the
table of the answer's last query that succeeded, and `null` where there is none.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fluxbase_aichat import FluxbaseChatError, Reply

__all__ = [
    "Answer",
    "Answered",
    "Failure",
    "Question",
    "dump_error",
    "dump_reply",
    "load",
    "read_answered",
    "read_questions",
    "write_answer",
]

Id = str | int | None


@dataclass(frozen=True)
class Question:
    """A line of the questions."""

    text: str
    id: Id = None


@dataclass(frozen=True)
class Failure:
    """Why there is no answer."""

    type: str
    message: str
    sent: bool | None = None
    """As in the library: `None` is "nobody knows"."""
    retryable: bool = False
    code: str = ""
    partial_text: str = ""


Answer = Reply | Failure


@dataclass(frozen=True)
class Answered:
    """What stands in a file of answers."""

    questions: list[Question]
    failed: int
    size: int
    """In bytes, without a last line that was torn off."""


# -- through Redis ------------------------------------------------------------------------------
#
# As text: Celery's own JSON makes objects of {"__type__": "uuid", ...}, which rows may well hold.


def dump_reply(reply: Reply) -> str:
    """Write an answer with all that is in it, but the conversation's id, which is a secret."""
    values = reply.to_dict()
    del values["conversation_id"]
    return json.dumps({"reply": values})


def dump_error(error: FluxbaseChatError) -> str:
    """Write why there is none."""
    failure = Failure(
        type=type(error).__name__,
        message=str(error),
        sent=error.sent,
        retryable=error.retryable,
        code=error.code,
        partial_text=error.partial_text,
    )
    return json.dumps({"error": asdict(failure)})


def load(text: str) -> Answer:
    """Read what one of the two has written."""
    values = json.loads(text)
    return Reply.from_dict(values["reply"]) if "reply" in values else Failure(**values["error"])


# -- the files ----------------------------------------------------------------------------------


def read_questions(path: Path) -> list[Question]:
    """Read them all; the first line that is wrong ends the program, and names itself."""
    questions = []
    for number, line in enumerate(_read(path).removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if not line.strip():
            continue
        question = _question(line)
        if question is None:
            raise SystemExit(
                f'{path}, line {number}: neither a text in JSON nor {{"question": ..., "id": ...}}'
            )
        questions.append(question)
    return questions


def _question(line: bytes) -> Question | None:
    try:
        match json.loads(line):
            case str(text) if text.strip():
                return Question(text)
            case {"question": str(text), **others} if text.strip() and others.keys() <= {"id"}:
                number = others.get("id")
                if isinstance(number, Id) and not isinstance(number, bool):
                    return Question(text, number)
    except (ValueError, RecursionError):
        pass
    return None


def write_answer(question: Question, answer: Answer) -> bytes:
    """Return a line of the answers. What JSON has no type for is text: UUIDs, exact numbers."""
    line: dict[str, Any] = {
        "id": question.id,
        "question": question.text,
        "text": None,
        "rows": None,
        "usage": None,
        "error": None,
    }
    if isinstance(answer, Failure):
        line["error"] = asdict(answer)
    else:
        line["text"] = "\n\n".join(answer.segments)
        line["rows"] = _rows(answer)
        line["usage"] = answer.to_dict()["usage"]
    return json.dumps(line, default=str).encode() + b"\n"


def _rows(reply: Reply) -> list[dict[str, Any]] | None:
    tables = [result for result in reply.query_results if result.status in {"ok", "empty"}]
    return tables[-1].rows if tables else None


def read_answered(path: Path) -> Answered:
    """Read what an interrupted run has written; a line that was torn off is none."""
    whole = _read(path).rpartition(b"\n")[0]
    questions = []
    failed = 0
    for number, text in enumerate(whole.splitlines(), 1):
        try:
            line = json.loads(text)
            questions.append(Question(line["question"], line["id"]))
            failed += line["error"] is not None
        except (ValueError, TypeError, KeyError):
            raise SystemExit(
                f"{path}, line {number}: none of this command's answers; nothing was changed"
            ) from None
    return Answered(questions, failed, len(whole) + 1 if questions else 0)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SystemExit(f"cannot read {path}: {error.strerror}") from None
