"""Makes a data frame of an answer's table, and goes on with it in pandas (extra `pandas`).

    python examples/data_frame.py

`FLUXBASE_URL` and `FLUXBASE_TOKEN` say where; `fluxbase-aichat serve` prints both.
"""

from __future__ import annotations

from fluxbase_aichat import FluxbaseAIChat


def main() -> None:
    """Ask for the revenue per month, and print the three best."""
    with FluxbaseAIChat.from_env() as chat:
        table = chat.ask("sql-assistant", "What was the revenue per month?", timeout=120).table
    frame = table.to_pandas({"month": "date"})
    print(frame.dtypes.to_string())
    print(frame.nlargest(3, "revenue").to_string(index=False))


if __name__ == "__main__":
    main()
