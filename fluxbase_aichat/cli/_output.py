"""What a command gives out beside prose: JSON, CSV, and tables. It asks nobody."""

from __future__ import annotations

import csv
import datetime as dt
import functools
import io
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any, Final, Literal

import click
from rich.console import Console

from fluxbase_aichat import QueryResult, Reply
from fluxbase_aichat._harmless import harmless

__all__ = [
    "Form",
    "can_draw",
    "csv_of",
    "form_options",
    "print_csv",
    "print_json",
    "print_reply",
    "print_rows",
    "terminal",
]

Form = Literal["text", "json", "csv"]

_NARROW: Final = 20
"""Columns that a table is not cut below."""


def terminal(*, stderr: bool = False) -> Console:
    """Return a console of rich's that is plain text wherever there is no terminal."""
    stream = sys.stderr if stderr else sys.stdout
    # Not the other way round: rich also takes the word of FORCE_COLOR for a terminal.
    forced = None if stream.isatty() else False
    console = Console(stderr=stderr, highlight=False, force_terminal=forced)
    # With COLUMNS=0 nothing at all would be shown. A width that is set follows no resizing.
    if console.width < _NARROW:  # noqa: PLR1730
        console.width = _NARROW
    return console


def can_draw(console: Console) -> bool:
    """Whether a picture of a growing answer can be drawn on the standard output."""
    return sys.stdout.isatty() and not console.is_dumb_terminal


def form_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command `--json` and `--csv`; it is called with a `Form` as `form`."""

    @click.option("--json", "as_json", is_flag=True, help="Print JSON.")
    @click.option("--csv", "as_csv", is_flag=True, help="Print the rows as CSV.")
    @functools.wraps(command)
    def with_form(*, as_json: bool, as_csv: bool, **others: Any) -> Any:
        if as_json and as_csv:
            raise click.UsageError("--json and --csv exclude each other")
        return command(form="json" if as_json else "csv" if as_csv else "text", **others)

    return with_form


def print_json(value: Any) -> None:
    """Print a value as one line of ASCII, in which no terminal finds anything to obey."""
    click.echo(_json(value))


def csv_text(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return rows below the names of their columns, without escape sequences."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([harmless(name) for name in columns])
    writer.writerows([[_cell(value) for value in row] for row in rows])
    return text.getvalue()


def csv_of(table: QueryResult) -> str:
    """Return all rows of a query, none of them cut."""
    return csv_text(table.columns, ([row.get(name) for name in table.columns] for row in table))


def print_csv(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print `csv_text`."""
    click.echo(csv_text(columns, rows), nl=False)


def print_rows(form: Form, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Print these columns of some rows as CSV, or as a list of objects in JSON."""
    if form == "json":
        print_json([{name: row[name] for name in columns} for row in rows])
    else:
        print_csv(columns, ([row[name] for name in columns] for row in rows))


def print_reply(reply: Reply, form: Form) -> None:
    """Print a whole reply as JSON, or its last table as CSV; raise `NoTableError`."""
    if form == "json":
        print_json(reply.to_dict())
    else:
        click.echo(csv_of(reply.table), nl=False)


def _json(value: Any) -> str:
    return json.dumps(value, default=_plain)


def _plain(value: Any) -> str:
    return value.isoformat() if isinstance(value, dt.datetime) else str(value)


def _cell(value: Any) -> str:
    match value:
        case None:
            return ""
        case str():
            return harmless(value)
        case bool() | list() | dict():
            return _json(value)
        case Decimal() | int() | float():
            return str(value)
        case _:
            return harmless(_plain(value))
