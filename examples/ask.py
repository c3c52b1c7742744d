"""Asks one question and prints the answer, the rows of its last query, and what it cost.

    python examples/ask.py "Which category brings the most revenue?"

`FLUXBASE_URL` and `FLUXBASE_TOKEN` say where; `fluxbase-aichat serve` prints both.
"""

from __future__ import annotations

import sys

from fluxbase_aichat import FluxbaseAIChat, FluxbaseChatError, NoTableError


def main() -> None:
    """Ask what stands on the command line."""
    question = " ".join(sys.argv[1:]) or "Show me the top 5 users by order count"
    try:
        with FluxbaseAIChat.from_env() as chat:
            reply = chat.ask("sql-assistant", question, timeout=120)
    except FluxbaseChatError as error:
        sys.exit(f"{type(error).__name__}: {error}")

    print("\n".join(reply.segments))
    try:
        for row in reply.table:
            print(*row.values(), sep="\t")
    except NoTableError:
        pass  # a question that needs no query
    if reply.usage is not None:
        print(f"{reply.usage.total_tokens} tokens", file=sys.stderr)


if __name__ == "__main__":
    main()
