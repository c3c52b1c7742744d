"""Which stored conversation is meant: by `-c`, by `--cid`, by the beginning of an id."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any, Final

import click

from fluxbase_aichat import FluxbaseAI
from fluxbase_aichat.errors import ConfigurationError, NotFoundError
from fluxbase_aichat.stored import StoredConversation

from ._server import Server

__all__ = ["find_conversation", "going_on_options", "resumed_id"]

_LISTED: Final = "`history` lists them"
_SEARCHED: Final = 1000
"""As many conversations are looked through for the beginning of an id."""


def going_on_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command `-c` and `--cid`, as `go_on` and `cid`."""
    command = click.option(
        "--cid", metavar="ID", help="Go on with this conversation, see `history`."
    )(command)
    return click.option(
        "-c", "--continue", "go_on", is_flag=True, help="Go on with the last conversation."
    )(command)


def resumed_id(
    server: Server, chatbot: str, namespace: str | None, *, go_on: bool, cid: str | None
) -> str | None:
    """Return the conversation to go on with; `None` for a new one."""
    if cid is not None:
        if go_on:
            raise click.UsageError("--continue and --cid exclude each other")
        return _find_id(server.api(), cid)
    if not go_on:
        return None
    last = server.api().last_conversation(chatbot, namespace or "default")
    if last is None:
        raise ConfigurationError(
            f"there is no stored conversation with {chatbot} to go on with",
            hint="leave --continue out to begin one; not every chatbot stores its conversations",
        )
    return last.id


def _find_id(api: FluxbaseAI, begun: str) -> str:
    """Return the id that begins so, of the caller's conversations."""
    begun = begun.strip()
    if not begun:
        raise ConfigurationError("the conversation's id is empty", hint=_LISTED)
    try:
        return str(uuid.UUID(begun))
    except ValueError:
        pass
    found = []
    for number, summary in enumerate(api.iter_conversations()):
        if number >= _SEARCHED:
            break
        if summary.id.startswith(begun.lower()):
            found.append(summary.id)
    if len(found) == 1:
        return found[0]
    raise ConfigurationError(
        f"{len(found) or 'no'} conversations have an id that begins with {begun!r}",
        hint="write more of it" if found else _LISTED,
    )


def find_conversation(api: FluxbaseAI, begun: str) -> StoredConversation:
    """Return the caller's conversation whose id begins so, with its messages."""
    try:
        return api.get_conversation(_find_id(api, begun))
    except NotFoundError as error:
        error.hint = error.hint or _LISTED
        raise
