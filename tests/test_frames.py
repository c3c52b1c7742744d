"""Query results as frames: the type of each column in pandas and polars, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID

import pandas as pd
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxbase_aichat import (
    ConfigurationError,
    FluxbaseAIChat,
    Interval,
    MissingExtraError,
    QueryFailedError,
    QueryResult,
    RemoteProtocolError,
)

UUID_BYTES = [0, 0, 0, 0, 0, 0, 64, 0, 128, 0, 0, 0, 0, 0, 0, 1]
UUID_TEXT = "00000000-0000-4000-8000-000000000001"
NOON = {"Microseconds": 43_200_000_000, "Valid": True}
EMPTY = QueryResult("SELECT a FROM t", "Query executed successfully but returned 0 rows")


@pytest.fixture(scope="module", autouse=True)
def polars_runtime() -> None:
    """Have polars open what it opens once for its process, before any test counts descriptors."""
    pl.Series([datetime(2026, 1, 1, tzinfo=UTC)], dtype=pl.Datetime("us", "UTC"))


def interval(microseconds: int = 0, days: int = 0, months: int = 0) -> dict[str, Any]:
    """Return an interval as the wire has it."""
    return {"Microseconds": microseconds, "Days": days, "Months": months, "Valid": True}


def table(*values: object) -> QueryResult:
    """Return a result with one column, `x`."""
    rows = [{"x": value} for value in values]
    return QueryResult("SELECT x FROM t", f"Query returned {len(rows)} row(s).", len(rows), rows)


COLUMNS: list[tuple[str, list[Any], str, list[Any], pl.DataType, list[Any]]] = [
    ("integers", [1, -2], "int64", [1, -2], pl.Int64(), [1, -2]),
    (
        "integers beyond a float's digits, and a null",
        [2**53 + 1, None],
        "Int64",
        [2**53 + 1, None],
        pl.Int64(),
        [2**53 + 1, None],
    ),
    (
        "integers beyond 64 bits",
        [10**30, 1],
        "object",
        [10**30, 1],
        pl.Decimal(38, 0),
        [Decimal(10**30), Decimal(1)],
    ),
    ("integers beyond all", [10**50], "object", [10**50], pl.String(), ["1" + "0" * 50]),
    ("floats and integers", [1, 2.5], "float64", [1.0, 2.5], pl.Float64(), [1.0, 2.5]),
    (
        "floats beside an integer that is none",
        [10**400, 0.5],
        "object",
        [10**400, 0.5],
        pl.String(),
        ["1" + "0" * 400, "0.5"],
    ),
    (
        "exact numbers",
        [Decimal("1.50"), 2],
        "object",
        [Decimal("1.50"), Decimal(2)],
        pl.Decimal(38, 2),
        [Decimal("1.50"), Decimal("2.00")],
    ),
    (
        "exact numbers with large exponents",
        [Decimal("1E+3"), Decimal("1E-3")],
        "object",
        [Decimal(1000), Decimal("0.001")],
        pl.Decimal(38, 3),
        [Decimal(1000), Decimal("0.001")],
    ),
    (
        "exact numbers of more than 38 digits",
        [Decimal("12345678901234567890123456789.1234567890")],
        "object",
        [Decimal("12345678901234567890123456789.1234567890")],
        pl.String(),
        ["12345678901234567890123456789.1234567890"],
    ),
    ("booleans", [True, False], "bool", [True, False], pl.Boolean(), [True, False]),
    ("booleans and a null", [True, None], "boolean", [True, None], pl.Boolean(), [True, None]),
    ("text", ["a", "ż"], str(pd.Series([""]).dtype), ["a", "ż"], pl.String(), ["a", "ż"]),
    (
        "half a surrogate pair",
        ["a\ud800"],
        str(pd.Series([""]).dtype),
        ["a\ud800"],
        pl.String(),
        ["a\ufffd"],
    ),
    (
        "UUIDs",
        [UUID_BYTES, None],
        "object",
        [UUID(UUID_TEXT), None],
        pl.String(),
        [UUID_TEXT, None],
    ),
    (
        "date-times",
        ["2026-02-28T12:34:56Z", "0001-01-01T00:00:00Z"],
        "datetime64[us, UTC]",
        [pd.Timestamp("2026-02-28T12:34:56Z"), pd.Timestamp("0001-01-01T00:00:00Z")],
        pl.Datetime("us", "UTC"),
        [datetime(2026, 2, 28, 12, 34, 56, tzinfo=UTC), datetime(1, 1, 1, tzinfo=UTC)],
    ),
    (
        "text among date-times",
        ["2026-02-28T12:34:56Z", "infinity"],
        str(pd.Series([""]).dtype),
        ["2026-02-28T12:34:56Z", "infinity"],
        pl.String(),
        ["2026-02-28T12:34:56Z", "infinity"],
    ),
    (
        "a day that no calendar has",
        ["2026-02-30T12:34:56Z"],
        str(pd.Series([""]).dtype),
        ["2026-02-30T12:34:56Z"],
        pl.String(),
        ["2026-02-30T12:34:56Z"],
    ),
    ("times", [NOON], "object", [time(12)], pl.Time(), [time(12)]),
    (
        "intervals",
        [interval(5, days=1), interval(-5)],
        "timedelta64[us]",
        [timedelta(days=1, microseconds=5), timedelta(microseconds=-5)],
        pl.Duration("us"),
        [timedelta(days=1, microseconds=5), timedelta(microseconds=-5)],
    ),
    (
        "intervals with months",
        [interval(5, 1, 2)],
        "object",
        [Interval(2, 1, 5)],
        pl.Struct({"months": pl.Int64(), "days": pl.Int64(), "microseconds": pl.Int64()}),
        [{"months": 2, "days": 1, "microseconds": 5}],
    ),
    (
        "intervals of more than 64 bits of microseconds",
        [interval(7, days=200_000_000)],
        "object",
        [timedelta(days=200_000_000, microseconds=7)],
        pl.Struct({"months": pl.Int64(), "days": pl.Int64(), "microseconds": pl.Int64()}),
        [{"months": 0, "days": 200_000_000, "microseconds": 7}],
    ),
    ("arrays", [[1, 2], []], "object", [[1, 2], []], pl.List(pl.Int64()), [[1, 2], []]),
    (
        "objects",
        [{"a": [1, 2.5], "b": {"c": "x"}}, {"a": []}],
        "object",
        [{"a": [1, 2.5], "b": {"c": "x"}}, {"a": []}],
        pl.Struct({"a": pl.List(pl.Float64()), "b": pl.Struct({"c": pl.String()})}),
        [{"a": [1.0, 2.5], "b": {"c": "x"}}, {"a": [], "b": None}],
    ),
    (
        "JSON of several shapes",
        [[1, "ż"], {"a": Decimal("1.50")}, None],
        "object",
        [[1, "ż"], {"a": Decimal("1.50")}, None],
        pl.String(),
        ['[1, "ż"]', '{"a": "1.50"}', None],
    ),
    ("empty objects", [{}], "object", [{}], pl.String(), ["{}"]),
    ("nulls", [None, None], "object", [None, None], pl.Null(), [None, None]),
]
IDS = [name for name, *_ in COLUMNS]


@pytest.mark.parametrize(("values", "dtype", "expected"), [c[1:4] for c in COLUMNS], ids=IDS)
def test_a_column_in_pandas(values: list[Any], dtype: str, expected: list[Any]) -> None:
    """Its type says what it is, and its values are those of the wire."""
    column = table(*values).to_pandas()["x"]
    assert dtype == str(column.dtype)
    got = [None if value is pd.NA else value for value in column.tolist()]
    assert expected == got
    if dtype == "object":
        assert [type(value) for value in expected] == [type(value) for value in got]


@pytest.mark.parametrize(
    ("values", "dtype", "expected"), [(c[1], c[4], c[5]) for c in COLUMNS], ids=IDS
)
def test_a_column_in_polars(values: list[Any], dtype: pl.DataType, expected: list[Any]) -> None:
    """Its type says what it is, and its values are those of the wire."""
    column = table(*values).to_polars()["x"]
    assert (dtype, expected) == (column.dtype, column.to_list())


def test_what_is_no_map_and_no_document_only() -> None:
    """A map with a thousand keys, and arrays in arrays without end, are text and no types."""
    many = {f"k{i}": i for i in range(1000)}
    deep: Any = 1
    for _ in range(40):
        deep = [deep]
    frame = QueryResult("", "", 1, [{"many": many, "deep": deep}]).to_polars()
    assert {"many": pl.String(), "deep": pl.String()} == dict(frame.schema)
    assert "[" * 40 + "1" + "]" * 40 == frame["deep"][0]


@pytest.mark.parametrize(
    ("wanted", "value", "in_pandas", "in_polars"),
    [
        ("timestamp", "2026-02-28T12:34:56Z", "datetime64[us]", pl.Datetime("us")),
        ("timestamptz", "2026-02-28T12:34:56Z", "datetime64[us, UTC]", pl.Datetime("us", "UTC")),
        ("date", "2026-02-28T00:00:00Z", "datetime64[us]", pl.Date()),
        ("time", NOON, "object", pl.Time()),
        ("interval", interval(1), "timedelta64[us]", pl.Duration("us")),
        ("uuid", UUID_BYTES, "object", pl.String()),
        ("numeric", 1.5, "object", pl.Decimal(38, 1)),
        ("integer", 1, "int64", pl.Int64()),
        ("float", 1, "float64", pl.Float64()),
        ("array", UUID_BYTES, "object", pl.List(pl.Int64())),
        ("text", "2026-02-28T12:34:56Z", str(pd.Series([""]).dtype), pl.String()),
        ("json", {"a": 1}, "object", pl.String()),
    ],
)
def test_types_decide_otherwise(
    wanted: Any, value: object, in_pandas: str, in_polars: pl.DataType
) -> None:
    """A type that is named gives the column's type, with rows, with nulls only and with none."""
    full = table(value)
    assert in_pandas == str(full.to_pandas({"x": wanted})["x"].dtype)
    assert in_polars == full.to_polars({"x": wanted})["x"].dtype
    empty = EMPTY.to_pandas({"x": wanted})
    assert (in_pandas, 0) == (str(empty["x"].dtype), len(empty))
    nothing = EMPTY.to_polars({"x": wanted})["x"].dtype
    without = table(None).to_polars({"x": wanted})["x"].dtype
    assert nothing == without
    assert in_polars.base_type() is nothing.base_type()


