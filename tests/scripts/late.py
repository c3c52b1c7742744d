"""Uses a client at the interpreter's end: `late.py URL WHEN`."""

# ruff: noqa: T201 - it talks with its test by lines

import atexit
import sys
import threading

from fluxbase_aichat import FluxbaseAIChat
from fluxbase_aichat.errors import FluxbaseChatError

url, when = sys.argv[1:]


def new():
    # A function of this file would keep its names alive beyond the end, and no __del__ would run.
    return FluxbaseAIChat(url, on_content=len, timeouts=5)


def ask():
    try:
        print(chat.ask("support", "Hi").text, flush=True)
    except FluxbaseChatError as error:
        print(type(error).__name__, flush=True)


def first_use():
    global chat  # noqa: PLW0603 - scripts do
    chat = new()
    ask()
    chat.disconnect()


class Owner:
    """Disconnects when it is collected."""

    def __init__(self):
        self.chat = chat

    def __del__(self):
        self.chat.disconnect()
        print("disconnected", flush=True)


if when == "first use":
    atexit.register(first_use)
    sys.exit()
if when == "disconnect, registered before":
    atexit.register(lambda: (chat.disconnect(), print("disconnected", flush=True)))
elif when == "ask, registered before":
    atexit.register(ask)
chat = new()
chat.start_chat("support")
if when == "disconnect, registered behind":
    atexit.register(chat.disconnect)
    atexit.register(print, "disconnected")
elif when == "ask, registered behind":
    atexit.register(ask)
elif when == "__del__":
    owner = Owner()  # it lives until the interpreter is taken down
elif when == "__del__, the lock is held":
    # A daemon thread that the interpreter stops keeps its locks for ever.
    held = threading.Event()
    names = {"lock": chat._session._lock, "held": held, "stop": threading.Event()}
    code = "with lock: held.set(), stop.wait()"
    threading.Thread(target=exec, args=(code, names), daemon=True).start()
    held.wait()
    owner = Owner()
