"""What both applications do with the chat. It knows no web framework, and no session."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fluxbase_aichat import (
    AuthenticationError,
    ChatPool,
    ConfigurationError,
    ConnectError,
    ConnectionLostError,
    ConversationNotResumedError,
    FeatureDisabledError,
    FluxbaseAI,
    LocalProtocolError,
    NotFoundError,
    PasswordLogin,
    PermissionDeniedError,
    PoolTimeoutError,
    QueryResult,
    QuotaError,
    RateLimitError,
    Timeouts,
)

__all__ = [
    "CONTENT_POLICY",
    "STATIC",
    "BadInputError",
    "Problem",
    "Service",
    "SignedOutError",
    "log",
    "problem",
    "read",
]

STATIC: Final = Path(__file__).parent / "static"
CONTENT_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Were a text of the server inserted as HTML by mistake, the browser would still not run it."""

_LONGEST: Final = 4000
# A browser that has gone is noticed by writing to it, so Stop takes this long when nothing comes.
_HEARTBEAT: Final = 0.5
# The longest silence of an answer: the model's provider has gone.
_IDLE: Final = 60.0


class BadInputError(Exception):
    """The browser sent what cannot be used; the message is for a person."""


class SignedOutError(Exception):
    """Who asks has not signed in."""


@dataclass(frozen=True)
class Problem:
    """A failure as the browser gets it."""

    status: int
    message: str
    retry_after: int | None = None

    @property
    def headers(self) -> dict[str, str]:
        """Those that go with it."""
        return {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}


def problem(error: Exception) -> Problem:
    """Say in one line what a person can do; the details are for the log."""
    match error:
        case BadInputError():
            return Problem(400, str(error))
        case ConfigurationError() | LocalProtocolError():
            return Problem(400, "That cannot be sent.")
        case SignedOutError() | AuthenticationError():
            return Problem(401, "You are not signed in, or not any more. Please sign in.")
        case PermissionDeniedError():
            return Problem(403, "You may not use this chatbot.")
        case RateLimitError(retry_after=seconds):
            wait = None if seconds is None else max(1, round(seconds))
            when = "later" if wait is None else f"in {_duration(wait)}"
            return Problem(429, f"That was too much at once. Please come back {when}.", wait)
        case QuotaError():
            return Problem(429, "What you may ask in a day is used up. Please come back tomorrow.")
        case PoolTimeoutError():
            return Problem(503, "All connections are busy. Please try again in a moment.", 5)
        case FeatureDisabledError():
            return Problem(503, "The chat is switched off.")
        case ConnectError() | ConnectionLostError() | TimeoutError():
            return Problem(503, "The chat server cannot be reached. Please try again later.", 5)
    return Problem(502, "The chat server could not answer that.")


def log(logger: logging.Logger, request: str, error: Exception) -> None:
    """Write one line; one that a usual log leaves out when nothing is wrong on the server."""
    usual = isinstance(error, BadInputError | SignedOutError)
    text = " ".join(f"{type(error).__name__}: {error}".split())
    level = logging.INFO if usual else logging.WARNING
    logger.log(level, "%s: %s", request, text, stacklevel=2)


def _duration(seconds: int) -> str:
    if seconds < 120:  # noqa: PLR2004 - two minutes
        return f"{seconds} seconds"
    return f"{-(-seconds // 60)} minutes"


def read(body: bytes, *names: str) -> list[str]:
    """Return these texts of a request's JSON object. Raises `BadInputError`."""
    try:
        values = json.loads(body)
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise BadInputError("The request is no JSON object.")
    texts = []
    for name in names:
        text = values.get(name)
        if not isinstance(text, str) or not text.strip():
            raise BadInputError(f"Please give a {name}.")
        if len(text) > _LONGEST:
            raise BadInputError(f"The {name} is longer than {_LONGEST} characters.")
        try:
            text.encode()
        except UnicodeEncodeError:  # JSON can write half of a surrogate pair
            raise BadInputError(f"The {name} is no text.") from None
        texts.append(text)
    return texts


class Service:
    """The chat of one application, for all its threads; a forked worker's pool begins empty."""

    def __init__(
        self, url: str, chatbot: str, *, size: int, acquire_timeout: float, seconds: float
    ) -> None:
        self._url = url
        self._chatbot = chatbot
        self._seconds = seconds
        # Not tried again: a person waits, and can.
        self._pool = ChatPool(
            url,
            size=size,
            acquire_timeout=acquire_timeout,
            timeouts=Timeouts(connect=seconds, start=seconds, idle=_IDLE),
            reconnect_attempts=0,
        )

    def sign_in(self, email: str, password: str) -> str:
        """Return the person's token."""
        return PasswordLogin(self._url, email, password, timeout=self._seconds)()

    def ask(
        self, email: str, token: str, conversation_id: str | None, question: str
    ) -> tuple[str, Any]:
        """Ask, and return the conversation's id and the answer's stream.

        It starts the conversation first: its id must be in the session before the response
        begins, and what fails here still has an HTTP status.
        """
        with self._pool.chat(user=email, token=token) as chat:
            conversation = chat.conversation(self._chatbot, None, conversation_id)
            try:
                started = conversation.start()
            except ConversationNotResumedError as error:  # the server has lost it
                started = error.received
                conversation = chat.conversation(self._chatbot, None, started)
            turn = conversation.send(question)
        return started, turn.iter_sse(heartbeat=_HEARTBEAT)

    def history(self, token: str, conversation_id: str | None) -> list[dict[str, Any]]:
        """Return the messages of a conversation for the page; none of one that is not kept."""
        if conversation_id is None:
            return []
        api = FluxbaseAI(self._url, token, timeout=self._seconds)
        try:
            messages = api.get_conversation(conversation_id).messages
        except NotFoundError:
            return []
        return [
            {
                "role": message.role,
                "content": message.content.replace(conversation_id, "…"),
                "results": [_table(result) for result in message.query_results],
            }
            for message in messages
        ]


def _table(result: QueryResult) -> dict[str, Any]:
    # As text: JSON has no type for a UUID, and the page shows nothing else.
    return {
        "summary": result.summary,
        "columns": result.columns,
        "rows": [
            {name: None if value is None else _cell(value) for name, value in row.items()}
            for row in result.rows
        ],
    }


def _cell(value: Any) -> str:
    if isinstance(value, (dict, list, bool)):
        return json.dumps(value, default=str)
    return str(value)
