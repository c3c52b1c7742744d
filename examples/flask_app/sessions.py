"""What the server knows of each browser, in a file that all workers share. No web here."""

from __future__ import annotations

import contextlib
import secrets
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

__all__ = ["Session", "Sessions"]

# Longer than a token lasts.
_KEPT: Final = "-1 day"


@dataclass(frozen=True)
class Session:
    """One person who has signed in."""

    email: str
    token: str
    conversation_id: str | None


class Sessions:
    """Sessions under random keys. A connection per call: one that was forked is of no use."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._open() as database:
            database.execute(
                "CREATE TABLE IF NOT EXISTS sessions (key TEXT PRIMARY KEY, email TEXT, "
                "token TEXT, conversation_id TEXT, since TEXT DEFAULT CURRENT_TIMESTAMP)"
            )

    def begin(self, email: str, token: str) -> str:
        """Keep a person under a new key, and return it."""
        key = secrets.token_urlsafe()
        with self._open() as database:
            database.execute("DELETE FROM sessions WHERE since < datetime('now', ?)", (_KEPT,))
            database.execute(
                "INSERT INTO sessions (key, email, token) VALUES (?, ?, ?)", (key, email, token)
            )
        return key

    def get(self, key: str) -> Session | None:
        """Return a session, if there is one."""
        with self._open() as database:
            row = database.execute(
                "SELECT email, token, conversation_id FROM sessions WHERE key = ?", (key,)
            ).fetchone()
        return None if row is None else Session(*row)

    def go_on(self, key: str, conversation_id: str | None) -> None:
        """Note the conversation that a person is in."""
        with self._open() as database:
            database.execute(
                "UPDATE sessions SET conversation_id = ? WHERE key = ?", (conversation_id, key)
            )

    def end(self, key: str) -> None:
        """Forget a session."""
        with self._open() as database:
            database.execute("DELETE FROM sessions WHERE key = ?", (key,))

    @contextlib.contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        with contextlib.closing(sqlite3.connect(self._path)) as database, database:
            yield database
