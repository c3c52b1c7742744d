"""What the server knows of each browser, in a file that all workers share. No web here.

A browser has the random key of its session; tokens and conversation ids stay in the file.
"""

from __future__ import annotations

import contextlib
import secrets
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from fluxbase_aichat import ConnectTimeoutError

__all__ = ["Session", "Sessions"]

_KEPT: Final = "-1 day"


@dataclass(frozen=True)
class Session:
    """One person who has signed in. What is secret is not in its `repr`."""

    email: str
    token: str = field(repr=False)
    refresh_token: str | None = field(repr=False)
    conversation_id: str | None = field(repr=False)


class Sessions:
    """Sessions under random keys. A connection per call: one that was forked is of no use."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "sessions.db"
        self._path.touch(mode=0o600)  # SQLite would let other users read it
        self._run(
            "CREATE TABLE IF NOT EXISTS sessions (key TEXT PRIMARY KEY, email TEXT, token TEXT, "
            "refresh_token TEXT, conversation_id TEXT, since TEXT DEFAULT CURRENT_TIMESTAMP)"
        )

    def begin(self, email: str, token: str, refresh_token: str | None) -> str:
        """Keep a person under a new key, and return it."""
        self._run("DELETE FROM sessions WHERE since < datetime('now', ?)", _KEPT)
        key = secrets.token_urlsafe()
        self._run(
            "INSERT INTO sessions (key, email, token, refresh_token) VALUES (?, ?, ?, ?)",
            *(key, email, token, refresh_token),
        )
        return key

    def get(self, key: str) -> Session | None:
        """Return a session, if there is one that is not too old."""
        row = self._run(
            "SELECT email, token, refresh_token, conversation_id FROM sessions "
            "WHERE key = ? AND since >= datetime('now', ?)",
            *(key, _KEPT),
        )
        return None if row is None else Session(*row)

    def go_on(self, key: str, conversation_id: str | None) -> None:
        """Note the conversation that a person is in."""
        self._run("UPDATE sessions SET conversation_id = ? WHERE key = ?", conversation_id, key)

    def renew(self, key: str, token: str, refresh_token: str) -> None:
        """Replace the tokens."""
        self._run(
            "UPDATE sessions SET token = ?, refresh_token = ? WHERE key = ?",
            *(token, refresh_token, key),
        )

    def end(self, key: str) -> None:
        """Forget a session."""
        self._run("DELETE FROM sessions WHERE key = ?", key)

    @contextlib.contextmanager
    def alone(self, key: str, seconds: float) -> Iterator[None]:
        """Keep the other requests of this session out, in all workers, without the file's lock.

        SQLite locks whole files, so these are 64 more. Other databases lock the session's row.
        """
        path = self._path.with_name(f"renewing-{key[0]}.db")
        with contextlib.closing(
            sqlite3.connect(path, timeout=seconds, isolation_level=None)
        ) as lock:
            try:
                lock.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as error:
                raise ConnectTimeoutError("another request still renews the token") from error
            yield

    def _run(self, statement: str, *values: str | None) -> Any:
        with contextlib.closing(sqlite3.connect(self._path)) as database, database:
            return database.execute(statement, values).fetchone()
