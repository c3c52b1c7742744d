"""JSON as Go's encoding/json writes it, with every digit kept. Nothing here knows the protocol."""

from __future__ import annotations

import json
import math
import re
from decimal import Decimal
from typing import Any

__all__ = ["NotJSONError", "Raw", "dumps", "quote"]

# Go escapes these inside strings so that its JSON can stand in HTML and JavaScript.
_SPECIAL = re.compile("[<>&\u2028\u2029\ud800-\udfff]")


class NotJSONError(ValueError):
    """A NaN or an infinity: Go refuses to encode the whole value, and so does this."""


class Raw(str):
    """JSON text that is put into the output as it is."""

    __slots__ = ()


def quote(text: str) -> str:
    """Return `text` as a JSON string: non-ASCII raw, `<`, `>` and `&` escaped."""
    return _SPECIAL.sub(_escape, json.dumps(text, ensure_ascii=False))


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    # A lone surrogate has no UTF-8; Go has made it the replacement character on reading.
    return "\ufffd" if 0xD800 <= code <= 0xDFFF else f"\\u{code:04x}"  # noqa: PLR2004 - Unicode's bounds


def dumps(value: Any, *, indent: str = "") -> str:
    """Return `value` as compact JSON, or indented by `indent` as Go's MarshalIndent does.

    Keys keep their order. Raises `NotJSONError` for a NaN or an infinity anywhere inside.
    """
    return _dump(value, indent, "\n")


def _dump(value: Any, indent: str, newline: str) -> str:
    match value:
        case Raw():
            return str(value)
        case str():
            return quote(value)
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
        case Decimal() | float():
            return _number(value)
        case dict():
            colon = ": " if indent else ":"
            inner = newline + indent
            items = [
                f"{quote(key)}{colon}{_dump(item, indent, inner)}" for key, item in value.items()
            ]
            return _group("{", items, "}", indent, newline)
        case list() | tuple():
            items = [_dump(item, indent, newline + indent) for item in value]
            return _group("[", items, "]", indent, newline)
    raise TypeError(f"no JSON for a {type(value).__name__}")


def _number(value: Decimal | float) -> str:
    if not math.isfinite(value):
        raise NotJSONError(f"{value} has no JSON")
    if isinstance(value, Decimal):
        return f"{value:f}"
    return str(int(value)) if value.is_integer() and abs(value) < 1e21 else repr(value)  # noqa: PLR2004 - Go's own bound


def _group(opening: str, items: list[str], closing: str, indent: str, newline: str) -> str:
    if not indent or not items:
        return opening + ",".join(items) + closing
    inner = newline + indent
    return opening + inner + ("," + inner).join(items) + newline + closing
