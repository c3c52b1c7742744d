"""Runs a chatbot's SQL, read-only, and gives rows as PostgreSQL's would arrive. No wire here."""

from __future__ import annotations

import re
import sqlite3
import threading
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Final, Literal

from ._gojson import Raw
from ._shop import open_shop

__all__ = ["CANNED", "Canned", "Database", "QueryResult"]

Status = Literal["ok", "empty", "failed", "rejected"]

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_TIME = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(\.\d+)?")
_CALL = re.compile(r"(\w+)\s*\(")
_STEPS: Final = 20_000_000
"""Steps of SQLite's machine after which a query fails, about a second: a runaway recursion."""
_EXACT: Final = 1e9
_NOISE: Final = 1e-6
"""What adding floats leaves behind the second digit of sums below `_EXACT`."""
_REJECTED: Final = "Query was rejected due to security validation"
_READS: Final = frozenset(
    {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}
)
# What PostgreSQL finds when it runs a query; anything else its validator has already refused.
_RUN_TIME_ERROR = re.compile(r"no such (column|function)|interrupted|overflow|wrong number of arg")


@dataclass(frozen=True, slots=True)
class Canned:
    """A result that SQLite cannot give: its rows as JSON text, `None` if Go cannot encode them."""

    summary: str
    row_count: int
    data: str | None


CANNED: Final[Mapping[str, Canned]] = {
    "SELECT * FROM types WHERE i2 = 1": Canned(
        "Query returned 1 row(s). Tables accessed: [types]. Sample i2 values: [1]",
        1,
        '[{"ai":[1,2,3],"at":["x","y z"],"b":true,"ba":"\u07ad\\ufffd\\ufffd",'
        '"d":"2026-02-28T00:00:00Z","f4":0.1,"f8":0.1,"i2":1,"i4":-2147483648,'
        '"i8":9223372036854775807,"ip":"10.0.0.1/24",'
        '"iv":{"Microseconds":7384000000,"Days":1,"Months":0,"Valid":true},'
        '"j":{"a":[1,2.5],"b":1},"jb":{"a":[1,2.5],"b":1},'
        '"n":12345678901234567890.123456789,"nul":null,"t":"zażółć 😀",'
        '"tm":{"Microseconds":45296000000,"Valid":true},"ts":"2026-02-28T12:34:56Z",'
        '"tz":"2026-02-28T10:34:56Z","u":[0,0,0,0,0,0,64,0,128,0,0,0,0,0,0,1],"v":"[1,2,3]"}]',
    ),
    "SELECT i8, n, f8, tz FROM types": Canned("", 2, None),
    "SELECT u, count(*) as n, avg(i8) a FROM types GROUP BY u": Canned(
        "Query returned 2 row(s). Tables accessed: [types]. "
        "Sample u values: [<nil> [0 0 0 0 0 0 64 0 128 0 0 0 0 0 0 1]]",
        2,
        '[{"a":9007199254740993.0000,"n":1,"u":null},'
        '{"a":9223372036854775807,"n":1,"u":[0,0,0,0,0,0,64,0,128,0,0,0,0,0,0,1]}]',
    ),
}
"""The results of the table `types`, by the text of their query."""


@dataclass(frozen=True, slots=True)
class QueryResult:
    """What a query gave. `data` is ready for the wire; `rows` is for the model's prose."""

    query: str
    status: Status
    summary: str
    row_count: int = 0
    data: Any = ()
    rows: list[dict[str, Any]] = field(default_factory=list)


