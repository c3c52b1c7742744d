"""What a query result's columns are: their order, from the SQL, and their values, from the wire.

Pure functions over plain values; nothing here knows a `QueryResult`, and no SQL makes it raise.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, Final, Literal, NamedTuple, NoReturn, TypeAlias, get_args
from uuid import UUID

import attrs

from .errors import ConfigurationError

__all__ = ["ColumnType", "Interval", "check_types", "column_order", "convert", "recognise"]

TypeName: TypeAlias = Literal[
    "array",
    "date",
    "float",
    "integer",
    "interval",
    "json",
    "numeric",
    "text",
    "time",
    "timestamp",
    "timestamptz",
    "uuid",
]
ColumnType: TypeAlias = TypeName | Callable[[Any], Any]

Row: TypeAlias = Mapping[str, Any]


@attrs.frozen
class Interval:
    """A PostgreSQL interval with months, which have no fixed length in days.

    A column of intervals without months is made of `datetime.timedelta` instead.
    """

    months: int = 0
    days: int = 0
    microseconds: int = 0


# --- The order of columns -------------------------------------------------------------------


def column_order(query: str, rows: Sequence[Row]) -> tuple[str, ...]:
    """Return the keys of `rows`, in the order of the query's select list where it tells them.

    The server sorts the keys of a row. The query is believed only if the names that it gives are
    exactly these keys, so a misread query can never lose or invent a column.
    """
    sent = _keys(rows)
    named = select_names(query)
    if named is None or len(named) != len(sent) or set(named) != set(sent):
        return sent
    return named


def _keys(rows: Sequence[Row]) -> tuple[str, ...]:
    if not rows:
        return ()
    first = rows[0].keys()
    # A set comparison in C for each row: all rows of one query have the same keys.
    if all(row.keys() == first for row in rows):
        return tuple(first)
    return tuple({key: None for row in rows for key in row})


class _Token(NamedTuple):
    kind: Literal["name", "quoted", "value", "mark", "group", "as"]
    text: str


_DOT: Final = _Token("mark", ".")
_COMMA: Final = _Token("mark", ",")
_SEMICOLON: Final = _Token("mark", ";")
_AS: Final = _Token("as", "as")
_GROUP: Final = _Token("group", "")
_VALUE: Final = _Token("value", "")

# Reading stops being worth its time: a query of a person or a model is a few hundred characters.
_LONGEST_QUERY: Final = 50_000

# PostgreSQL's lexical rules (its manual, section 4.1). Possessive quantifiers keep an unclosed
# quote from being tried at every length.
# A letter of a name is everything but these ASCII characters; said the other way round, as
# \x80-\U0010ffff, it takes re ten times as long to compile.
_LETTER: Final = r"[^\x00-@\[-^`{-\x7f]"
_LETTER_OR_DIGIT: Final = r"[^\x00-/:-@\[-^`{-\x7f]"
_TOKEN: Final = re.compile(
    rf"""
      (?P<blank>   [ \t\n\r\f\v]++ | --[^\n\r]*+ )
    | (?P<comment> /\* )
    | (?P<quoted>  "[^"]*+(?:""[^"]*+)*+" )
    | (?P<value>   [eE]'(?:[^'\\]|\\.|'')*+' | '[^']*+(?:''[^']*+)*+' | [0-9][0-9A-Za-z_.]*+ )
    | (?P<dollar>  \$(?:{_LETTER}{_LETTER_OR_DIGIT}*+)?+\$ )
    | (?P<name>    {_LETTER}(?:{_LETTER_OR_DIGIT}|\$)*+ )
    | (?P<unclosed> ['"] )
    | (?P<mark>    . )
    """,
    re.VERBOSE | re.DOTALL,
)
_COMMENT_EDGE: Final = re.compile(r"/\*|\*/")

# Reserved words that may follow a select list. As names they need quotes, AS or a dot.
_ENDS_LIST: Final = frozenset(
    {"except", "fetch", "for", "from", "group", "having", "intersect", "into", "limit", "offset"}
    | {"order", "union", "where", "window"}
)
# The same words in the middle of an expression: x IS DISTINCT FROM y, f(x) WITHIN GROUP (...).
_GOES_ON: Final = frozenset({("distinct", "from"), ("within", "group")})
# WITH can stand before these too, and then the rows are not those of the first SELECT.
_OTHER_STATEMENTS: Final = frozenset({"delete", "insert", "merge", "table", "update", "values"})

_ASCII_LOWER: Final = {upper: upper + 32 for upper in range(ord("A"), ord("Z") + 1)}


def select_names(query: str) -> tuple[str, ...] | None:
    """Return the names that a SELECT gives its columns, or `None` if it is not plain to see.

    Understood are `name`, `table.name`, `"Quoted"` and `expression AS name`. Of a UNION the first
    branch counts, of a query with WITH the main SELECT. Takes time linear in the query's length.
    """
    if len(query) > _LONGEST_QUERY:
        return None
    tokens = _tokens(query)
    flat = None if tokens is None else _top_level(tokens)
    items = None if flat is None else _select_list(flat)
    if items is None:
        return None
    names = [_output_name(item) for item in items]
    return None if None in names else tuple(name for name in names if name is not None)


def _tokens(query: str) -> list[_Token] | None:
    """Split a query into tokens; `None` if a quote or a comment does not end."""
    tokens: list[_Token] = []
    position = 0
    while match := _TOKEN.match(query, position):
        position = _end_of_token(query, match)
        text = match.group()
        match match.lastgroup:
            case _ if position < 0:
                return None
            case "name":
                # PostgreSQL folds ASCII letters only: É stays É.
                tokens.append(_Token("name", text.translate(_ASCII_LOWER)))
            case "quoted":
                tokens.append(_Token("quoted", text[1:-1].replace('""', '"')))
            case "value" | "dollar":
                tokens.append(_VALUE)
            case "mark":
                tokens.append(_Token("mark", text))
    return tokens


def _end_of_token(query: str, match: re.Match[str]) -> int:
    """Return where a token ends of which the pattern may have seen only the start; -1: nowhere."""
    match match.lastgroup:
        case "dollar":
            found = query.find(match.group(), match.end())
            return -1 if found < 0 else found + len(match.group())
        case "comment":
            depth = 1  # unlike in C, comments nest
            for edge in _COMMENT_EDGE.finditer(query, match.end()):
                depth += 1 if edge.group() == "/*" else -1
                if depth == 0:
                    return edge.end()
            return -1
        case "unclosed":
            return -1
        case _:
            return match.end()


def _top_level(tokens: Iterable[_Token]) -> list[_Token] | None:
    """Replace everything between brackets by one token; `None` if the brackets do not match."""
    flat: list[_Token] = []
    open_brackets: list[str] = []
    for token in tokens:
        bracket = token.text if token.kind == "mark" else ""
        if bracket in ("(", "["):
            if not open_brackets:
                flat.append(_GROUP)
            open_brackets.append(bracket)
        elif bracket in (")", "]"):
            if not open_brackets or open_brackets.pop() + bracket not in ("()", "[]"):
                return None
        elif not open_brackets:
            flat.append(token)
    return None if open_brackets else flat


def _select_list(flat: list[_Token]) -> list[list[_Token]] | None:
    """Return the tokens of each item of the main select list; `None` if there is none."""
    while flat and flat[-1] == _SEMICOLON:
        flat.pop()
    if _SEMICOLON in flat:
        return None
    start = _after_select(flat)
    if start is None:
        return None
    items: list[list[_Token]] = [[]]
    previous = ""
    label_follows = False  # after a dot or AS even FROM is a name
    for token in flat[start:]:
        word = token.text if token.kind == "name" and not label_follows else ""
        if word in _ENDS_LIST and (previous, word) not in _GOES_ON:
            break
        if token == _COMMA:
            items.append([])
        else:
            items[-1].append(_AS if word == "as" else token)
        label_follows = word == "as" or token == _DOT
        previous = word
    return items


def _after_select(flat: list[_Token]) -> int | None:
    """Return the index of the first token of the main select list."""
    words = [token.text if token.kind == "name" else "" for token in flat]
    # The SELECTs of WITH are inside brackets, so the first one left is the main one.
    if not words or words[0] not in ("select", "with") or "select" not in words:
        return None
    start = words.index("select") + 1
    if not _OTHER_STATEMENTS.isdisjoint(words[:start]):
        return None
    if words[start : start + 1] == ["all"]:
        return start + 1
    if words[start : start + 1] == ["distinct"]:
        has_on = words[start + 1 : start + 2] == ["on"] and flat[start + 2 : start + 3] == [_GROUP]
        return start + 3 if has_on else start + 1
    return start


def _output_name(item: list[_Token]) -> str | None:
    """Return the name of one item of a select list, or `None` if it has no plain one."""
    if not item or item[-1].kind not in ("name", "quoted"):
        return None
    has_alias = len(item) > 2 and item[-2] is _AS  # noqa: PLR2004 - expression, AS, name
    is_path = len(item) % 2 == 1 and all(
        token == _DOT if index % 2 else token.kind in ("name", "quoted")
        for index, token in enumerate(item)
    )
    return item[-1].text if has_alias or is_path else None


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