def test_a_function_as_a_type() -> None:
    """What it makes is a column of what it is, or of objects."""
    result = table("1.5", None)
    assert "float64" == str(result.to_pandas({"x": float})["x"].dtype)
    assert pl.Float64() == result.to_polars({"x": float})["x"].dtype
    assert [complex(1.5), None] == result.to_polars({"x": complex})["x"].to_list()


def test_rows_keep_their_order_and_columns_that_of_the_query() -> None:
    """A row that lacks a column has a null there, and the index counts the rows."""
    result = QueryResult("SELECT b, a FROM t", "", 2, [{"a": 1, "b": 2}, {"b": 3}])
    frame = result.to_pandas()
    assert ["b", "a"] == list(frame.columns) == result.to_polars().columns
    assert [0, 1] == frame.index.tolist()
    assert [2, 3] == frame["b"].tolist()
    assert [1, None] == result.to_polars()["a"].to_list()


def test_names_that_cannot_be_written() -> None:
    """Half of a surrogate pair is replaced; where that leaves two columns alike, it is an error."""
    odd = QueryResult("", "", 1, [{"a\ud800": 1}])
    assert ["a\ufffd"] == list(odd.to_pandas().columns) == odd.to_polars().columns
    twice = QueryResult("", "", 1, [dict.fromkeys(["a\ud800", "a\ufffd"])])
    for call in (twice.to_pandas, twice.to_polars):
        with pytest.raises(RemoteProtocolError, match="two columns"):
            call()


