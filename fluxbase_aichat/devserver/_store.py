"""What survives a restart: persisted conversations and the server's keys. No wire here."""

from __future__ import annotations

import secrets
import sqlite3
import threading
import uuid
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from ._gojson import Raw

__all__ = ["Store"]

_SCHEMA = """
create table if not exists settings (name text primary key, value text);
create table if not exists conversations (
    number integer primary key autoincrement, id text unique, chatbot text, namespace text,
    user_id text, title text, turns integer, created_at text, updated_at text);
create table if not exists messages (
    number integer primary key autoincrement, id text unique, conversation_id text, role text,
    content text, timestamp text, query_results text, usage text);
"""
_PREVIEW: Final = 50
_COLUMNS: Final = "id, chatbot, namespace, title, created_at, updated_at"


class Store:
    """The disk of a dev server: give it to the next one to restart with the same conversations.

    `path` is a file, or by default memory that lives as long as this object. Thread-safe.
    """

    def __init__(self, path: str | Path = ":memory:") -> None:
        self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._db.row_factory = sqlite3.Row
        self._lock = threading.Lock()
        self._db.executescript(_SCHEMA)
        self.secret: bytes = bytes.fromhex(self._setting("secret", secrets.token_hex(32)))
        self.service_key: str = self._setting("service_key", f"sk_dev_{secrets.token_hex(16)}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; idempotent."""
        with self._lock:
            self._db.close()

    def _setting(self, name: str, default: str) -> str:
        self._write("insert or ignore into settings values (?, ?)", name, default)
        return str(self._read("select value from settings where name = ?", name)[0][0])

    def _write(self, sql: str, *values: Any) -> None:
        with self._lock:
            self._db.execute(sql, values)

    def _read(self, sql: str, *values: Any, **named: Any) -> list[sqlite3.Row]:
        with self._lock:
            return self._db.execute(sql, named or values).fetchall()

    def add_conversation(self, id: str, chatbot: str, namespace: str, user_id: str | None) -> None:  # noqa: A002 - the wire's name
        """Store a conversation without messages."""
        now = _now()
        self._write(
            "insert into conversations values (null, ?, ?, ?, ?, null, 0, ?, ?)",
            *(id, chatbot, namespace, user_id, now, now),
        )

    def add_message(
        self, conversation_id: str, role: str, content: str, results: Raw | None, usage: Raw | None
    ) -> str:
        """Store a message and return its id; the first of a conversation gives it its title."""
        message_id = str(uuid.uuid4())
        now = _now()
        self._write(
            "insert into messages values (null, ?, ?, ?, ?, ?, ?, ?)",
            *(message_id, conversation_id, role, content, now, results, usage),
        )
        self._write(
            "update conversations set title = coalesce(title, ?), updated_at = ?, "
            "turns = turns + ? where id = ?",
            *(_title(content), now, int(role == "user"), conversation_id),
        )
        return message_id

    def remove_message(self, message_id: str) -> None:
        """Forget the question of a turn that failed."""
        self._write("delete from messages where id = ?", message_id)

    def load(self, conversation_id: str) -> tuple[sqlite3.Row, list[tuple[str, str]]] | None:
        """Return a conversation's row and its messages' roles and contents, or `None`."""
        rows = self._read("select * from conversations where id = ?", conversation_id)
        if not rows:
            return None
        messages = self._messages(conversation_id)
        return rows[0], [(row["role"], row["content"]) for row in messages]

    def _messages(self, conversation_id: str) -> list[sqlite3.Row]:
        return self._read(
            "select * from messages where conversation_id = ? order by number", conversation_id
        )

    def listing(
        self,
        user_id: str | None,
        *,
        chatbot: str | None,
        namespace: str | None,
        limit: int,
        offset: int,
    ) -> dict[str, Any]:
        """Return one page of a user's conversations (`None`: of everybody's), newest first."""
        where = (
            "from conversations where coalesce(:user_id, user_id, '') = coalesce(user_id, '') "
            "and coalesce(:chatbot, chatbot) = chatbot "
            "and coalesce(:namespace, namespace) = namespace "
        )
        named = {"user_id": user_id, "chatbot": chatbot, "namespace": namespace}
        total = self._read("select count(*) " + where, **named)[0][0]
        page = "order by updated_at desc, number desc limit :limit offset :offset"
        rows = self._read(f"select {_COLUMNS} {where} {page}", limit=limit, offset=offset, **named)
        found = [self._summary(row) for row in rows]
        return {"conversations": found, "total": total, "has_more": offset + len(found) < total}

    def _summary(self, row: sqlite3.Row) -> dict[str, Any]:
        messages = self._messages(row["id"])
        first = next((message["content"] for message in messages), "")
        return {
            "id": row["id"],
            "chatbot": row["chatbot"],
            "namespace": row["namespace"],
            "title": row["title"],
            "preview": first[:_PREVIEW],
            "message_count": len(messages),
            "created_at": _go_time(row["created_at"]),
            "updated_at": _go_time(row["updated_at"]),
        }

    def detail(self, conversation_id: str, user_id: str | None) -> dict[str, Any] | None:
        """Return a conversation with its messages, or `None` if it is not that user's."""
        rows = self._read(
            f"select {_COLUMNS} from conversations where id = ? "  # noqa: S608 - constants
            "and coalesce(?, user_id, '') = coalesce(user_id, '')",
            *(conversation_id, user_id),
        )
        if not rows:
            return None
        answer = dict(rows[0])
        answer["created_at"] = _go_time(answer["created_at"])
        answer["updated_at"] = _go_time(answer["updated_at"])
        answer["messages"] = [_message(row) for row in self._messages(conversation_id)]
        return answer

    def rename(self, conversation_id: str, title: str) -> None:
        """Give a conversation another title."""
        self._write(
            "update conversations set title = ?, updated_at = ? where id = ?",
            *(title, _now(), conversation_id),
        )

    def delete(self, conversation_id: str) -> None:
        """Forget a conversation and its messages."""
        self._write("delete from messages where conversation_id = ?", conversation_id)
        self._write("delete from conversations where id = ?", conversation_id)


def _message(row: sqlite3.Row) -> dict[str, Any]:
    message: dict[str, Any] = {
        "id": row["id"],
        "role": row["role"],
        "content": row["content"],
        "timestamp": _go_time(row["timestamp"]),
    }
    for name in ("query_results", "usage"):
        if row[name] is not None:
            message[name] = Raw(row[name])
    return message


def _title(content: str) -> str:
    """Return the first words of a question, at most fifty characters of them."""
    if len(content) <= _PREVIEW:
        return content
    head = content[:_PREVIEW]
    return (head.rpartition(" ")[0].rstrip() or head) + "..."


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")


def _go_time(stamp: str) -> str:
    """RFC 3339 as Go writes it: no zeros at the end of the fraction."""
    return stamp.rstrip("0").rstrip(".") + "Z" if "." in stamp else stamp + "Z"
