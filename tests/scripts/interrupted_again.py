"""Catches Ctrl-C in one call after the other, and goes on: `interrupted_again.py URL`."""

# ruff: noqa: T201 - it talks with its test by lines

import sys

from fluxbase_aichat import FluxbaseAIChat

LONG = "say One two\npause 60"


def send(read):
    """Send, and read in a `with`: Ctrl-C may come just before or behind a wait as well."""
    with conversation.send(LONG) as turn:
        read(turn)


def stream(pieces):
    """Read all of them."""
    for _ in pieces:
        pass


chat = FluxbaseAIChat(sys.argv[1], on_content=lambda delta: None)
conversation = chat.conversation("support")
calls = {
    "ask": lambda: chat.ask("support", LONG),
    "conversation.ask": lambda: conversation.ask(LONG),
    "result": lambda: send(lambda turn: turn.result()),
    "wait": lambda: send(lambda turn: turn.wait()),
    "iterate": lambda: send(stream),
    "text_stream": lambda: send(lambda turn: stream(turn.text_stream)),
}
for name, call in calls.items():
    try:
        call()
    except KeyboardInterrupt:
        print(name, conversation.ask("say fine").text, flush=True)
    else:
        print(name, "was not interrupted", flush=True)
