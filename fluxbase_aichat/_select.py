"""The order of a query's columns, read from its select list: the server sorts the keys of a row.

A small tokenizer, not a parser: what it does not understand, it says nothing about. No SQL makes it
raise, and its time grows with the query's length.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple, TypeAlias

__all__ = ["column_order", "select_names"]

Row: TypeAlias = Mapping[str, Any]


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