def test_a_query_without_rows() -> None:
    """It is an empty frame, with the columns that were named."""
    assert (0, 0) == EMPTY.to_pandas().shape == EMPTY.to_polars().shape
    assert ["a", "b"] == EMPTY.to_polars({"a": "integer", "b": str}).columns


@pytest.mark.parametrize(
    "summary",
    ["Query failed to execute", "Query was rejected due to security validation", "Who knows", ""],
)
def test_a_query_that_failed(summary: str) -> None:
    """There is no frame of what did not succeed, and the error repeats what the server said."""
    failed = QueryResult("SELECT 1", summary)
    for call in (failed.to_pandas, failed.to_polars):
        with pytest.raises(QueryFailedError, match=summary or "does not say why"):
            call()


def before_all_time(_: object) -> datetime:
    """Return a moment that UTC has no year for."""
    return datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=14)))


def test_what_a_library_cannot_hold() -> None:
    """The error names the column, and quotes nothing of it."""
    for call in (table("secret").to_pandas, table("secret").to_polars):
        with pytest.raises(ConfigurationError, match=r"types\['x'\]: .* cannot hold") as caught:
            call({"x": before_all_time})
        assert caught.value.__cause__ is None
        assert caught.value.__suppress_context__


def test_a_mistake_in_types() -> None:
    """It is told as `rows_as` tells it."""
    for call in (table(1).to_pandas, table(1).to_polars):
        with pytest.raises(ConfigurationError, match="no column 'y'"):
            call({"y": "integer"})
        with pytest.raises(ConfigurationError, match="row 0"):
            call({"x": "uuid"})


