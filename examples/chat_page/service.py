"""What both applications do with the chat, for the session of a key. It knows no web framework.

A conversation's id gets to no browser: whoever is signed in and knows one can go on with it.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Callable, Iterator
from typing import Any, Final, Self, TypeVar

from fluxbase_aichat import (
    AuthenticationError,
    ChatPool,
    ConfigurationError,
    ConversationSummary,
    FluxbaseAI,
    Limits,
    NotFoundError,
    PasswordLogin,
    QueryResult,
    RefreshToken,
    Timeouts,
    Turn,
)

from .sessions import Session, Sessions
from .settings import Settings
from .web import BadInputError, SignedOutError, log

__all__ = ["Service"]

# A browser that has gone is noticed by writing to it, so Stop takes this long when nothing comes.
_HEARTBEAT: Final = 0.5
# The longest silence of an answer: the model's provider has gone.
_IDLE: Final = 60.0
# So much may wait for each browser that reads slowly.
_LIMITS: Final = Limits(message_bytes=8 * 2**20, turn_bytes=16 * 2**20)
# What the page shows of a table, a conversation and the list of them.
_ROWS: Final = 50
_MESSAGES: Final = 100
_PAST: Final = 20

T = TypeVar("T")


class Service:
    """The chat of one application, for all its threads; a forked worker's pool begins empty."""

    def __init__(self, settings: Settings) -> None:
        self._url = settings.url
        self._chatbot = settings.chatbot
        self._seconds = settings.seconds
        self._sessions = Sessions(settings.data)
        try:
            # Not tried again: a person waits, and can.
            self._pool = ChatPool(
                settings.url,
                size=settings.pool_size,
                acquire_timeout=settings.pool_seconds,
                timeouts=Timeouts(connect=self._seconds, start=self._seconds, idle=_IDLE),
                limits=_LIMITS,
                reconnect_attempts=0,
            )
            # Or nobody could sign in: no password goes to another machine in the open.
            PasswordLogin(settings.url, "-", "-")
        except ConfigurationError as error:
            raise SystemExit(f"FLUXBASE_URL or a CHAT_ variable is wrong: {error}") from None

    # -- sessions ---------------------------------------------------------------------------

    def sign_in(self, old_key: str, email: str, password: str) -> str:
        """Begin a session in place of the browser's old one, and return its key."""
        login = PasswordLogin(self._url, email, password, timeout=self._seconds)
        try:
            token = login()
        except AuthenticationError:
            raise BadInputError("The e-mail address or the password is not right.") from None
        self._sessions.end(old_key)
        return self._sessions.begin(email, token, login.refresh_token)

    def sign_out(self, key: str) -> None:
        """End it."""
        self._sessions.end(key)

    def _session(self, key: str) -> Session:
        session = self._sessions.get(key)
        if session is None:
            raise SignedOutError
        return session

    def _as(self, key: str, call: Callable[[Session], T]) -> T:
        """Call it for a session; once more when the token was refused, which lasts minutes."""
        session = self._session(key)
        try:
            return call(session)
        except AuthenticationError:
            if session.refresh_token is None:
                raise
            return call(self._renewed(key, session.token))

    def _renewed(self, key: str, refused: str) -> Session:
        with self._sessions.alone(key, self._seconds):
            session = self._session(key)
            # A refresh token may be good for one use: of all that were refused, the first renews.
            if session.token == refused and session.refresh_token is not None:
                source = RefreshToken(self._url, session.refresh_token, timeout=self._seconds)
                self._sessions.renew(key, source(), source.refresh_token)
        return self._session(key)

    # -- the chat ---------------------------------------------------------------------------

    def ask(self, key: str, question: str) -> Iterator[bytes]:
        """Ask, and return the answer's stream, in which a failure is an event.

        It starts the conversation first, so that most of what can fail has an HTTP status.
        """

        def send(session: Session) -> Turn:
            with self._pool.chat(user=session.email, token=session.token) as chat:
                conversation = chat.conversation(
                    self._chatbot, conversation_id=session.conversation_id, on_lost="new"
                )
                self._sessions.go_on(key, conversation.start())
                return conversation.send(question)

        return _Stream(self._as(key, send))

    def new(self, key: str) -> None:
        """Have the next question begin a conversation."""
        self._session(key)
        self._sessions.go_on(key, None)

    def open(self, key: str, handle: str) -> None:
        """Go back to one of the past conversations: those that the server lists for the person."""
        for past in self._as(key, self._past):
            if _handle(key, past.id) == handle:
                return self._sessions.go_on(key, past.id)
        raise BadInputError("There is no such conversation.")

    def history(self, key: str) -> dict[str, Any]:
        """Return what the page shows: the messages of the conversation, and the past ones."""

        def read(session: Session) -> dict[str, Any]:
            return {
                "user": session.email,
                "messages": self._messages(session),
                "conversations": [
                    {
                        "handle": _handle(key, past.id),
                        "title": past.title or past.preview,
                        "current": past.id == session.conversation_id,
                    }
                    for past in self._past(session)
                ],
            }

        return self._as(key, read)

    def _past(self, session: Session) -> list[ConversationSummary]:
        page = self._api(session).list_conversations(chatbot=self._chatbot, namespace="default")
        # Every start stores one, also when no message has followed.
        return [past for past in page if past.message_count][:_PAST]

    def _messages(self, session: Session) -> list[dict[str, Any]]:
        conversation_id = session.conversation_id
        if conversation_id is None:
            return []
        try:
            messages = self._api(session).get_conversation(conversation_id).messages
        except NotFoundError:  # the chatbot keeps none
            return []
        return [
            {
                "role": message.role,
                "content": message.content.replace(conversation_id, "…"),
                "results": [_table(result) for result in message.query_results],
            }
            for message in messages[-_MESSAGES:]
        ]

    def _api(self, session: Session) -> FluxbaseAI:
        return FluxbaseAI(self._url, session.token, timeout=self._seconds)


class _Stream(Iterator[bytes]):
    """An answer as server-sent events; closing it cancels the answer.

    A generator in its place would not, if its browser had gone before the first event.
    """

    def __init__(self, turn: Turn) -> None:
        self._turn = turn
        self._events = turn.iter_sse(heartbeat=_HEARTBEAT)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> bytes:
        try:
            return next(self._events)
        except StopIteration:
            if self._turn.error is not None:
                log("an answer", self._turn.error)
            raise

    def close(self) -> None:
        """Be called by the web server, also when the browser has gone."""
        self._events.close()


def _handle(key: str, conversation_id: str) -> str:
    """Return what one session's page calls a conversation, whose id it must not know."""
    return hmac.new(key.encode(), conversation_id.encode(), "sha256").hexdigest()


def _table(result: QueryResult) -> dict[str, Any]:
    # As text: JSON has no type for a UUID, and the page shows nothing else.
    return {
        "summary": result.summary,
        "row_count": result.row_count,
        "columns": result.columns,
        "rows": [
            {name: None if value is None else _cell(value) for name, value in row.items()}
            for row in result.rows[:_ROWS]
        ],
    }


def _cell(value: Any) -> str:
    if isinstance(value, (dict, list, bool)):
        return json.dumps(value, default=str)
    return str(value)
