"""Asks, and does not give up: it fetches an answer that was lost, and repeats what is worth it.

    python examples/patient.py "How many users are there?"

`FLUXBASE_URL` and `FLUXBASE_TOKEN` say where; `fluxbase-aichat serve` prints both.
"""

from __future__ import annotations

import sys
import time

from fluxbase_aichat import (
    ConnectionLostError,
    FluxbaseAIChat,
    FluxbaseChatError,
    RecoveryError,
    Reply,
)

TRIES = 3


def main() -> None:
    """Ask what stands on the command line."""
    question = " ".join(sys.argv[1:]) or "How many users are there?"
    with FluxbaseAIChat.from_env() as chat:
        print(ask_patiently(chat, "keeper", question))


def ask_patiently(chat: FluxbaseAIChat, chatbot: str, question: str) -> Reply:
    """Return the answer; an answer is paid for twice only where nobody knows of the first."""
    for attempt in range(1, TRIES + 1):
        try:
            return chat.ask(chatbot, question, timeout=120)
        except ConnectionLostError as error:
            # The server goes on, and a chatbot that keeps its conversations keeps the answer.
            try:
                if error.sent is not False and error.turn is not None:
                    recovered: Reply = error.turn.recover(timeout=60)
                    return recovered
            except RecoveryError as failure:
                print(f"not recovered: {failure.reason}", file=sys.stderr)
            failed: FluxbaseChatError = error
        except FluxbaseChatError as error:
            if not error.retryable:
                raise
            failed = error
        if attempt == TRIES:
            raise failed
        seconds = failed.retry_after or 2.0**attempt
        print(f"{type(failed).__name__}; again in {seconds:g} s", file=sys.stderr)
        time.sleep(seconds)
    raise AssertionError


if __name__ == "__main__":
    main()
