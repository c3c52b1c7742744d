"""Ends an answer that gets too long, or takes too long, and goes on with another question.

    python examples/cancel.py

`FLUXBASE_URL` and `FLUXBASE_TOKEN` say where; `fluxbase-aichat serve` prints both.
"""

from __future__ import annotations

from fluxbase_aichat import ChatTimeoutError, FluxbaseAIChat

ENOUGH = 40


def main() -> None:
    """Cancel one answer by its length; give another one a limit of time."""
    with FluxbaseAIChat.from_env() as chat:
        conversation = chat.conversation("sql-assistant")
        # Leaving the block cancels what still runs. The model goes on, out of sight.
        with conversation.send("Show me the top 10 users by order count") as turn:
            for _ in turn.text_stream:
                if len(turn.text) >= ENOUGH:
                    break
        print(f"{turn.text} … (cancelled: {turn.cancelled})")

        try:
            print(conversation.ask("How many users are there?", timeout=60))
        except ChatTimeoutError as error:
            print("too slow; this much has come:", error.partial_text)


if __name__ == "__main__":
    main()
