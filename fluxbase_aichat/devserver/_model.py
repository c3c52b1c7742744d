"""The demo's model: a table of rules from questions to SQL and prose. It does no I/O.

A rule's question is looked for in the message; a message that only asks for another view of the
answer before ("and by revenue?", "as a table, please") is taken with the question it follows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

from ._script import Call, Model, Say, Step, echo, is_script, scripted, words
from ._sql import QueryResult

__all__ = ["answer"]

Rows = list[dict[str, Any]]

_LONG: Final = 5_000
"""A message longer than this is no question; it is echoed."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A kind of question and how it is answered."""

    name: str
    question: re.Pattern[str]
    example: str
    intro: str
    sql: str
    prose: Callable[[Rows], str]
    follow_ups: tuple[tuple[str, str], ...] = ()
    """What a short message after this one may say, and the rule that it then means."""


def _rule(name: str, question: str, example: str, intro: str, sql: str, **more: Any) -> Rule:
    return Rule(name, re.compile(question), example, intro, " ".join(sql.split()), **more)


def _best(noun: str, what: str) -> Callable[[Rows], str]:
    """Prose that names the first row and lists the others."""

    def prose(rows: Rows) -> str:
        name, value = list(rows[0].values())[:2]
        others = ", ".join(f"{_text(row[next(iter(row))])}" for row in rows[1:4])
        after = f" After that come {others}." if others else ""
        return f"The top {noun} is **{_text(name)}** with {what.format(_text(value))}.{after}"

    return prose


_USERS: Final = "FROM shop.users u JOIN shop.orders o ON o.user_id = u.id GROUP BY u.id, u.name"

_RULES: Final = (
    # The database cannot answer this one: a demo of a failed query.
    _rule(
        "refunds",
        r"\b(refunds?|refunded|returns?|returned)\b",
        "How many orders were refunded?",
        "Let me see.",
        "SELECT count(refunded_at) AS refunds FROM shop.orders",
        prose=lambda _: "There are none.",
    ),
    _rule(
        "users by revenue",
        r"(?=.*\b(users?|customers?)\b)(?=.*\b(revenue|spen[dt]|turnover|sales)\b)",
        "Who are the top 5 users by revenue?",
        "Let me add up what each user has spent.",
        f"""SELECT u.name, sum(o.total) AS revenue, count(*) AS orders {_USERS}
        ORDER BY revenue DESC, u.name LIMIT {{top}}""",
        prose=_best("user by revenue", "{} of revenue"),
        follow_ups=((r"\b(orders?|count)\b", "users by orders"),),
    ),
    _rule(
        "users by orders",
        r"(?=.*\b(users?|customers?)\b)(?=.*\b(top|most|best|order count)\b)",
        "Show me the top 10 users by order count",
        "Let me count the orders of each user.",
        f"""SELECT u.name, count(*) AS orders, sum(o.total) AS revenue {_USERS}
        ORDER BY orders DESC, u.name LIMIT {{top}}""",
        prose=_best("user", "{} orders"),
        follow_ups=((r"\b(revenue|spen[dt]|turnover|sales)\b", "users by revenue"),),
    ),
    _rule(
        "revenue per month",
        r"(?=.*\b(revenue|sales|turnover)\b)(?=.*\b(months?|monthly|over time)\b)",
        "What was the revenue per month?",
        "Let me look at the months.",
        """SELECT date_trunc('month', placed_at) AS month, sum(total) AS revenue,
        count(*) AS orders FROM shop.orders GROUP BY month ORDER BY month""",
        prose=lambda rows: (
            f"The last {len(rows)} months brought {_text(_sum(rows, 'revenue'))} in all. The best "
            f"was **{_text(_peak(rows)['month'])}** with {_text(_peak(rows)['revenue'])}."
        ),
    ),
    _rule(
        "revenue per category",
        r"\bcategor(y|ies)\b",
        "Which category brings the most revenue?",
        "Let me group the products.",
        """SELECT c.name AS category, sum(i.quantity * i.price) AS revenue, sum(i.quantity) AS sold
        FROM shop.categories c JOIN shop.products p ON p.category_id = c.id
        JOIN shop.order_items i ON i.product_id = p.id GROUP BY c.name ORDER BY revenue DESC""",
        prose=_best("category", "{} of revenue"),
    ),
    _rule(
        "products",
        r"(?=.*\b(products?|items?|articles?)\b)(?=.*\b(top|best|most|popular|sell\w*)\b)",
        "What are the best-selling products?",
        "Let me count what was sold.",
        """SELECT p.name AS product, sum(i.quantity) AS sold, sum(i.quantity * i.price) AS revenue
        FROM shop.products p JOIN shop.order_items i ON i.product_id = p.id
        GROUP BY p.id, p.name ORDER BY sold DESC, product LIMIT {top}""",
        prose=_best("product", "{} sold"),
    ),
    _rule(
        "orders without a note",
        r"(?=.*\borders?\b)(?=.*\b(without|no|missing|empty)\b.*\bnotes?\b)",
        "Show me the latest orders without a note",
        "Let me find them.",
        """SELECT o.id, u.name, o.total, o.placed_at, o.note FROM shop.orders o
        JOIN shop.users u ON u.id = o.user_id WHERE o.note IS NULL
        ORDER BY o.placed_at DESC LIMIT {top}""",
        prose=lambda rows: (
            f"Here are the latest {len(rows)} orders without a note; the newest is number "
            f"**{rows[0]['id']}**, by {rows[0]['name']}, over {_text(rows[0]['total'])}."
        ),
    ),
    _rule(
        "users per country",
        r"\bcountr(y|ies)\b|\bwhere\b.*\b(users?|customers?)\b",
        "How many users are there per country?",
        "Let me group the users.",
        """SELECT country, count(*) AS users FROM shop.users
        GROUP BY country ORDER BY users DESC, country""",
        prose=lambda rows: (
            f"The users come from {len(rows)} countries, most of them ({rows[0]['users']}) from "
            f"**{rows[0]['country']}**."
        ),
    ),
    _rule(
        "how many users",
        r"\bhow many\b.*\b(users?|customers?)\b",
        "How many users are there?",
        "Let me count.",
        "SELECT count(*) FROM shop.users",
        prose=lambda rows: f"There are **{rows[0]['count']}** users.",
    ),
    _rule(
        "how many orders",
        r"\bhow many\b.*\borders?\b",
        "How many orders are there?",
        "Let me count.",
        "SELECT count(*) AS orders, sum(total) AS revenue FROM shop.orders",
        prose=lambda rows: (
            f"There are **{rows[0]['orders']}** orders over {_text(rows[0]['revenue'])} in all."
        ),
    ),
)

