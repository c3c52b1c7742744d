"""What a column of a query result can be, as users name it. `_columns` makes it that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import attrs

from ._value import Value

__all__ = ["ColumnType", "Interval", "TypeName"]

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


@attrs.frozen(eq=False, repr=False)
class Interval(Value):
    """A PostgreSQL interval with months, which have no fixed length in days.

    A column of intervals without months is made of `datetime.timedelta` instead.
    """

    months: int = 0
    days: int = 0
    microseconds: int = 0
