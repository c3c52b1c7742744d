"""The logins that `login` keeps: a refresh token for each server, readable by their owner alone."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any, Final

import click

from fluxbase_aichat import RefreshToken
from fluxbase_aichat._api import endpoint_of
from fluxbase_aichat.config import RenewableToken

__all__ = ["forget_login", "login_file", "save_login", "saved_login"]

_DEMO: Final = "demo:"


class _SavedLogin(RenewableToken):
    """Refreshes the token of a saved login, and keeps what serves the next time."""

    def __init__(self, url: str, kept: str, options: dict[str, Any]) -> None:
        self._url = url
        self._kept = kept
        self._source = RefreshToken(url, kept, **options)

    def __call__(self) -> str:
        token = self._source()
        if (now := self._source.refresh_token) != self._kept:
            self._kept = now
            with contextlib.suppress(OSError):  # this time it works all the same
                save_login(self._url, now)
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
    if url == _DEMO:
        return None
    kept = _read().get(str(endpoint_of(url)))
    return _SavedLogin(url, kept, options) if kept else None


def save_login(url: str, refresh_token: str) -> None:
    """Keep a login in place of the server's last one; raise `OSError`."""
    _write(_read() | {str(endpoint_of(url)): refresh_token})


def forget_login(url: str) -> bool:
    """Forget a server's login; say whether there was one. Raises `OSError`."""
    logins = _read()
    if logins.pop(str(endpoint_of(url)), None) is None:
        return False
    _write(logins)
    return True


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
    """Write all of the file, or leave it as it was: whoever is interrupted loses nothing."""
    file = login_file()
    file.parent.mkdir(parents=True, exist_ok=True)
    # mkstemp's files are their owner's alone.
    handle, name = tempfile.mkstemp(prefix=f"{file.name}.", dir=file.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as temporary:
            json.dump(logins, temporary, indent=2)
            temporary.write("\n")
            temporary.flush()
            os.fsync(temporary.fileno())
        Path(name).replace(file)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(name).unlink()
        raise
