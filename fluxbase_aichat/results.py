"""What a user keeps of an answer: frozen values, to be stored, pickled and passed between threads.

Nothing here does I/O or knows the wire; a `Reply` is complete when it exists.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, overload

import attrs

from . import _plain
from ._edge import edge
from ._kinds import ColumnType, Interval
from ._value import Value
from .errors import ConfigurationError, NoTableError, QueryFailedError

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl

__all__ = [
    "ColumnType",
    "IntentRule",
    "Interval",
    "QueryResult",
    "Quota",
    "QuotaCounter",
    "Reply",
    "Status",
    "ToolOutput",
    "Usage",
    "read_quota",
    "read_usage",
]

Status: TypeAlias = Literal["ok", "empty", "failed", "rejected", "unknown"]

# What a result without rows says of itself, by the start of its summary (PROTOCOL 4.11; the
# "Returned" of execute_sql is in the recording turn_mcp_tools).
_STATUS_BY_SUMMARY: Final[tuple[tuple[str, Status], ...]] = (
    ("Query executed successfully", "empty"),
    ("Query returned 0 row", "empty"),
    ("Returned 0 row", "empty"),
    ("Query failed", "failed"),
    ("Query was rejected", "rejected"),
)

_CAPTIONS: Final[dict[Status, str]] = {
    "ok": "",
    "empty": "No rows.",
    "failed": "The query failed.",
    "rejected": "The query was rejected.",
    "unknown": "No rows, and the server does not say why.",
}

# Bounds of what is shown, in rows and in characters. All of it is in the value itself.
_SHOWN_ROWS: Final = 50
_SHOWN_TEXT: Final = 1_000


@attrs.frozen(eq=False, repr=False)
class Usage(Value):
    """The tokens that an answer has used; all 0 when the model's provider does not count."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    cached_tokens: int | None = None
    """How many of the prompt's tokens came from a cache, or `None` where that is not told."""


@attrs.frozen(eq=False, repr=False)
class IntentRule(Value):
    """A rule of the chatbot that a word of the question has set off."""

    keyword: str = ""
    required_table: str | None = None
    forbidden_table: str | None = None
    required_tool: str | None = None
    forbidden_tool: str | None = None


@attrs.frozen(eq=False, repr=False)
class QuotaCounter(Value):
    """How much of a daily limit is used."""

    used: int = 0
    limit: int = 0


@attrs.frozen(eq=False, repr=False)
class Quota(Value):
    """What this user may still ask of this chatbot today, as of the end of the answer."""

    requests: QuotaCounter = attrs.field(factory=QuotaCounter)
    tokens: QuotaCounter = attrs.field(factory=QuotaCounter)
    resets_at: str | None = None
    """When the counters start again: a date and time by RFC 3339, as the server wrote it."""


