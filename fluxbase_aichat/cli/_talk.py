"""Question and answer by turns: what `chat` and `demo` share. It knows no commands."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from fluxbase_aichat import Conversation, FluxbaseChatError, Turn

from ._screen import Screen

__all__ = ["Outcome", "attempt"]

Outcome = Literal["answered", "cancelled", "failed"]


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