class Database:
    """The shop, asked in SQL; thread-safe."""

    def __init__(self, canned: Mapping[str, Canned] = CANNED) -> None:
        self._shop = open_shop()
        self._canned = canned
        # Where SQLite looks for a table that is named without its schema: in `main` first.
        self._schemas = {
            name: schema
            for schema in ("shop", "main")
            for (name,) in self._shop.execute(f"select name from {schema}.sqlite_master")  # noqa: S608 - two constants
        }
        self._lock = threading.Lock()

    def close(self) -> None:
        """Give the memory back."""
        with self._lock:
            self._shop.close()

    def query(self, sql: str, allowed: frozenset[str]) -> QueryResult:
        """Run one SELECT over the `allowed` tables; never raises for what the SQL says."""
        canned = self._canned.get(sql)
        if canned is not None and "types" in allowed:
            known = Raw(canned.data) if canned.data is not None else [float("nan")]
            return QueryResult(sql, "ok", canned.summary, canned.row_count, known)
        tables: list[str] = []
        with self._lock:
            self._shop.set_authorizer(self._authorizer(allowed, tables))
            self._shop.set_progress_handler(lambda: 1, _STEPS)
            try:
                cursor = self._shop.execute(sql)
                columns = [_column(entry[0]) for entry in cursor.description or ()]
                found: list[list[Any]] = [[_value(value) for value in row] for row in cursor]
            except (sqlite3.Error, sqlite3.Warning, ValueError) as error:
                if _RUN_TIME_ERROR.search(str(error)):
                    return QueryResult(sql, "failed", "Query failed to execute")
                return QueryResult(sql, "rejected", _REJECTED)
            finally:
                self._shop.set_authorizer(None)
                self._shop.set_progress_handler(None, 0)
        if not columns:  # no statement at all
            return QueryResult(sql, "rejected", _REJECTED)
        accessed = f"Tables accessed: {_go(tables)}"
        if not found:
            reason = "no data matches your query criteria"
            summary = f"Query executed successfully but returned 0 rows - {reason}. {accessed}"
            return QueryResult(sql, "empty", summary)
        sample = _go([row[0] for row in found[:3]])
        summary = (
            f"Query returned {len(found)} row(s). {accessed}. Sample {columns[0]} values: {sample}"
        )
        rows = [dict(zip(columns, row, strict=True)) for row in found]
        data = [dict(sorted(row.items())) for row in rows]
        return QueryResult(sql, "ok", summary, len(rows), data, rows)

    def _authorizer(self, allowed: frozenset[str], tables: list[str]) -> Any:
        """Return SQLite's question "may it?"; every table that is read is added to `tables`."""

        def may(action: int, table: str | None, _: str | None, schema: str | None, *__: Any) -> int:
            if action in _READS:
                return sqlite3.SQLITE_OK
            if action != sqlite3.SQLITE_READ or table is None or table.startswith("sqlite_"):
                return sqlite3.SQLITE_DENY
            # count(*) tells no schema, nor does a subquery, whose own reads are asked for too.
            found = schema or self._schemas.get(table)
            if found is None:
                return sqlite3.SQLITE_OK
            if (found if found == "shop" else table) not in allowed:
                return sqlite3.SQLITE_DENY
            if table not in tables:
                tables.append(table)
            return sqlite3.SQLITE_OK

        return may


def _column(name: str) -> str:
    """PostgreSQL names the column of an unnamed call after its function."""
    call = _CALL.match(name)
    return call[1].lower() if call else name


def _value(value: Any) -> Any:
    """Return a value of SQLite as the one of PostgreSQL that the shop's schema means."""
    match value:
        case float() if abs(value) < _EXACT and abs(value - round(value, 2)) < _NOISE:
            # All fractions of the shop are money, and numeric(10,2) keeps its two digits.
            return Decimal(f"{value:.2f}")
        case str() if _UUID.fullmatch(value):
            return list(uuid.UUID(value).bytes)
        case str() if _TIME.fullmatch(value):
            return value[:10] + "T" + value[11:19] + "Z"
        case bytes():
            return value.decode(errors="replace")
    return value


def _go(value: Any) -> str:
    """Go's `%v`, which the server writes its summaries with."""
    match value:
        case None:
            return "<nil>"
        case list():
            return "[" + " ".join(_go(item) for item in value) + "]"
        case Decimal():
            # pgtype.Numeric is a struct: its digits, exponent and three flags.
            digits = int(value.scaleb(2))
            return f"{{{digits} -2 false finite true}}"
        case bool():
            return str(value).lower()
    return str(value)