@attrs.frozen(eq=False, repr=False)
class QueryResult(Value, Sequence[dict[str, Any]]):
    """The result of one SQL query: a sequence of its rows.

    It is always true, also without rows, so that `if reply.query_results[0]:` does not change its
    meaning with the data. Two results are equal when the server said the same.
    """

    query: str = ""
    """The SQL that was run."""
    summary: str = ""
    """What the server says of the result, in a sentence."""
    row_count: int = 0
    """The number of rows by the server's count."""
    data: list[dict[str, Any]] = attrs.field(factory=list)
    """The rows exactly as the server sent them: column names in alphabetical order, a UUID as
    16 integers, dates and times as the wire writes them."""

    @property
    def status(self) -> Status:
        """How the query ended, judged by its rows and the server's summary.

        `"ok"` there are rows, `"empty"` it succeeded without rows, `"failed"`, `"rejected"` by the
        server's security check, `"unknown"` no rows, and a summary that is not known.
        """
        if self.data:
            return "ok"
        for start, status in _STATUS_BY_SUMMARY:
            if self.summary.startswith(start):
                return status
        return "unknown"

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """The names of the columns; none when there are no rows.

        In the order of the query when its select list is plain names or `expression AS name`,
        else (`SELECT *`, `count(*)`) in the order of the server, which is alphabetical.
        """
        from ._select import column_order  # noqa: PLC0415 - only when asked for

        return column_order(self.query, self.data)

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """The rows with their columns in the order of `columns`, made when first asked for.

        A column whose every value has the shape of a UUID, a time or an interval holds
        `uuid.UUID`, `datetime.time`, or `datetime.timedelta` (`Interval` if one of them has
        months). Everything else is as in `data`: date-times are text, see `rows_as`.
        """
        return self.rows_as({})

    @edge
    def rows_as(self, types: Mapping[str, ColumnType]) -> list[dict[str, Any]]:
        """Return the rows with some columns as the types that you name.

        `types` maps a column to a function of one value, or to one of:

        - `"timestamp"`: `datetime` without a zone; the `Z` on the wire is not one
        - `"timestamptz"`: `datetime` in UTC
        - `"date"`, `"time"`: `date`, `time`
        - `"interval"`: `timedelta`, or `Interval` in all rows if one has months or is too long
        - `"uuid"`: `uuid.UUID`
        - `"numeric"`, `"integer"`, `"float"`: `decimal.Decimal`, `int`, `float`
        - `"array"`, `"text"`: the list or text as it came (16 small integers that are no UUID)
        - `"json"`: whatever came

        The value is taken as in `data`; a null stays `None` and no function sees it. The other
        columns are as in `rows`. Raises `ConfigurationError` for an unknown column or type, and for
        a value that does not fit. A result without rows knows no columns, and takes any.
        """
        from ._columns import check_types, convert, recognise  # noqa: PLC0415 - only when asked for

        columns = self.columns
        types = check_types(types, columns)
        rows = [{name: row[name] for name in columns if name in row} for row in self.data]
        for name in columns:
            values = [row.get(name) for row in self.data]
            wanted = types.get(name)
            converted = recognise(values) if wanted is None else convert(name, values, wanted)
            if converted is None:
                continue
            for row, value in zip(rows, converted, strict=True):
                if name in row:
                    row[name] = value
        return rows

    @edge
    def to_pandas(self, types: Mapping[str, ColumnType] | None = None) -> pd.DataFrame:
        """Return the rows as a `pandas.DataFrame` (extra `pandas`), columns as in `columns`.

        A column becomes what its values are: `bool` or `boolean`, `int64` or `Int64` (the second
        of each where there are nulls), `float64`, text; UUIDs, times, exact numbers, intervals
        with months, lists and objects are Python's own in a column of `object`. Date-times become
        `datetime64[us, UTC]` as the wire says, intervals without months `timedelta64[us]`.

        `types` decides otherwise, as in `rows_as`: `"timestamp"` and `"date"` become
        `datetime64[us]` without a zone. Of a result without rows the frame has the columns that
        `types` names, each of its type, and no others.

        Raises `QueryFailedError` when the query failed or was rejected, or when it is not known
        whether it did, `ConfigurationError` as `rows_as` does, and `MissingExtraError`.
        """
        self._check_succeeded()
        from . import _frames  # noqa: PLC0415 - only when asked for

        return _frames.to_pandas(self.data, self.columns, types)

    @edge
    def to_polars(self, types: Mapping[str, ColumnType] | None = None) -> pl.DataFrame:
        """Return the rows as a `polars.DataFrame` (extra `polars`), columns as in `columns`.

        A column becomes what its values are: `Boolean`, `Int64`, `Float64`, `String`, `Time`;
        UUIDs are text, exact numbers and integers beyond 64 bits `Decimal` (text beyond its 38
        digits). Date-times become `Datetime("us", "UTC")` as the wire says, intervals
        `Duration("us")`, or a struct of months, days and microseconds if one has months. Lists
        and objects become `List` and `Struct` where all values agree, else text of JSON.

        `types` decides otherwise, as in `rows_as`; `"json"` makes it text of JSON in any case. Of a
        result without rows the frame has the columns that `types` names, each of its type.

        Raises what `to_pandas` raises.
        """
        self._check_succeeded()
        from . import _frames  # noqa: PLC0415 - only when asked for

        return _frames.to_polars(self.data, self.columns, types)

    def _check_succeeded(self) -> None:
        if self.status not in ("ok", "empty"):
            raise QueryFailedError(
                f"there is no table: {_line(self.summary, 200) or _CAPTIONS[self.status]}"
            )

    def __bool__(self) -> Literal[True]:
        return True

    def __len__(self) -> int:
        return len(self.data)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.rows)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        return self.rows[index]

    def __repr__(self) -> str:
        columns = _line(", ".join(self.columns), 100)
        return f"<QueryResult {self.status}: {self.row_count} row(s) of ({columns})>"

    def _repr_html_(self) -> str:
        """Show the SQL and at most 50 rows in a notebook."""
        parts = [f"<pre>{_escape(self.query)}</pre>"] if self.query else []
        if self.data:
            parts.append(_html_table(self.columns, self.rows[:_SHOWN_ROWS]))
        else:
            parts.append(f"<p><em>{_CAPTIONS[self.status]}</em> {_escape(self.summary)}</p>")
        if len(self) > _SHOWN_ROWS:
            parts.append(f"<p>… and {len(self) - _SHOWN_ROWS} more row(s)</p>")
        return "\n".join(parts)