def test_what_the_dev_server_sends_of_every_type(chat_types: QueryResult) -> None:
    """A row with every type of PostgreSQL, over the wire with exact numbers."""
    frame = chat_types.to_pandas({"ts": "timestamp", "d": "date"})
    assert {
        "u": "object",
        "tz": "datetime64[us, UTC]",
        "ts": "datetime64[us]",
        "d": "datetime64[us]",
        "iv": "timedelta64[us]",
        "i8": "int64",
        "n": "object",
        "b": "bool",
    } == {name: str(frame[name].dtype) for name in ("u", "tz", "ts", "d", "iv", "i8", "n", "b")}
    assert Decimal("12345678901234567890.123456789") == frame["n"][0]
    row = chat_types.to_polars({"d": "date"}).row(0, named=True)
    assert Decimal("12345678901234567890.123456789") == row["n"]
    assert (UUID_TEXT, date(2026, 2, 28), [1, 2, 3]) == (row["u"], row["d"], row["ai"])
    assert timedelta(days=1, microseconds=7384000000) == row["iv"]
    assert {"a": [1, Decimal("2.5")], "b": 1} == row["jb"]


@pytest.fixture
def chat_types() -> QueryResult:
    """Return the dev server's row with every type."""
    with FluxbaseAIChat("demo:", exact_numbers=True) as chat:
        return chat.ask("sql-assistant", "sql SELECT * FROM types WHERE i2 = 1").table


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_without_the_library(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error has the pip line."""
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingExtraError, match=rf"pip install 'fluxbase-aichat\[{library}\]'"):
        getattr(table(1), f"to_{library}")()


def test_neither_is_imported_before_it_is_asked_for() -> None:
    """The package, its rows and its HTML need no library of frames."""
    script = (
        "import sys, fluxbase_aichat as f; q = f.QueryResult('', '', 1, [{'a': 1}]); q.rows; "
        "q._repr_html_(); print(sorted({'pandas', 'polars', 'numpy', 'fluxbase_aichat._frames'}"
        " & sys.modules.keys()))"
    )
    ran = subprocess.run(  # noqa: S603 - our own script
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert "[]\n" == ran.stdout


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(exclude_categories=[]))
    | st.decimals(allow_nan=False, allow_infinity=False)
    | st.sampled_from(["2026-02-28T12:34:56Z", "9999-99-99T00:00:00Z"])
    | st.sampled_from([UUID_BYTES, NOON, interval(1), interval(1, 2, 3), interval(0, 10**12)]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=12,
)


@given(st.lists(JSON, min_size=1, max_size=5))
def test_no_json_is_too_odd_for_a_frame(values: list[Any]) -> None:
    """Whatever a column holds, the frame has a row for each value and a null for each null."""
    result = table(*values)
    in_polars = result.to_polars()["x"]
    assert len(values) == len(result.to_pandas()) == len(in_polars)
    assert [value is None for value in values] == in_polars.is_null().to_list()
