"""The model's steps, and the little script language that tests write in the user message.

A message whose first line is an instruction is a script:

    say Hello there        streams the words, each as a delta
    sql SELECT ...         calls the query tool
    tool NAME {"a": 1}     calls another tool
    pause 2                waits for so many seconds
    flood 200 12           streams 200 deltas of 12 characters
    fail                   the model breaks off: STREAM_ERROR
    cut                    the TCP connection is dropped; the turn goes on without it
    ---                    begins the answer to the tools' results

Nothing here runs a step.
"""

from __future__ import annotations

import json
import re
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any, Final

from ._sql import QueryResult

__all__ = [
    "Call",
    "Cut",
    "Fail",
    "Model",
    "Pause",
    "Say",
    "Step",
    "echo",
    "is_script",
    "scripted",
    "words",
]

_VERBS: Final = re.compile(
    r"(say|sql|tool) |pause \d+(\.\d+)?\s*$|flood \d+ \d+\s*$|(fail|cut|---)\s*$", re.MULTILINE
)
_LONGEST_WORD: Final = 64 * 1024
"""A longer delta overflows the recorded server's reader of its model's stream."""


@dataclass(frozen=True, slots=True)
class Say:
    """Streams these deltas."""

    deltas: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Pause:
    """Waits."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Call:
    """Calls a tool, when the round's prose has been streamed."""

    tool: str
    arguments: dict[str, Any]
    result: QueryResult | None = None
    """What it gives; `None` to run it."""

    @classmethod
    def sql(cls, query: str, description: str = "scripted query") -> Call:
        """Return a call of the query tool."""
        return cls("execute_sql", {"sql": query, "description": description})


@dataclass(frozen=True, slots=True)
class Fail:
    """The model's stream breaks, and the turn ends with an error."""

    error: str = "Error generating response"
    code: str = "STREAM_ERROR"


class Cut:
    """The connection to the client breaks."""


Step = Say | Pause | Call | Fail | Cut
Model = Generator[list[Step], list[QueryResult], None]
"""Yields the steps of a round and is sent the results of the round's queries."""


def words(text: str) -> tuple[str, ...]:
    """Return `text` cut before each word's blanks: `Hello wörld` is `Hello` and ` wörld`."""
    return tuple(re.findall(r"\s*\S+|\s+$", text))


def is_script(content: str) -> bool:
    """Whether a user message is a script and not a question."""
    return _VERBS.match(content) is not None


def scripted(content: str) -> Model:
    """Play the rounds of a script; after its last one the model has nothing more to say."""
    for part in re.split(r"(?m)^---\s*$\n?", content):
        yield list(_steps(part))
    yield []


def echo(line: str) -> Iterator[Step]:
    """Yield what the model says to a line that is no instruction."""
    for word in words(f"You said: {line}"):
        if len(word) > _LONGEST_WORD:
            yield Fail()
            return
        yield Say((word,))


def _steps(part: str) -> Iterator[Step]:
    for line in part.splitlines():
        verb, _, rest = line.partition(" ")
        match verb if _VERBS.match(line) else "":
            case "say":
                yield Say(words(rest))
            case "sql":
                yield Call.sql(rest)
            case "tool":
                name, _, arguments = rest.partition(" ")
                yield Call(name, _object(arguments))
            case "pause":
                yield Pause(float(rest))
            case "flood":
                count, size = rest.split()
                yield Say(("x" * int(size),) * int(count))
            case "fail":
                yield Fail()
            case "cut":
                yield Cut()
            case _ if line.strip() not in ("", "say"):
                yield from echo(line)


def _object(text: str) -> dict[str, Any]:
    """Return the JSON object that `text` begins with; the rest is for the chatbot's rules."""
    try:
        value = json.JSONDecoder().raw_decode(text.strip())[0]
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