# attrs writes it for the cached properties, and says no module; `help` of Python 3.13 needs one.
if "__getattr__" in vars(QueryResult):
    vars(QueryResult)["__getattr__"].__module__ = __name__


@attrs.frozen(eq=False, repr=False)
class ToolOutput(Value):
    """What one of the chatbot's tools gave back."""

    tool: str = ""
    """The name of the tool, such as `query_table`."""
    data: list[dict[str, Any]] = attrs.field(factory=list)
    """The rows as the server sent them; one with the keys `tool` and `result` but for SQL."""
    query_result: QueryResult | None = None
    """The rows as a query result, when the tool is `execute_sql`."""

    @property
    def text(self) -> str:
        """The result as text, `""` when it is rows."""
        row = self.data[0] if len(self.data) == 1 else None
        if self.query_result is None and isinstance(row, dict) and row.keys() == {"tool", "result"}:
            return row["result"] if isinstance(row["result"], str) else ""
        return ""

    def _repr_html_(self) -> str:
        """Show the text, or the rows with their SQL, in a notebook."""
        if self.query_result is not None:
            return self.query_result._repr_html_()
        return f"<p><em>{_escape(self.tool)}</em></p>\n<pre>{_escape(self.text)}</pre>"

    def __repr__(self) -> str:
        what = repr(_cut(self.text, 60)) if self.query_result is None else repr(self.query_result)
        return f"<ToolOutput {_line(self.tool, 60)}: {what}>"


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Reply(Value):
    """A whole answer. `str(reply)` is its text."""

    text: str = ""
    """Everything that the chatbot wrote, in one piece."""
    segments: tuple[str, ...] = ()
    """The same text, split where the chatbot stopped writing to run tools."""
    usage: Usage | None = None
    """The tokens used, `None` when the server does not say."""
    query_results: tuple[QueryResult, ...] = ()
    """The results of the SQL queries, in the order of their arrival."""
    tool_results: tuple[ToolOutput, ...] = ()
    """What the chatbot's tools gave back; those of `execute_sql` are in `query_results` too."""
    # Whoever knows the id can read the conversation, so it is not shown.
    conversation_id: str = ""
    """The conversation's id. It is a secret between the server and the user."""
    chatbot: str = ""
    """The chatbot that answered."""
    matched_intent_rules: tuple[IntentRule, ...] = ()
    """The chatbot's rules that the question has set off."""
    daily_quota: Quota | None = None
    """What is used of the daily limits, `None` when the server does not say."""
    duration: float | None = None
    """Seconds from writing the question to the end of the answer; `None` for a recovered one."""
    time_to_first_content: float | None = None
    """Seconds from writing the question to the first text; `None` when there was none."""

    @property
    @edge
    def table(self) -> QueryResult:
        """The last query result that succeeded, with rows or without.

        Raises `NoTableError`, which repeats what the server said of the others.
        """
        for result in reversed(self.query_results):
            if result.status in ("ok", "empty"):
                return result
        if not self.query_results:
            raise NoTableError("the answer has no query result")
        summaries = "; ".join(_cut(r.summary or "no summary", 200) for r in self.query_results[:5])
        raise NoTableError(f"no query of this answer succeeded: {summaries}")

    def to_dict(self) -> dict[str, Any]:
        """Return the reply as plain dictionaries, lists, texts and numbers, ready for any JSON.

        Exact numbers become `{"$decimal": "12.50"}`. The conversation id is in it.
        """
        return {
            "text": self.text,
            "segments": list(self.segments),
            "usage": None if self.usage is None else attrs.asdict(self.usage),
            "query_results": [_result_to_dict(result) for result in self.query_results],
            "tool_results": [_tool_to_dict(tool, self.query_results) for tool in self.tool_results],
            "conversation_id": self.conversation_id,
            "chatbot": self.chatbot,
            "matched_intent_rules": [attrs.asdict(rule) for rule in self.matched_intent_rules],
            "daily_quota": None if self.daily_quota is None else attrs.asdict(self.daily_quota),
            "duration": self.duration,
            "time_to_first_content": self.time_to_first_content,
        }

    @classmethod
    @edge
    def from_dict(cls, values: Mapping[str, Any]) -> Reply:
        """Build the reply again that `to_dict` was called on, also after a way through JSON.

        Fields that are missing are empty, and unknown ones are ignored, so that an older and a
        newer version read each other. Raises `ConfigurationError` when it is something else.
        """
        if not isinstance(values, Mapping):
            kind = type(values).__name__
            raise ConfigurationError(f"from_dict takes what to_dict has returned, not {kind}")
        if values and not any(field.name in values for field in attrs.fields(cls)):
            raise ConfigurationError("from_dict takes what to_dict has returned: no field is here")
        query_results: list[QueryResult] = []

        def results(items: Any) -> tuple[QueryResult, ...]:
            query_results.extend(_result_from_dict(item) for item in _plain.read_list(items))
            return tuple(query_results)

        return _plain.build(
            cls,
            values,
            text=_plain.text,
            segments=_plain.many(_plain.text),
            usage=read_usage,
            query_results=results,  # before the tools, which refer to them
            tool_results=_plain.many(lambda tool: _tool_from_dict(tool, query_results)),
            conversation_id=_plain.text,
            chatbot=_plain.text,
            matched_intent_rules=_plain.many(_rule_from_dict),
            daily_quota=read_quota,
            duration=_plain.seconds,
            time_to_first_content=_plain.seconds,
        )

    def __repr__(self) -> str:
        tables = f", {len(self.query_results)} query result(s)" if self.query_results else ""
        return f"<Reply {_cut(self.text, 60)!r}{tables}>"

    def __str__(self) -> str:
        return self.text

    def _repr_markdown_(self) -> str:
        """Show the text in a notebook, with a blank line where tools ran; HTML is made harmless."""
        from ._harmless import harmless_markdown  # noqa: PLC0415 - only a notebook needs it

        return harmless_markdown("\n\n".join(self.segments) if self.segments else self.text)


