"""Catches Ctrl-C in one call after the other, and goes on: `interrupted_again.py URL`."""

import sys

from fluxbase_aichat import FluxbaseAIChat

LONG = "say One two\npause 60"


def stream(pieces):
    for _ in pieces:
        pass


chat = FluxbaseAIChat(sys.argv[1], on_content=lambda delta: None)
conversation = chat.conversation("support")
calls = {
    "ask": lambda: chat.ask("support", LONG),
    "conversation.ask": lambda: conversation.ask(LONG),
    "result": lambda: conversation.send(LONG).result(),
    "wait": lambda: conversation.send(LONG).wait(),
    "iterate": lambda: stream(conversation.send(LONG)),
    "text_stream": lambda: stream(conversation.send(LONG).text_stream),
}
for name, call in calls.items():
    try:
        call()
    except KeyboardInterrupt:
        print(name, conversation.ask("say fine").text, flush=True)
    else:
        print(name, "was not interrupted", flush=True)
