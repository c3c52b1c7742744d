"""The values of a query result's columns: from the wire's shapes to Python's types.

Pure functions over plain values; nothing here knows a `QueryResult`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, Final, NoReturn, TypeAlias, get_args
from uuid import UUID

from ._kinds import ColumnType, Interval, TypeName
from .errors import ConfigurationError

__all__ = ["check_types", "convert", "recognise"]

Row: TypeAlias = Mapping[str, Any]


# --- The values of a column -----------------------------------------------------------------
#
# Each converter takes a value as it came, never a null, and raises ValueError, TypeError or
# ArithmeticError for one that does not fit. PROTOCOL.md, "Column values in data", is the source.

_DOES_NOT_FIT: Final = (ValueError, TypeError, ArithmeticError)

_TIME_KEYS: Final = {"Microseconds", "Valid"}
_INTERVAL_KEYS: Final = {"Microseconds", "Days", "Months", "Valid"}
_DAY: Final = timedelta(days=1) // timedelta(microseconds=1)
# How many names an error lists.
_LISTED: Final = 20
# The largest power of ten of PostgreSQL's numeric; 1e999999999 would fill the memory as an int.
_MOST_DIGITS: Final = 131_072


def recognise(values: Sequence[Any]) -> list[Any] | None:
    """Convert a column that can only be one of UUIDs, times or intervals.

    `None` says that the column is to be left as it came: it is something else, or a value does
    not fit (24:00:00, an interval too long for a `timedelta`). All values decide together, so
    that a column has one type.
    """
    first = next((value for value in values if value is not None), None)
    try:
        if isinstance(first, list):
            return _each(_uuid_from_bytes, values)
        if isinstance(first, dict) and first.keys() == _TIME_KEYS:
            return _each(_time, values)
        if isinstance(first, dict) and first.keys() == _INTERVAL_KEYS:
            return _shorten(_each(_interval, values))
    except _DOES_NOT_FIT:
        return None
    return None


def _each(converter: Callable[[Any], Any], values: Iterable[Any]) -> list[Any]:
    return [None if value is None else converter(value) for value in values]


def _uuid_from_bytes(value: Any) -> UUID:
    # An array of sixteen booleans is no UUID, though bytes() would take it.
    if not isinstance(value, list) or set(map(type, value)) != {int}:
        raise ValueError
    return UUID(bytes=bytes(value))


def _uuid(value: Any) -> UUID:
    return UUID(value) if isinstance(value, str) else _uuid_from_bytes(value)


def _time(value: Any) -> time | None:
    if not isinstance(value, dict) or value.keys() != _TIME_KEYS:
        raise ValueError
    (microseconds,) = _integers(value, "Microseconds")
    if not 0 <= microseconds < _DAY:
        raise ValueError
    moment = datetime.min + timedelta(microseconds=microseconds)  # noqa: DTZ901 - only its time
    return moment.time() if value["Valid"] else None


def _interval(value: Any) -> Interval | None:
    if not isinstance(value, dict) or value.keys() != _INTERVAL_KEYS:
        raise ValueError
    parts = _integers(value, "Months", "Days", "Microseconds")
    return Interval(*parts) if value["Valid"] else None


def _integers(value: Row, *keys: str) -> list[int]:
    numbers = [value[key] for key in keys]
    if set(map(type, numbers)) != {int} or type(value["Valid"]) is not bool:
        raise ValueError
    return numbers


def _shorten(intervals: list[Interval | None]) -> list[Any]:
    """Turn a column of intervals into `timedelta`s, if none of them has months."""
    if any(interval is not None and interval.months for interval in intervals):
        return intervals
    return _each(lambda i: timedelta(days=i.days, microseconds=i.microseconds), intervals)


def _timestamp(value: Any) -> datetime:
    # The wire writes a Z behind a timestamp without time zone; it means nothing.
    moment = datetime.fromisoformat(value)
    if moment.tzinfo not in (None, UTC):
        raise ValueError
    return moment.replace(tzinfo=None)


def _timestamptz(value: Any) -> datetime:
    moment = datetime.fromisoformat(value)
    if moment.tzinfo is None:
        raise ValueError
    return moment.astimezone(UTC)


def _date(value: Any) -> date:
    moment = _timestamp(value)
    if moment.time() != time.min:
        raise ValueError
    return moment.date()


def _number(value: Any) -> int | float | Decimal | str:
    # In Python a bool is an int; in SQL it is not.
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal | str):
        raise TypeError
    return value


def _numeric(value: Any) -> Decimal:
    # The shortest text of a float is what the server wrote: 0.1 and not 0.1000000000000000055.
    return Decimal(repr(value)) if isinstance(value, float) else Decimal(_number(value))


def _integer(value: Any) -> int:
    exact = _numeric(value)
    if exact.adjusted() > _MOST_DIGITS or exact != exact.to_integral_value():
        raise ValueError
    return int(exact)


def _float(value: Any) -> float:
    return float(_number(value))


def _array(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _json(value: Any) -> Any:
    return value


_CONVERTERS: Final[dict[TypeName, Callable[[Any], Any]]] = {
    "array": _array,
    "date": _date,
    "float": _float,
    "integer": _integer,
    "interval": _interval,
    "json": _json,
    "numeric": _numeric,
    "text": _text,
    "time": _time,
    "timestamp": _timestamp,
    "timestamptz": _timestamptz,
    "uuid": _uuid,
}


def check_types(types: Any, columns: Sequence[str]) -> Mapping[str, ColumnType]:
    """Return `types`; raise `ConfigurationError` for an unknown column or type in it.

    A result without rows has no columns; then any column may be named.
    """
    if not isinstance(types, Mapping):
        raise ConfigurationError(
            f"types maps column names to types, such as {{'id': 'uuid'}}; it is a "
            f"{type(types).__name__}"
        )
    for column, wanted in types.items():
        if columns and column not in columns:
            _unknown("types: there is no column", column, columns)
        if not callable(wanted) and wanted not in get_args(TypeName):
            _unknown(f"types[{column!r}]: there is no type", wanted, get_args(TypeName))
    return types


def _unknown(complaint: str, name: object, choices: Sequence[str]) -> NoReturn:
    from difflib import get_close_matches  # noqa: PLC0415 - only a mistake needs it

    nearest = get_close_matches(str(name), choices, n=1)
    suggestion = f" (did you mean {nearest[0]!r}?)" if nearest else ""
    more = ", …" if len(choices) > _LISTED else ""
    raise ConfigurationError(
        f"{complaint} {name!r}{suggestion}; there are {', '.join(choices[:_LISTED])}{more}"
    )


def convert(column: str, values: Sequence[Any], wanted: ColumnType) -> list[Any]:
    """Convert a column to the type that the user named; nulls stay `None`.

    Raises `ConfigurationError` for a value that does not fit. It does not quote the value: errors
    end in logs, where a user's data has no place.
    """
    converter = wanted if callable(wanted) else _CONVERTERS[wanted]
    misfit = (Exception,) if callable(wanted) else _DOES_NOT_FIT
    converted: list[Any] = []
    for row, value in enumerate(values):
        try:
            converted.append(None if value is None else converter(value))
        except misfit as error:
            # The text of a builtin conversion's error quotes the value, and is not chained.
            cause = error if callable(wanted) else None
            name = getattr(wanted, "__name__", wanted)
            raise ConfigurationError(
                f"types[{column!r}]: the value in row {row} (counted from 0) cannot become {name!r}"
            ) from cause
    if wanted != "interval":
        return converted
    try:
        return _shorten(converted)
    except OverflowError:  # too long for a timedelta
        return converted
