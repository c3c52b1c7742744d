"""Shows answers while they grow: what the chatbot does, its SQL, and its words as they come.

    python examples/stream.py

`FLUXBASE_URL` and `FLUXBASE_TOKEN` say where; `fluxbase-aichat serve` prints both.
"""

from __future__ import annotations

import sys

from fluxbase_aichat import FluxbaseAIChat, events


def main() -> None:
    """Ask a question and a follow-up in one conversation."""
    with FluxbaseAIChat.from_env() as chat:
        conversation = chat.conversation("sql-assistant")
        for question in ("Show me the top 10 users by order count", "And by revenue?"):
            print(f"> {question}")
            # Leaving the block early, by Ctrl-C for one, cancels the answer.
            with conversation.send(question) as turn:
                for event in turn:
                    show(event)
            print()


def show(event: events.Event) -> None:
    """Print one event; those not named here, and those that newer servers add, are left out."""
    match event:
        case events.Progress(step=step, message=message):
            print(f"[{step}] {message}", file=sys.stderr)
        case events.Content(delta=delta):
            print(delta, end="", flush=True)
        case events.QueryResultEvent(result=result):
            print(f"\n{result.query}\n{len(result)} rows of {', '.join(result.columns)}")


if __name__ == "__main__":
    main()
