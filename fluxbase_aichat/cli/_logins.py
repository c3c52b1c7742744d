"""The logins that `login` keeps: a refresh token for each server, readable by their owner alone."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import click

from fluxbase_aichat import RefreshToken
from fluxbase_aichat._api import endpoint_of
from fluxbase_aichat.config import RenewableToken

from ._files import lock, write_whole

__all__ = ["DEMO", "forget_login", "login_file", "save_login", "saved_login"]

DEMO: Final = "demo:"
"""The URL that needs no login."""


class _SavedLogin(RenewableToken):
    """Refreshes the token of a saved login, and keeps what serves the next time.

    Of several commands one does so at a time, with what the one before has kept: on many servers
    a refresh token is good for one refresh.
    """

    def __init__(self, url: str, kept: str, options: dict[str, Any]) -> None:
        self._url = url
        self._name = str(endpoint_of(url))
        self._options = options
        self._kept = kept
        self._source = RefreshToken(url, kept, **options)

    def __call__(self) -> str:
        with _alone():
            logins = _read()
            kept = logins.get(self._name)
            if kept is not None and kept != self._kept:
                self._kept = kept
                self._source = RefreshToken(self._url, kept, **self._options)
            token = self._source()
            now = self._source.refresh_token
            if now != kept and kept is not None:  # who has forgotten it means it
                self._kept = now
                with contextlib.suppress(OSError):  # this time it works all the same
                    _write(logins | {self._name: now})
        return token

    def refused(self, token: str) -> None:
        self._source.refused(token)


def login_file() -> Path:
    """Return where the logins are kept."""
    return Path(click.get_app_dir("fluxbase-aichat")) / "logins.json"


def saved_login(url: str, options: dict[str, Any]) -> _SavedLogin | None:
    """Return a source of tokens from the login that is kept for a server, if there is one.

    Raises `ConfigurationError`, as for a server to which no token may be sent.
    """
    if url == DEMO:
        return None
    kept = _read().get(str(endpoint_of(url)))
    return _SavedLogin(url, kept, options) if kept else None


def save_login(url: str, refresh_token: str) -> None:
    """Keep a login in place of the server's last one; raise `OSError`."""
    with _alone():
        _write(_read() | {str(endpoint_of(url)): refresh_token})


def forget_login(url: str) -> bool:
    """Forget a server's login; say whether there was one. Raises `OSError`."""
    with _alone():
        logins = _read()
        if logins.pop(str(endpoint_of(url)), None) is None:
            return False
        _write(logins)
        return True


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Let no other command change the logins meanwhile; not twice on one thread.

    Where the folder cannot be written, none of them can.
    """
    file = login_file().with_suffix(".lock")  # the logins' own is replaced by each who writes it
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            lock(stack.enter_context(file.open("ab")), wait=True)
        yield


def _read() -> dict[str, str]:
    """Return the refresh tokens by server; a file that is none of ours holds none."""
    try:
        values = json.loads(login_file().read_bytes())
    except (OSError, ValueError):
        return {}
    if not isinstance(values, dict):
        return {}
    return {name: token for name, token in values.items() if isinstance(token, str)}


def _write(logins: dict[str, str]) -> None:
    file = login_file()
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, json.dumps(logins, indent=2) + "\n", private=True)
