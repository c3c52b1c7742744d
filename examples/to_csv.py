"""Writes the rows of an answer as CSV, with exact numbers and real dates.

    python examples/to_csv.py > months.csv

`FLUXBASE_URL` and `FLUXBASE_TOKEN` say where; `fluxbase-aichat serve` prints both.
"""

from __future__ import annotations

import csv
import sys

from fluxbase_aichat import FluxbaseAIChat


def main() -> None:
    """Ask for the revenue per month and write the table of the answer."""
    with FluxbaseAIChat.from_env(exact_numbers=True) as chat:
        table = chat.ask("sql-assistant", "What was the revenue per month?").table
    writer = csv.DictWriter(sys.stdout, table.columns)
    writer.writeheader()
    # On the wire a date is text with a time in it; what it is, only the asker knows.
    writer.writerows(table.rows_as({"month": "date"}))


if __name__ == "__main__":
    main()
