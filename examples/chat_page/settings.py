"""The variables that both applications read. Nothing here opens a connection."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self, TypeVar

__all__ = ["Settings"]

T = TypeVar("T")


@dataclass(frozen=True)
class Settings:
    """What all workers must agree on."""

    url: str
    """`FLUXBASE_URL`: the Fluxbase server."""
    secret_key: str = field(repr=False)
    """`CHAT_SECRET_KEY`: signs the cookies."""
    data: Path
    """`CHAT_DATA`: a folder for the sessions, which no other user may read."""
    chatbot: str
    """`CHAT_BOT`: whom to ask; one that persists its conversations has a history."""
    pool_size: int
    """`CHAT_POOL_SIZE`: connections to Fluxbase for each worker."""
    pool_seconds: float
    """`CHAT_POOL_SECONDS`: how long a request may wait for one of them."""
    seconds: float
    """`CHAT_SECONDS`: how long Fluxbase may take to connect, to sign in, or to begin an answer.

    They add up, and twice when a token has to be renewed.
    """
    hosts: list[str]
    """`CHAT_HOSTS`: the names, with commas between them, under which browsers may ask."""
    https: bool
    """`CHAT_HTTPS=1`: they ask over TLS, and send the cookies over nothing else."""

    @classmethod
    def from_env(cls) -> Self:
        """Read them; says which are missing or wrong, and ends the program."""
        needed = ("FLUXBASE_URL", "CHAT_SECRET_KEY", "CHAT_DATA")
        missing = [name for name in needed if not os.environ.get(name)]
        if missing:
            raise SystemExit(f"please set {', '.join(missing)}")
        data = Path(os.environ["CHAT_DATA"])
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
        return cls(
            url=os.environ["FLUXBASE_URL"],
            secret_key=os.environ["CHAT_SECRET_KEY"],
            data=data,
            chatbot=os.environ.get("CHAT_BOT", "keeper"),
            pool_size=_number("CHAT_POOL_SIZE", "8", int),
            pool_seconds=_number("CHAT_POOL_SECONDS", "5", float),
            seconds=_number("CHAT_SECONDS", "8", float),
            hosts=os.environ.get("CHAT_HOSTS", "localhost,127.0.0.1").split(","),
            https=os.environ.get("CHAT_HTTPS") == "1",
        )


def _number(name: str, default: str, read: Callable[[str], T]) -> T:
    text = os.environ.get(name, default)
    try:
        return read(text)
    except ValueError:
        raise SystemExit(f"{name} must be a number, not {text!r}") from None