# --- Text for people ------------------------------------------------------------------------


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _line(text: str, limit: int) -> str:
    # The server's names may hold line ends and a terminal's escape codes.
    return repr(_cut(text, limit))[1:-1]


def _escape(value: Any) -> str:
    # Half of a surrogate pair is legal in JSON, but no notebook can store it.
    text = _cut(str(value), _SHOWN_TEXT).encode("utf-8", "replace").decode()
    import html  # noqa: PLC0415 - only notebooks need it

    return html.escape(text)


def _html_table(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    head = "".join(f"<th>{_escape(name)}</th>" for name in columns)
    lines = [
        "<tr>" + "".join(_html_cell(row.get(name)) for name in columns) + "</tr>" for row in rows
    ]
    body = "\n".join(lines)
    return f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>"


def _html_cell(value: Any) -> str:
    return "<td><em>null</em></td>" if value is None else f"<td>{_escape(value)}</td>"


# --- To and from JSON -----------------------------------------------------------------------


def _result_to_dict(result: QueryResult) -> dict[str, Any]:
    return {
        "query": result.query,
        "summary": result.summary,
        "row_count": result.row_count,
        "data": _plain.encode(result.data),
    }


def _tool_to_dict(output: ToolOutput, query_results: Sequence[QueryResult]) -> dict[str, Any]:
    """Write a tool's output; rows that are among the query results already only by their place."""
    result = output.query_result
    place = next((i for i, other in enumerate(query_results) if other is result), None)
    shared = result is not None and output.data is result.data
    return {
        "tool": output.tool,
        "data": None if shared else _plain.encode(output.data),
        "query_result": _result_to_dict(result) if result is not None and place is None else place,
    }


def read_usage(values: Any) -> Usage:
    """Read what an answer has used; raise `ConfigurationError` for what is none."""
    return _plain.build(
        Usage,
        values,
        prompt_tokens=_plain.count,
        completion_tokens=_plain.count,
        total_tokens=_plain.count,
        cached_tokens=_plain.count,
    )


def _rule_from_dict(values: Any) -> IntentRule:
    return _plain.build(
        IntentRule,
        values,
        keyword=_plain.text,
        required_table=_plain.text,
        forbidden_table=_plain.text,
        required_tool=_plain.text,
        forbidden_tool=_plain.text,
    )


def _read_counter(values: Any) -> QuotaCounter:
    return _plain.build(QuotaCounter, values, used=_plain.count, limit=_plain.count)


def read_quota(values: Any) -> Quota:
    """Read what is used of the daily limits; raise `ConfigurationError` for what is none."""
    return _plain.build(
        Quota, values, requests=_read_counter, tokens=_read_counter, resets_at=_plain.text
    )


def _result_from_dict(values: Any) -> QueryResult:
    return _plain.build(
        QueryResult,
        values,
        query=_plain.text,
        summary=_plain.text,
        row_count=_plain.count,
        data=_plain.rows,
    )


def _tool_from_dict(values: Any, query_results: Sequence[QueryResult]) -> ToolOutput:
    def result(place: Any) -> QueryResult:
        return query_results[place] if isinstance(place, int) else _result_from_dict(place)

    output = _plain.build(
        ToolOutput, values, tool=_plain.text, data=_plain.rows, query_result=result
    )
    if output.query_result is not None and _plain.mapping(values).get("data") is None:
        return attrs.evolve(output, data=output.query_result.data)
    return output
