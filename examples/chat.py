"""A chat in the terminal: each line is a message, Ctrl-C ends an answer, Ctrl-D the chat.

    python examples/chat.py

`FLUXBASE_URL` and `FLUXBASE_TOKEN` say where; `fluxbase-aichat serve` prints both.
"""

from __future__ import annotations

import re
import sys

from fluxbase_aichat import FluxbaseAIChat, FluxbaseChatError

# What a chatbot writes is a stranger's: an escape sequence could rewrite the screen.
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def main() -> None:
    """Read a line, show its answer while it grows, and read the next."""
    with FluxbaseAIChat.from_env() as chat:
        conversation = chat.conversation("sql-assistant", on_lost="new")
        print("Ask away.")
        for line in sys.stdin:
            if not line.strip():
                continue
            try:
                for text in conversation.send(line.strip()).text_stream:
                    print(CONTROLS.sub("", text), end="", flush=True)
                print()
            except KeyboardInterrupt:
                print("\n(cancelled)")  # waiting for the answer has cancelled it
            except FluxbaseChatError as error:
                print(f"\n{type(error).__name__}: {error}", file=sys.stderr)


if __name__ == "__main__":
    main()
