"""The shop's database, built the same every time. Nothing here runs a question.

`users` and `orders` are those of the recordings, five and twenty rows that must not change. The
schema `shop` is a larger shop of the same shape, for questions whose answers are worth a look.
"""

from __future__ import annotations

import sqlite3
from datetime import datetime, timedelta
from typing import Final

__all__ = ["open_shop"]

# Only a column with REAL affinity keeps 25.00 apart from the integer 25, also under sum();
# SQLite gives it to every type whose name contains REAL.
_TABLES = """
create table {schema}users (
    id uuid text primary key, name text not null, email text, created_at timestamptz text{country});
create table {schema}orders (
    id integer primary key, user_id uuid text, total numeric real, placed_at timestamp text,
    note text);
"""
_SHOP_TABLES = """
create table shop.categories (id integer primary key, name text not null);
create table shop.products (
    id integer primary key, name text not null, category_id integer, price numeric real);
create table shop.order_items (
    order_id integer, product_id integer, quantity integer, price numeric real);
"""

_RECORDED_USERS = ("Ada", "Béla", "Chloë", "Dmitri", "Eun-ji")
_FIRST: Final = ("Amber", "Brave", "Calm", "Dapper", "Eager", "Fuzzy")
_SECOND: Final = ("Heron", "Otter", "Lynx", "Badger", "Wren")
_COUNTRIES: Final = ("Austria", "Hungary", "Korea", "Norway", "Poland", "Austria", "Poland")
_CATEGORIES: Final = {
    "Kitchen": (("Teapot", 24.9), ("Coffee grinder", 49.0), ("Bread knife", 18.5)),
    "Garden": (("Watering can", 15.9), ("Rose shears", 22.0), ("Hammock", 89.0)),
    "Office": (("Desk lamp", 39.9), ("Notebook", 4.5), ("Fountain pen", 29.0)),
    "Outdoor": (("Rain jacket", 119.0), ("Compass", 17.9), ("Tent for two", 189.0)),
}
_NOTES: Final = (None, "gift wrap, please", None, "leave at the door", None, "call first")
_ORDERS: Final = 420
_MONTHS: Final = 12


def open_shop() -> sqlite3.Connection:
    """Return a connection to a fresh database in memory; the caller closes it."""
    # A cached statement would skip the authorizer of the chatbot that asks next.
    shop = sqlite3.connect(
        ":memory:", check_same_thread=False, isolation_level=None, cached_statements=0
    )
    shop.execute("attach ':memory:' as shop")
    shop.executescript(_TABLES.format(schema="", country=""))
    shop.executescript(_TABLES.format(schema="shop.", country=", country text") + _SHOP_TABLES)
    shop.execute("begin")
    _fill_recorded(shop)
    _fill_shop(shop)
    shop.execute("commit")
    shop.create_function("date_trunc", 2, _date_trunc, deterministic=True)
    return shop


def _fill_recorded(shop: sqlite3.Connection) -> None:
    """Insert the rows of tests/transcripts/tables.sql."""
    born = datetime(2026, 1, 1)  # noqa: DTZ001 - SQLite holds it without a zone
    for i, name in enumerate(_RECORDED_USERS, 1):
        row = (_uuid(i), name, f"u{i}@example.com", str(born + timedelta(days=i)))
        shop.execute("insert into users values (?, ?, ?, ?)", row)
    first = datetime(2026, 2, 1)  # noqa: DTZ001
    for i in range(1, 21):
        note = None if i % 3 == 0 else f'note "{i}" é <b>'
        placed = str(first + timedelta(hours=i))
        shop.execute(
            "insert into orders values (?, ?, ?, ?, ?)",
            (i, _uuid(1 + i % 5), i * 12.5, placed, note),
        )


def _fill_shop(shop: sqlite3.Connection) -> None:
    dice = _Dice(20260201)
    names = [f"{first} {second}" for second in _SECOND for first in _FIRST]
    start = datetime(2025, 3, 1, 8)  # noqa: DTZ001
    for i, name in enumerate(names, 1):
        email = name.lower().replace(" ", ".") + "@example.com"
        joined = str(start - timedelta(days=dice.roll(300), hours=dice.roll(24)))
        country = _COUNTRIES[dice.roll(len(_COUNTRIES))]
        row = (_uuid(i + 10), name, email, joined, country)
        shop.execute("insert into shop.users values (?, ?, ?, ?, ?)", row)
    prices = []
    for number, (category, products) in enumerate(_CATEGORIES.items(), 1):
        shop.execute("insert into shop.categories values (?, ?)", (number, category))
        for product, price in products:
            prices.append(price)
            item = (len(prices), product, number, price)
            shop.execute("insert into shop.products values (?, ?, ?, ?)", item)
    for order in range(1, _ORDERS + 1):
        # The smaller of two rolls: some users order much more than others.
        user = min(dice.roll(len(names)), dice.roll(len(names))) + 11
        minutes = dice.roll(_MONTHS * 30 * 24 * 60)
        total = 0.0
        for _ in range(1 + dice.roll(3)):
            number = min(dice.roll(len(prices)), dice.roll(len(prices)))
            quantity = 1 + dice.roll(3)
            total += quantity * prices[number]
            sold = (order, number + 1, quantity, prices[number])
            shop.execute("insert into shop.order_items values (?, ?, ?, ?)", sold)
        placed = str(start + timedelta(minutes=minutes))
        note = _NOTES[dice.roll(len(_NOTES))]
        bill = (order, _uuid(user), round(total, 2), placed, note)
        shop.execute("insert into shop.orders values (?, ?, ?, ?, ?)", bill)


class _Dice:
    """Numbers that look random and are the same on every Python (Knuth's MMIX constants)."""

    def __init__(self, seed: int) -> None:
        self._state = seed

    def roll(self, sides: int) -> int:
        self._state = (self._state * 6364136223846793005 + 1442695040888963407) % 2**64
        return (self._state >> 33) % sides


def _uuid(i: int) -> str:
    return f"00000000-0000-4000-8000-0000000000{i:02}"


def _date_trunc(field: str, value: str | None) -> str | None:
    """PostgreSQL's function of that name, for `year`, `month`, `day` and `hour`."""
    lengths = {"year": 4, "month": 7, "day": 10, "hour": 13}
    if value is None:
        return None
    return value[: lengths[field]] + "0000-01-01 00:00:00"[lengths[field] :]
