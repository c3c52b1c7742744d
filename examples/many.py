"""Asks many questions side by side, and goes on when one of them fails.

    python examples/many.py

`FLUXBASE_URL` and `FLUXBASE_TOKEN` say where; `fluxbase-aichat serve` prints both.
"""

from __future__ import annotations

import os

from fluxbase_aichat import Reply, ask_many

QUESTIONS = [
    "How many users are there?",
    "How many orders are there?",
    "How many orders were refunded?",
    "Which category brings the most revenue?",
]


def main() -> None:
    """Ask them all, two at a time; the answers are in the order of the questions."""
    server = {"ws_url": os.environ["FLUXBASE_URL"], "token": os.environ["FLUXBASE_TOKEN"]}
    for question, answer in zip(
        QUESTIONS, ask_many(server, "sql-assistant", QUESTIONS, workers=2), strict=True
    ):
        if isinstance(answer, Reply):
            failed = [result for result in answer.query_results if result.status == "failed"]
            note = " (a query failed)" if failed else ""
            print(f"{question} {answer.segments[-1]}{note}")
        else:  # its error stands in its place
            print(f"{question} {type(answer).__name__}: {answer}")


if __name__ == "__main__":
    main()
