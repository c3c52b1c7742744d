"""Saves an answer as JSON, and reads it again: a reply is a value, and needs no client.

    python examples/save.py answer.json

`FLUXBASE_URL` and `FLUXBASE_TOKEN` say where; `fluxbase-aichat serve` prints both.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from fluxbase_aichat import FluxbaseAIChat, Reply


def main() -> None:
    """Ask, write what came, and show it from what was written."""
    with FluxbaseAIChat.from_env() as chat:
        reply = chat.ask("sql-assistant", "Who are the top 5 users by revenue?", timeout=120)
    values = reply.to_dict()
    del values["conversation_id"]  # a secret: whoever knows it can go on with the conversation
    text = json.dumps(values, indent=2)
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(text, encoding="utf-8")

    again = Reply.from_dict(json.loads(text))
    print(again.text)
    print(f"{again.table.row_count} rows by {again.table.query}")


if __name__ == "__main__":
    main()
