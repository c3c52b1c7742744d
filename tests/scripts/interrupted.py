"""Waits in a call until Ctrl-C comes: `interrupted.py URL CALL`."""

# ruff: noqa: T201 - it talks with its test by lines

import sys

from fluxbase_aichat import FluxbaseAI, FluxbaseAIChat, PasswordLogin, Timeouts

url, call = sys.argv[1:]


def announcing(target, name, says):
    """Have it said that a wait has begun: Ctrl-C elsewhere in the script is not the turn's."""
    method = getattr(target, name)

    def announced(*arguments):
        if says(*arguments):
            print("waiting", flush=True)
        return method(*arguments)

    setattr(target, name, announced)


chat = FluxbaseAIChat(url, on_content=lambda delta: None, timeouts=Timeouts(close=None))

if call == "with":
    with chat:
        chat.ask("support", "Hi")
elif call == "connect":
    chat.connect()
elif call == "start_chat":
    chat.start_chat("support")
elif call == "start_chat(timeout)":
    chat.start_chat("support", timeout=60)
elif call == "ask":
    chat.ask("support", "Hi")
elif call == "ask(timeout)":
    chat.ask("support", "Hi", timeout=60)
elif call == "recover":
    chat.recover("c-1")
elif call == "list_chatbots":
    FluxbaseAI(url).list_chatbots()
elif call == "token":
    PasswordLogin(url, "a@b", "p4ssword")()
elif call == "disconnect":
    chat.start_chat("support")
    chat.disconnect()
else:
    turn = chat.conversation("support").send("Hi")
    announcing(turn._answer.ended, "wait", lambda seconds: True)
    announcing(turn._answer, "read", lambda position, deadline: position._index > 0)
    if call == "result":
        turn.result()
    elif call == "wait":
        turn.wait()
    elif call == "wait_idle":
        chat.wait_idle()
    else:
        for _ in turn if call == "iterate" else turn.text_stream:
            pass
