"""Question and answer by turns: what `chat` and `demo` share. It knows no commands."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from typing import Final, Literal

from fluxbase_aichat import Conversation, FluxbaseChatError, Turn

from ._screen import Screen

__all__ = ["Outcome", "attempt", "read_question"]

Outcome = Literal["answered", "cancelled", "failed"]

_BLOCK: Final = '"""'
_GOES_ON: Final = "\\"
_MORE: Final = "... "


def attempt(
    screen: Screen,
    conversation: Conversation,
    question: str,
    *,
    show: Callable[[Turn], None] | None = None,
    tell: Callable[[FluxbaseChatError], None] | None = None,
) -> Outcome:
    """Ask one question; neither Ctrl-C nor an error is the end of the chat.

    The answer and an error go to the screen, unless there is another way to `show` or to `tell`.
    """
    try:
        with conversation.send(question) as turn:  # which cancels it, if it is left early
            (show or screen.answer)(turn)
    except KeyboardInterrupt:
        screen.print("[yellow]Cancelled.[/yellow]")
        return "cancelled"
    except FluxbaseChatError as error:
        (tell or screen.error)(error)
        return "failed"
    return "answered"


def read_question(prompt: str) -> str:
    r"""Return the user's next question; raise `EOFError` at the end and `KeyboardInterrupt`.

    A line that ends with \ goes on in the next; what stands between lines of three quotes is one
    question, whatever it holds.
    """
    with contextlib.suppress(ImportError):  # a Python without it has no line editing
        import readline  # noqa: F401, PLC0415 - input() uses it when it is there
    terminal = sys.stdin.isatty()
    line = input(prompt if terminal else "")
    more = _MORE if terminal else ""
    if line.strip() == _BLOCK:
        lines = []
        while (line := input(more)).strip() != _BLOCK:
            lines.append(line)
        return "\n".join(lines).rstrip()
    lines = [line]
    while lines[-1].endswith(_GOES_ON):
        lines[-1] = lines[-1].removesuffix(_GOES_ON)
        lines.append(input(more))
    return "\n".join(lines).rstrip()
