"""Ends without a word, in some state: `ends.py URL STATE`. It prints `ready` before its end."""

# ruff: noqa: T201 - it talks with its test by lines

import sys
import threading

from fluxbase_aichat import FluxbaseAIChat, Timeouts

url, state = sys.argv[1:]
hold = threading.Event()
told = threading.Event()


def slow(*_):
    told.set()
    hold.wait()


def quick(*_):
    told.set()


patient = Timeouts(close=60, connect=60)
if state == "new":
    chat = FluxbaseAIChat(url)
elif state in ("opening", "reconnecting"):
    chat = FluxbaseAIChat(url, timeouts=patient, reconnect_delay=60, on_event=quick)
    threading.Thread(target=chat.connect, daemon=True).start()
    sys.stdin.readline()
elif state == "idle":
    chat = FluxbaseAIChat(url, timeouts=patient, on_content=quick)
    chat.start_chat("support")
elif state == "disconnected":
    chat = FluxbaseAIChat(url, timeouts=patient, on_content=quick)
    chat.start_chat("support")
    chat.disconnect()
elif state == "answered":
    with FluxbaseAIChat(url, timeouts=patient, on_content=quick) as chat:
        chat.ask("support", "Hi")
elif state == "turn":
    chat = FluxbaseAIChat(url, timeouts=patient)
    turn = chat.conversation("support").send("Hi")
    next(iter(turn))
elif state == "callback turn":
    chat = FluxbaseAIChat(url, timeouts=patient, on_content=quick)
    turn = chat.conversation("support").send("Hi")
    told.wait()
elif state == "callback turn, dropped":
    chat = FluxbaseAIChat(url, timeouts=patient, on_content=quick)
    chat.conversation("support").send("Hi")
    told.wait()
elif state == "callback turns":
    chat = FluxbaseAIChat(url, timeouts=patient, on_content=quick)
    turns = [chat.conversation("support").send("Hi") for _ in range(3)]
    told.wait()
elif state == "two clients":
    chats = [FluxbaseAIChat(url, timeouts=patient, on_content=quick) for _ in range(2)]
    turns = [chat.conversation("support").send("Hi") for chat in chats]
    told.wait()
elif state == "in a callback":
    chat = FluxbaseAIChat(url, timeouts=patient, on_content=slow)
    turn = chat.conversation("support").send("Hi")
    told.wait()
elif state == "in its last callback":
    chat = FluxbaseAIChat(url, timeouts=patient, on_done=slow)
    chat.conversation("support").send("Hi").result()
    told.wait()
elif state == "cancelled":
    chat = FluxbaseAIChat(url, timeouts=patient, on_content=slow)
    turn = chat.conversation("support").send("Hi")
    told.wait()
    turn.cancel()
elif state == "asking in a daemon thread":
    chat = FluxbaseAIChat(url, timeouts=patient)
    threading.Thread(target=chat.ask, args=("support", "Hi"), daemon=True).start()
    sys.stdin.readline()
elif state == "no stderr":
    chat = FluxbaseAIChat(url, timeouts=patient, on_content=quick)
    turn = chat.conversation("support").send("Hi")
    told.wait()
    sys.stderr.close()
elif state in ("exit 3", "an exception"):
    chat = FluxbaseAIChat(url, timeouts=patient, on_content=quick)
    turn = chat.conversation("support").send("Hi")
    told.wait()
    print("ready", flush=True)
    if state == "exit 3":
        sys.exit(3)
    raise LookupError("of the script")
print("ready", flush=True)
