"""Answers as values, without a socket; and Python's values as the wire would carry them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, Final, overload
from uuid import UUID

from fluxbase_aichat._protocol import error_of
from fluxbase_aichat.config import check_text, named_keywords
from fluxbase_aichat.errors import ConfigurationError, FluxbaseChatError
from fluxbase_aichat.events import ErrorEvent
from fluxbase_aichat.results import Interval, QueryResult, Reply, Usage

__all__ = ["failed_result", "query_result", "reply"]

Rows = Sequence[Mapping[str, Any]]

_MICROSECOND: Final = timedelta(microseconds=1)


@overload
def reply(
    text: str = ...,
    *,
    rows: Rows | None = ...,
    query: str = ...,
    usage: Usage | None = ...,
    chatbot: str = ...,
    conversation_id: str = ...,
) -> Reply: ...
@overload
def reply(text: str = ..., *, error: str, code: str = ...) -> FluxbaseChatError: ...
@named_keywords
def reply(
    text: str = "",
    *,
    rows: Rows | None = None,
    query: str = "",
    usage: Usage | None = None,
    chatbot: str = "sql-assistant",
    conversation_id: str = "00000000-0000-4000-8000-000000000000",
    error: str | None = None,
    code: str = "",
) -> Reply | FluxbaseChatError:
    """Return an answer as `ask()` would, for a mock's `return_value`.

    `rows` becomes a query result: `[]` is a query that found nothing. Values are Python's (`UUID`,
    `datetime`, `Decimal`, …) and arrive in `data` as the wire has them. `query` is its SQL; by
    default one that names the columns in the order of the first row.

    With `error` it is the exception that `ask()` would raise for an error of the server, for a
    mock's `side_effect`: `code` decides its class, and `text` is what had come before.

    Raises `ConfigurationError` for what is none of these, and for a value that PostgreSQL has no
    type for.
    """
    texts = {"text": text, "query": query, "chatbot": chatbot, "code": code}
    for name, value in (texts | {"conversation_id": conversation_id, "error": error or ""}).items():
        check_text(name, value)
    if error is not None:
        failure = error_of(ErrorEvent(conversation_id=conversation_id, error=error, code=code))
        failure.partial_text = text
        return failure
    return Reply(
        text=text,
        segments=(text,) if text else (),
        usage=usage,
        query_results=() if rows is None else (query_result(rows, query),),
        conversation_id=conversation_id,
        chatbot=chatbot,
        duration=0.0,
        time_to_first_content=0.0 if text else None,
    )


def query_result(rows: Rows, query: str = "") -> QueryResult:
    """Return the result of a query that found these rows."""
    check_text("query", query)
    if isinstance(rows, (str, bytes)) or not (
        isinstance(rows, Sequence) and all(isinstance(row, Mapping) for row in rows)
    ):
        raise ConfigurationError("rows must be a list of rows, such as [{'id': 1}]; [] found none")
    data = [{name: _wire(row[name]) for name in sorted(row)} for row in rows]
    if not query:
        names = [_quoted(name) for name in (rows[0] if rows else ())]
        query = f"SELECT {', '.join(names) or '*'} FROM fake"  # noqa: S608 - nobody runs it
    if not data:
        reason = "no data matches your query criteria"
        summary = f"Query executed successfully but returned 0 rows - {reason}."
        return QueryResult(query, summary)
    return QueryResult(query, f"Query returned {len(data)} row(s).", len(data), data)


def failed_result(query: str) -> QueryResult:
    """Return the result of a query that failed."""
    check_text("query", query)
    return QueryResult(query, "Query failed to execute")


def _quoted(name: str) -> str:
    plain = name.isascii() and name.isidentifier() and name == name.lower()
    return name if plain else '"' + name.replace('"', '""') + '"'


def _wire(value: Any) -> Any:
    """Return a value in the shape that PROTOCOL.md gives its type."""
    match value:
        case None | bool() | int() | float() | str() | Decimal():
            return value
        case UUID():
            return list(value.bytes)
        case datetime():
            moment = value.astimezone(UTC) if value.tzinfo is not None else value
            return moment.replace(tzinfo=None).isoformat(timespec="seconds") + "Z"
        case date():
            return f"{value.isoformat()}T00:00:00Z"
        case time():
            since = timedelta(
                hours=value.hour,
                minutes=value.minute,
                seconds=value.second,
                microseconds=value.microsecond,
            )
            return {"Microseconds": since // _MICROSECOND, "Valid": True}
        case timedelta():
            rest = (value - timedelta(days=value.days)) // _MICROSECOND
            return _wire(Interval(days=value.days, microseconds=rest))
        case Interval(months, days, microseconds):
            parts = {"Microseconds": microseconds, "Days": days, "Months": months}
            return {**parts, "Valid": True}
        case list() | tuple():
            return [_wire(item) for item in value]
        case dict():
            return {str(key): _wire(value[key]) for key in sorted(value)}
    raise ConfigurationError(f"rows: no column holds a {type(value).__name__}")
