"""Is interrupted at moments that a seed chooses: `interrupted_anywhere.py URL SEED ROUNDS`."""

# ruff: noqa: T201 - it talks with its test by lines

import random
import signal
import sys

from fluxbase_aichat import FluxbaseAIChat

url, seed, rounds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
chance = random.Random(seed)  # noqa: S311 - it is no secret
armed = False


def interrupt(*_):
    """Press Ctrl-C, if a call is on."""
    global armed  # noqa: PLW0603 - scripts do
    if armed:
        armed = False
        raise KeyboardInterrupt


def stream(pieces):
    """Read all of them."""
    for _ in pieces:
        pass


signal.signal(signal.SIGALRM, interrupt)
chat = FluxbaseAIChat(url, on_content=len)
conversation = chat.conversation("support")
calls = [
    lambda: conversation.ask("Hi"),
    lambda: stream(conversation.send("Hi").text_stream),
    lambda: conversation.send("Hi").wait(),
    lambda: conversation.send("Hi") and chat.wait_idle(),
]
for number in range(rounds):
    try:
        try:
            signal.setitimer(signal.ITIMER_REAL, chance.uniform(1e-5, 4e-3))
            armed = True
            calls[number % len(calls)]()
            armed = False
        except KeyboardInterrupt:
            pass
    except KeyboardInterrupt:  # it came when the call was over
        pass
    armed = False
    if number % 5 == 0:
        assert conversation.ask("Hi").text == "x" * 30
signal.setitimer(signal.ITIMER_REAL, 0)
chat.disconnect()
print("fine")
