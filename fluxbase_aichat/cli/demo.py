"""`fluxbase-aichat demo`: a chat with a dev server of its own, through the public API alone."""

from __future__ import annotations

import contextlib
import sys
from typing import Final

import click

from fluxbase_aichat import FluxbaseAIChat
from fluxbase_aichat.devserver import DevServer

from ._input import read_question
from ._output import can_draw, terminal
from ._screen import Screen
from ._talk import attempt

__all__ = ["CHATBOT", "INTRODUCTION", "QUESTIONS", "demo"]

QUESTIONS: Final = (
    "Show me the top 10 users by order count",
    "And by revenue?",
    "What was the revenue per month?",
    "How many orders were refunded?",  # the shop has no such column: a query that fails
)
"""What the demo asks by itself."""

CHATBOT: Final = "sql-assistant"
"""The chatbot that it asks."""
_DELAY: Final = 0.03  # seconds between two words; a person sees them come

_LEAVING: Final = ("/quit", "quit", "exit")

INTRODUCTION: Final = (
    f"[bold]{CHATBOT}[/bold] answers questions about a small shop with SQL. It lives in a dev "
    "server on this machine; all that follows goes through the library's public API."
)
"""What it says first, in rich's markup."""
_YOUR_TURN: Final = (
    "Now you: ask something, such as [bold]Which category brings the most revenue?[/bold]\n"
    "[dim]Ctrl-C cancels an answer; an empty line or Ctrl-D ends the chat.[/dim]"
)


@click.command()
def demo() -> None:
    """Hold a chat with a dev server, then let you go on with it.

    It needs no server, no account and no network.
    """
    console = terminal()
    live = can_draw(console)
    with (
        DevServer(chunk_delay=_DELAY if live else 0.0) as server,
        # The token is asked for again at every connection, so the chat may last for hours.
        FluxbaseAIChat(server.ws_url, token=server.token, exact_numbers=True) as chat,
    ):
        console.print(INTRODUCTION)
        screen = Screen(console, live=live)
        conversation = chat.conversation(CHATBOT)
        if not (sys.stdout.isatty() and sys.stdin.isatty()):
            for question in QUESTIONS:
                screen.question(question)
                screen.answer(conversation.send(question))
            return
        with contextlib.suppress(KeyboardInterrupt):  # between two answers: the chat is over
            for question in QUESTIONS:
                screen.question(question)
                attempt(screen, conversation, question)
            screen.print(_YOUR_TURN)
            while question := _ask_user(screen):
                attempt(screen, conversation, question)


def _ask_user(screen: Screen) -> str:
    """Return the user's next question, `""` at the end."""
    try:
        question = read_question(f"\n{screen.prompt}").strip()
    except (EOFError, KeyboardInterrupt):
        click.echo()
        return ""
    return "" if question in _LEAVING else question
