"""How an error reaches the terminal, and the exit code that scripts see. It handles none."""

from __future__ import annotations

from typing import Final

import click

from fluxbase_aichat._harmless import harmless
from fluxbase_aichat.errors import (
    ApiError,
    AuthenticationError,
    ConfigurationError,
    ConnectError,
    ConnectionLostError,
    FluxbaseChatError,
    LocalProtocolError,
    MissingExtraError,
    NotConnectedError,
    PermissionDeniedError,
    QuotaError,
    RateLimitError,
)

__all__ = [
    "INTERRUPTED",
    "advice_of",
    "exit_code",
    "hint_of",
    "message_of",
    "show_error",
    "text_of",
]

INTERRUPTED: Final = 130
"""What shells use for a process that Ctrl-C has ended."""

# The first that fits. A script tries 3 and 5 again, and nothing else.
_CODES: Final = (
    ((ConfigurationError, LocalProtocolError, MissingExtraError), 2),
    ((RateLimitError, QuotaError), 5),
    ((AuthenticationError, PermissionDeniedError), 4),
    ((ConnectError, ConnectionLostError, NotConnectedError, TimeoutError), 3),
)

# What the library says is for those who write Python.
_OPTIONS: Final = {
    "pass token=, or set FLUXBASE_TOKEN for from_env()": (
        "set FLUXBASE_TOKEN, or sign in with `fluxbase-aichat login`"
    ),
    "pass ssl_context=ssl.create_default_context(cafile=...)": "use --ca-file",
    "any more: sign in again": "any more: `fluxbase-aichat login` signs in again",
    "error.turn.recover() may help": "`fluxbase-aichat history` may show its answer",
    "the new one is usable under its own id": "without --continue and --cid it is a new one",
    "namespace=": "--namespace",
    "allow_insecure=True": "--allow-insecure",
    "; use token=": "; a token goes into FLUXBASE_TOKEN",
    "@ into proxy": "@ into --proxy",
}


def exit_code(error: FluxbaseChatError) -> int:
    """Return 2 for a wrong call, 3 no connection, 4 not allowed, 5 a limit, 1 for all else."""
    return next((code for kinds, code in _CODES if isinstance(error, kinds)), 1)


def message_of(error: FluxbaseChatError) -> str:
    """Return what went wrong, without the hint, for a terminal."""
    return _said(str(error.args[0]) if error.args else type(error).__name__)


def hint_of(error: FluxbaseChatError) -> str:
    """Return what to do about it, in the words of the command line."""
    return _said(error.hint)


def text_of(error: FluxbaseChatError) -> str:
    """Return both, for a file."""
    return _said(str(error))


def advice_of(error: FluxbaseChatError) -> str:
    """Return the hint; where the library has none, who can find out what is wrong."""
    if not error.hint and isinstance(error, (ApiError, ConnectError)):
        return "`fluxbase-aichat doctor` finds out at which step it fails, and what to do"
    return hint_of(error)


def _said(text: str) -> str:
    text = harmless(text)
    for parameter, option in _OPTIONS.items():
        text = text.replace(parameter, option)
    return text


def show_error(error: FluxbaseChatError) -> None:
    """Print what went wrong, and what to do about it, on the standard error."""
    click.echo(f"Error: {message_of(error)}", err=True)
    if advice := advice_of(error):
        click.echo(f"Hint: {advice}", err=True)