_TABLE = re.compile(r"\btable\b")
_TOP = re.compile(r"\b(?:top|latest|best|first|last)\W+(\d{1,3})\b")


def answer(content: str, earlier: Sequence[str]) -> Model:
    """Return the model's answer to a message that came after the `earlier` user messages."""
    if is_script(content):
        return scripted(content)
    if len(content) > _LONG:
        return _once(list(echo(content)))
    rule, top = _find(content, earlier)
    if rule is None:
        return _once([Say(words(_help()))])
    return _query(rule, top, table=_TABLE.search(content.lower()) is not None)


def _find(content: str, earlier: Sequence[str]) -> tuple[Rule | None, str]:
    """Return the rule that a message means, if need be with those before, and its row limit."""
    text = content.lower()
    number = _TOP.search(text)
    if any(rule.question.search(text) for rule in _RULES):
        rule = next(rule for rule in _RULES if rule.question.search(text))
        return rule, number[1] if number else "10"
    if earlier and not is_script(earlier[-1]):
        before, top = _find(earlier[-1], earlier[:-1])
    else:
        # A follow-up to nothing is about the users, as most questions here are.
        before, top = next(rule for rule in _RULES if rule.name == "users by orders"), "10"
    if before is None:
        return None, ""
    top = number[1] if number else top
    for pattern, name in before.follow_ups:
        if re.search(pattern, text):
            return next(rule for rule in _RULES if rule.name == name), top
    return (before, top) if earlier and (_TABLE.search(text) or number) else (None, "")


def _once(steps: list[Step]) -> Model:
    yield steps


def _query(rule: Rule, top: str, *, table: bool) -> Model:
    sql = rule.sql.replace("{top}", top)
    results = yield [Say(words(rule.intro)), Call.sql(sql, rule.name)]
    result = results[0] if results else QueryResult(sql, "failed", "")
    if result.status == "empty":
        text = "Nothing was found."
    elif result.status != "ok":
        text = "I could not answer that: the database does not know what I asked it for."
    else:
        text = rule.prose(result.rows)
        if table:
            text += "\n\n" + _markdown(result.rows)
    yield [Say(words(text))]


def _help() -> str:
    examples = "\n".join(f"- {rule.example}" for rule in _RULES)
    return (
        "Hello! I answer questions about a small shop. You can ask me, for example:\n\n"
        f"{examples}\n\nand then go on with “and by revenue?” or “as a table, please”."
    )


def _markdown(rows: Rows) -> str:
    names = list(rows[0])
    lines = [" | ".join(names), " | ".join("---" for _ in names)]
    lines += [" | ".join(_text(row[name]) for name in names) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)


def _sum(rows: Rows, column: str) -> Decimal:
    return sum((row[column] for row in rows), Decimal(0))


def _peak(rows: Rows) -> dict[str, Any]:
    return max(rows, key=lambda row: row["revenue"])


def _text(value: Any) -> str:
    """Return a value as prose has it: `1,234.50`, `2026-01` for a month."""
    if isinstance(value, Decimal):
        return f"{value:,.2f}"
    if isinstance(value, int):
        return f"{value:,}"
    text = "" if value is None else str(value)
    return text.replace("-01T00:00:00Z", "").replace("T", " ") if text.endswith("Z") else text
