"""The JavaScript SDK's example in Python: callbacks, and a call that does not wait.

    python examples/callbacks.py

`FLUXBASE_URL` and `FLUXBASE_TOKEN` say where; `fluxbase-aichat serve` prints both.
"""

from __future__ import annotations

import os
import sys

from fluxbase_aichat import FluxbaseAIChat, Usage


def on_query_result(query: str, summary: str, row_count: int) -> None:
    """Take as many of the arguments as are wanted: here not the rows, nor the conversation."""
    print(f"\nQuery: {query}\nResult: {summary} ({row_count} rows)")


def on_done(usage: Usage | None) -> None:
    """Say what it cost, where the server tells it."""
    if usage is not None:
        print(f"\nTokens: {usage.total_tokens}")


def main() -> None:
    """Send a message; all that happens to it, callbacks tell."""
    chat = FluxbaseAIChat(
        ws_url=os.environ["FLUXBASE_URL"],
        token=os.environ["FLUXBASE_TOKEN"],
        on_content=lambda delta: print(delta, end="", flush=True),
        on_progress=lambda step, message: print(f"[{step}] {message}"),
        on_query_result=on_query_result,
        on_done=on_done,
        on_error=lambda error, code: print(f"Error: {error} ({code})", file=sys.stderr),
    )
    chat.connect()
    conversation_id = chat.start_chat("sql-assistant")
    turn = chat.send_message(conversation_id, "Show me the top 10 users by order count")
    turn.wait()  # a script would end before the answer; a program with more to do goes on
    chat.disconnect()


if __name__ == "__main__":
    main()
