"""Values to and from what JSON can carry; nothing here knows what they are for.

Values that JSON lacks are wrapped in an object of one tag, and so is an object of the user's data
that happens to look like one. Everything else stands for itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from decimal import Decimal
from math import isfinite
from typing import Any, Final, TypeAlias, TypeVar

from .errors import ConfigurationError

__all__ = [
    "build",
    "count",
    "decode",
    "encode",
    "many",
    "mapping",
    "read_list",
    "rows",
    "seconds",
    "text",
]

_DECIMAL: Final = "$decimal"
_FLOAT: Final = "$float"  # 1e999 is valid JSON, and an infinity once it is read
_OBJECT: Final = "$object"
_TAGS: Final = frozenset({_DECIMAL, _FLOAT, _OBJECT})

_Built = TypeVar("_Built")
_Reader: TypeAlias = Callable[[Any], Any]


def encode(value: Any) -> Any:
    """Copy a value of `data` into what every JSON writer takes."""
    if isinstance(value, Decimal):
        return {_DECIMAL: str(value)}
    if isinstance(value, float) and not isfinite(value):
        return {_FLOAT: repr(value)}
    if isinstance(value, list | tuple):
        return [encode(item) for item in value]
    if isinstance(value, dict):
        encoded = {key: encode(item) for key, item in value.items()}
        return {_OBJECT: encoded} if len(value) == 1 and not _TAGS.isdisjoint(value) else encoded
    return value


def decode(value: Any) -> Any:
    """Undo `encode`."""
    if isinstance(value, list):
        return [decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        ((tag, inner),) = value.items()
        if tag == _DECIMAL:
            return Decimal(text(inner))
        if tag == _FLOAT:
            return float(text(inner))
        if tag == _OBJECT:
            value = mapping(inner)
    return {key: decode(item) for key, item in value.items()}


def build(cls: type[_Built], values: Any, **readers: _Reader) -> _Built:
    """Make a `cls` of those values that have a reader; what is missing or null is left out."""
    fields: dict[str, Any] = {}
    present = mapping(values)
    for name, read in readers.items():
        value = present.get(name)
        if value is None:
            continue
        try:
            fields[name] = read(value)
        except ConfigurationError:
            raise
        except (TypeError, ValueError, ArithmeticError, IndexError) as error:
            kind = type(value).__name__
            raise ConfigurationError(
                f"{cls.__name__}.{name} cannot be made of this {kind}"
            ) from error
    return cls(**fields)


def _checked(*kinds: type) -> _Reader:
    def read(value: Any) -> Any:
        if not isinstance(value, kinds):
            raise TypeError(f"a {type(value).__name__}, where {kinds[0].__name__} is needed")
        return value

    return read


def many(read: _Reader) -> Callable[[Any], tuple[Any, ...]]:
    return lambda values: tuple(read(value) for value in read_list(values))


text: Final = _checked(str)
count: Final = _checked(int)
seconds: Final = _checked(float, int)
read_list: Final = _checked(list, tuple)
mapping: Final = _checked(Mapping)


def rows(values: Any) -> list[dict[str, Any]]:
    return [dict(mapping(decode(row))) for row in read_list(values)]
