"""`fluxbase-aichat ask`: one question, one answer."""

from __future__ import annotations

import sys

import click

from ._going_on import going_on_options, resumed_id
from ._input import plain_input, read_all
from ._output import Form, can_draw, form_options, print_reply, terminal
from ._screen import Screen
from ._server import Server, chatbot_argument, namespace_option, server_options

__all__ = ["ask"]


@click.command()
@chatbot_argument
@click.argument("question", required=False)
@namespace_option
@going_on_options
@form_options
@server_options
def ask(
    *,
    chatbot: str,
    question: str | None,
    namespace: str | None,
    go_on: bool,
    cid: str | None,
    form: Form,
    server: Server,
) -> None:
    """Ask CHATBOT a QUESTION; without one, or with -, it is read from the standard input.

    The answer goes to the standard output, what it has cost to the standard error. --json is the
    whole reply; --csv are the rows of its last query that worked.

    The exit code is 0 for an answer, 1 when it failed, 2 for a wrong call, 3 when there is no
    connection or no time left, 4 when the server refuses who is asking, 5 when a limit is reached,
    130 after Ctrl-C.
    """
    text = _question(question)
    console = terminal()
    screen = Screen(console, live=can_draw(console), notes=terminal(stderr=True))
    cid = resumed_id(server, chatbot, namespace, go_on=go_on, cid=cid)
    with server.chat(exact=form != "json") as chat, server.naming(chatbot):
        try:
            with chat.conversation(chatbot, namespace, cid).send(text) as turn:
                if form == "text":
                    screen.answer(turn)
                else:
                    print_reply(screen.reply(turn), form)
        except KeyboardInterrupt:
            click.echo("Cancelled.", err=True)
            raise


def _question(question: str | None) -> str:
    if question is None or question == "-":
        if question is None and sys.stdin.isatty():
            raise click.UsageError(
                "there is no QUESTION: write it behind CHATBOT, or send it through a pipe"
            )
        plain_input()
        question = read_all()
    question = question.strip()
    if not question:
        raise click.UsageError("the QUESTION is empty")
    try:
        question.encode()
    except UnicodeEncodeError:
        encoding = sys.getfilesystemencoding().upper()
        raise click.UsageError(
            f"the QUESTION is not text in {encoding}: is the locale right? A pipe is always UTF-8"
        ) from None
    return question
