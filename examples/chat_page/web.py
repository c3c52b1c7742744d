"""What both applications say in HTTP: the page, what a request must be, what a failure becomes."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fluxbase_aichat import (
    ApiError,
    AuthenticationError,
    ConfigurationError,
    ConnectError,
    ConnectionLostError,
    FeatureDisabledError,
    FluxbaseChatError,
    LocalProtocolError,
    PermissionDeniedError,
    PoolTimeoutError,
    QuotaError,
    RateLimitError,
)

__all__ = [
    "CONTENT_POLICY",
    "EXPECTED",
    "STATIC",
    "BadInputError",
    "Problem",
    "SignedOutError",
    "log",
    "logger",
    "problem",
    "read",
]

STATIC: Final = Path(__file__).parent / "static"
CONTENT_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
"""Were a text of the server inserted as HTML by mistake, the browser would refuse to."""

_LONGEST: Final = 4000
_DOWN: Final = "The chat server cannot be reached. Please try again later."
logger: Final = logging.getLogger("chat")


class BadInputError(Exception):
    """The browser sent what cannot be used; the message is for a person."""


class SignedOutError(Exception):
    """Who asks has not signed in."""


EXPECTED: Final = (BadInputError, SignedOutError, FluxbaseChatError)
"""What `problem` is for; anything else is a mistake of ours."""


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
            return Problem(503, _DOWN, 5)
        case ApiError(status=502 | 503 | 504):  # a proxy says so of a server that is down
            return Problem(503, _DOWN, 5)
    return Problem(502, "The chat server could not answer that.")


def log(request: str, error: Exception) -> None:
    """Write one line; one that a usual log leaves out when nothing is wrong on the server."""
    usual = isinstance(error, BadInputError | SignedOutError)
    text = f"{request}: {type(error).__name__}: {error}"
    # A path can have line ends in it, and a server's text anything.
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    logger.log(logging.INFO if usual else logging.WARNING, "%s", text)


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
