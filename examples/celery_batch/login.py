"""As whom the workers ask: `FLUXBASE_URL`, and a password or a token. Nothing here connects."""

from __future__ import annotations

import os
from collections.abc import Callable

from fluxbase_aichat import PasswordLogin

__all__ = ["read_login"]


def read_login() -> tuple[str, str | Callable[[], str]]:
    """Return the server's URL and the token or what gets one; or end the program."""
    url, token = os.environ.get("FLUXBASE_URL"), os.environ.get("FLUXBASE_TOKEN")
    email, password = os.environ.get("FLUXBASE_EMAIL"), os.environ.get("FLUXBASE_PASSWORD")
    if url and token:
        return url, token
    if url and email and password:
        return url, PasswordLogin(url, email, password)
    raise SystemExit(
        "please set FLUXBASE_URL, and FLUXBASE_EMAIL and FLUXBASE_PASSWORD or FLUXBASE_TOKEN"
    )
