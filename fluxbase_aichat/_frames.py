"""A query's rows as a frame of pandas or polars, which are imported here and only when asked for.

What a column is gets decided once, for both, as a `_Kind`; nothing here knows a `QueryResult`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias
from uuid import UUID

from ._columns import check_types, convert, recognise
from ._kinds import ColumnType, Interval
from .errors import ConfigurationError, MissingExtraError, RemoteProtocolError

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl

__all__ = ["to_pandas", "to_polars"]

_Kind: TypeAlias = Literal[
    "boolean",
    "date",
    "decimal",
    "duration",
    "float",
    "integer",
    "interval",
    "json",
    "null",
    "other",
    "text",
    "time",
    "timestamp",
    "timestamptz",
    "uuid",
]
_Column: TypeAlias = tuple[_Kind, list[Any]]

_KIND_BY_TYPES: Final[dict[frozenset[type], _Kind]] = {
    frozenset(): "null",
    frozenset({bool}): "boolean",
    frozenset({int}): "integer",
    frozenset({float}): "float",
    frozenset({int, float}): "float",
    frozenset({Decimal}): "decimal",
    frozenset({int, Decimal}): "decimal",
    frozenset({str}): "text",
    frozenset({date}): "date",
    frozenset({time}): "time",
    frozenset({timedelta}): "duration",
    frozenset({Interval}): "interval",
    frozenset({UUID}): "uuid",
}
# What a column is that the user named a type for, where no value of it says so.
_KIND_BY_NAME: Final[dict[object, _Kind]] = {
    "array": "other",
    "date": "date",
    "float": "float",
    "integer": "integer",
    "interval": "duration",
    "json": "json",
    "numeric": "decimal",
    "text": "text",
    "time": "time",
    "timestamp": "timestamp",
    "timestamptz": "timestamptz",
    "uuid": "uuid",
}
_DATE_TIME: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,6})?Z")
_SURROGATES: Final = re.compile(r"[\ud800-\udfff]")
_INT64: Final = range(-(2**63), 2**63)
_MICROSECOND: Final = timedelta(microseconds=1)
# What a decimal of polars (and of Arrow) can hold.
_DIGITS: Final = 38
# Objects with more keys than this, taken together, are maps and no structs; what is nested deeper
# than this is a document.
_FIELDS: Final = 200
_DEPTH: Final = 16


# --- What the columns are -------------------------------------------------------------------


def _columns(
    data: Sequence[Mapping[str, Any]],
    columns: Sequence[str],
    types: Mapping[str, ColumnType] | None,
) -> dict[str, _Column]:
    """Return the kind and values of each column; of a result without rows, those in `types`."""
    types = check_types({} if types is None else types, columns)
    found: dict[str, _Column] = {}
    for name in columns or types:
        values = [row.get(name) for row in data]
        wanted = types.get(name)
        if wanted is None:
            converted = recognise(values) or _date_times(values) or values
        else:
            converted = convert(name, values, wanted)
        written = _scrub(name)
        if written in found:
            raise RemoteProtocolError("two columns have names that differ in no written character")
        found[written] = _kind(converted, wanted), converted
    return found


def _date_times(values: Sequence[Any]) -> list[datetime | None] | None:
    """Read a column in which every value is written as a date-time in UTC; `None` for others."""
    known = [value for value in values if value is not None]
    if not known or not all(isinstance(v, str) and _DATE_TIME.fullmatch(v) for v in known):
        return None
    try:
        return [None if value is None else datetime.fromisoformat(value) for value in values]
    except ValueError:  # the 30th of February
        return None


def _kind(values: Iterable[Any], wanted: ColumnType | None = None) -> _Kind:
    if wanted == "json":
        return "json"
    types = frozenset(map(type, values)) - {type(None)}
    if types == {datetime}:
        zones = {value.tzinfo is None for value in values if value is not None}
        if len(zones) == 1:
            return "timestamp" if zones.pop() else "timestamptz"
    kind = _KIND_BY_TYPES.get(types, "other")
    return _KIND_BY_NAME.get(wanted, kind) if kind == "null" and isinstance(wanted, str) else kind


def _fits(kind: _Kind, values: Sequence[Any]) -> bool:
    """Whether 64 bits are enough for every value."""
    if kind == "integer":
        return all(value is None or value in _INT64 for value in values)
    if kind == "duration":
        return all(value is None or value // _MICROSECOND in _INT64 for value in values)
    return True


def _floats(values: Iterable[Any]) -> list[float | None] | None:
    try:
        return [None if value is None else float(value) for value in values]
    except OverflowError:  # an integer of hundreds of digits beside a float
        return None


# --- pandas ---------------------------------------------------------------------------------


def to_pandas(
    data: Sequence[Mapping[str, Any]],
    columns: Sequence[str],
    types: Mapping[str, ColumnType] | None,
) -> pd.DataFrame:
    """Return the rows as a `pandas.DataFrame`. See `QueryResult.to_pandas`."""
    try:
        import pandas as pd  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise MissingExtraError(
            "to_pandas() needs pandas: pip install 'fluxbase-aichat[pandas]'"
        ) from error
    text = pd.Series([""]).dtype  # a type of its own from pandas 3 on
    found = _columns(data, columns, types)
    series: dict[str, Any] = {}
    for name, (kind, values) in found.items():
        try:
            if kind == "decimal":  # with whole numbers among them
                values = _each(Decimal, values)  # noqa: PLW2901 - the same, of one type
            series[name] = pd.Series(values, dtype=_pandas_type(kind, values, text))
        except UnicodeEncodeError:  # half of a surrogate pair does not fit into Arrow's text
            series[name] = pd.Series(values, dtype=object)
        except Exception:  # noqa: BLE001 - its text may quote a user's data
            raise _misfit(name, "pandas") from None
    return pd.DataFrame(series, index=pd.RangeIndex(len(data)))


def _pandas_type(kind: _Kind, values: Sequence[Any], text: Any) -> Any:
    nulls = None in values if kind in ("boolean", "integer") else False
    match kind:
        case "boolean":
            return "boolean" if nulls else "bool"
        case "integer" if _fits(kind, values):
            # Not float64, which numpy would take for nulls: a bigint has more digits.
            return "Int64" if nulls else "int64"
        case "float" if _floats(values) is not None:
            return "float64"
        case "text":
            return text
        case "timestamptz":
            return "datetime64[us, UTC]"
        case "timestamp" | "date":
            return "datetime64[us]"
        case "duration" if _fits(kind, values):
            return "timedelta64[us]"
    return object


# --- polars ---------------------------------------------------------------------------------


class _UnfitError(Exception):
    """The values have no one type in polars."""


def to_polars(
    data: Sequence[Mapping[str, Any]],
    columns: Sequence[str],
    types: Mapping[str, ColumnType] | None,
) -> pl.DataFrame:
    """Return the rows as a `polars.DataFrame`. See `QueryResult.to_polars`."""
    try:
        import polars as pl  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise MissingExtraError(
            "to_polars() needs polars: pip install 'fluxbase-aichat[polars]'"
        ) from error
    series: list[pl.Series] = []
    for name, (kind, values) in _columns(data, columns, types).items():
        try:
            try:
                dtype, fitted = _fit(pl, kind, values, _DEPTH)
            except _UnfitError:
                dtype, fitted = pl.String(), _each(_json_text, values)
            series.append(pl.Series(name, fitted, dtype=dtype))
        except Exception:  # noqa: BLE001 - its text may quote a user's data
            raise _misfit(name, "polars") from None
    return pl.DataFrame(series)


def _fit(pl: Any, kind: _Kind, values: list[Any], depth: int) -> tuple[Any, list[Any]]:
    """Return the type in polars and the values as it takes them; raise `_UnfitError`."""
    match kind:
        case "null":
            return pl.Null(), values
        case "boolean":
            return pl.Boolean(), values
        case "integer" if _fits(kind, values):
            return pl.Int64(), values
        case "integer" | "decimal":
            return _fit_decimals(pl, values)
        case "float":
            floats = _floats(values)
            return (pl.String(), _each(str, values)) if floats is None else (pl.Float64(), floats)
        case "text":
            return pl.String(), _each(_scrub, values)
        case "uuid":
            return pl.String(), _each(str, values)
        case "timestamptz":
            return pl.Datetime("us", "UTC"), _each(lambda value: value.astimezone(UTC), values)
        case "timestamp":
            return pl.Datetime("us"), values
        case "date":
            return pl.Date(), values
        case "time":
            return pl.Time(), values
        case "duration" if _fits(kind, values):
            return pl.Duration("us"), values
        case "duration" | "interval":
            parts = {"months": pl.Int64(), "days": pl.Int64(), "microseconds": pl.Int64()}
            return pl.Struct(parts), _each(_interval_parts, values)
        case "json":
            return pl.String(), _each(_json_text, values)
    return _fit_nested(pl, values, depth)


def _fit_decimals(pl: Any, values: list[Any]) -> tuple[Any, list[Any]]:
    decimals: list[Decimal] = [Decimal(value) for value in values if value is not None]
    if all(value.is_finite() for value in decimals):
        places = [-int(value.as_tuple().exponent) for value in decimals]
        scale = max([0, *places])
        whole = max([0, *(value.adjusted() + 1 for value in decimals if value)])
        if whole + scale <= _DIGITS:
            return pl.Decimal(_DIGITS, scale), _each(Decimal, values)
    return pl.String(), _each(str, values)


def _fit_nested(pl: Any, values: list[Any], depth: int) -> tuple[Any, list[Any]]:
    known = [value for value in values if value is not None]
    if all(isinstance(value, list) for value in known):
        if depth == 0:
            raise _UnfitError
        flat = [item for value in known for item in value]
        dtype, fitted = _fit(pl, _kind(flat), flat, depth - 1)
        rest = iter(fitted)
        return pl.List(dtype), _each(lambda value: [next(rest) for _ in value], values)
    if all(isinstance(value, dict) for value in known):
        keys = list(dict.fromkeys(key for value in known for key in value))
        if depth == 0 or not 0 < len(keys) <= _FIELDS:
            raise _UnfitError
        fields = {}
        members = []
        for key in keys:
            member = [value.get(key) for value in known]
            fields[_scrub(key)], fitted = _fit(pl, _kind(member), member, depth - 1)
            members.append(fitted)
        if len(fields) < len(keys):  # two of them differ in what cannot be written
            raise _UnfitError
        objects = (dict(zip(fields, row, strict=True)) for row in zip(*members, strict=True))
        return pl.Struct(fields), _each(lambda _: next(objects), values)
    if all(isinstance(value, bool | int | float | str | Decimal | list | dict) for value in known):
        raise _UnfitError
    return pl.Object(), values  # what a function in `types` has made


def _each(function: Callable[[Any], Any], values: Iterable[Any]) -> list[Any]:
    return [None if value is None else function(value) for value in values]


def _interval_parts(value: timedelta | Interval) -> dict[str, int]:
    if isinstance(value, timedelta):
        rest = (value - timedelta(days=value.days)) // _MICROSECOND
        return {"months": 0, "days": value.days, "microseconds": rest}
    return {"months": value.months, "days": value.days, "microseconds": value.microseconds}


def _json_text(value: Any) -> str:
    # A number that was asked for with all its digits stays exact: as text.
    return _scrub(json.dumps(value, default=str, ensure_ascii=False))


def _scrub(text: str) -> str:
    # Half of a surrogate pair is legal in JSON, and in no text that is written down.
    return _SURROGATES.sub("\ufffd", text)


def _misfit(name: str, library: str) -> ConfigurationError:
    return ConfigurationError(
        f"types[{name!r}]: {library} cannot hold the values of this column",
        hint='"json" or "text" takes them as they came',
    )
