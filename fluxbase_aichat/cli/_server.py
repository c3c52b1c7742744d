"""Which server a command talks to, and as whom: its options, the environment, a saved login."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import attrs
import click
from click.core import ParameterSource
from click.shell_completion import CompletionItem

from fluxbase_aichat import FluxbaseAI, FluxbaseAIChat, Timeouts
from fluxbase_aichat.config import parse_endpoint
from fluxbase_aichat.errors import (
    ChatbotNotFoundError,
    ConfigurationError,
    FluxbaseChatError,
    NotFoundError,
)

from ._logins import DEMO, saved_login

__all__ = ["Server", "chatbot_argument", "namespace_option", "server_options"]

TOKEN: Final = "FLUXBASE_TOKEN"  # noqa: S105 - its name
_EXPOSED: Final = (
    "Warning: a token on the command line is seen by everybody on this machine and kept in the "
    f"shell's history; use {TOKEN} or --token-file."
)
_COMPLETING: Final = 3.0
"""Seconds that a person waits for the Tab key, at most."""

Command = Callable[..., Any]


@attrs.frozen(kw_only=True)
class Server:
    """A server, and who asks it."""

    url: str
    token: str | Callable[[], str] | None = attrs.field(default=None, repr=False)
    timeout: float | None = None
    """Seconds for a whole answer, or a REST call."""
    options: dict[str, Any] = attrs.field(factory=dict)
    """What a chat and the REST side both take."""

    @property
    def settings(self) -> dict[str, Any]:
        """What a chat takes."""
        settings = {"ws_url": self.url, "token": self.token, **self.options}
        if self.timeout is not None:
            settings["timeouts"] = Timeouts(
                connect=min(10.0, self.timeout), start=self.timeout, idle=None, turn=self.timeout
            )
        return settings

    def chat(self, *, exact: bool = True) -> FluxbaseAIChat:
        """Return a chat, not connected yet.

        Numbers are `exact` for those who read them; in JSON they are to be numbers.
        """
        return FluxbaseAIChat(exact_numbers=exact, **self.settings)

    def api(self, *, timeout: float = 30.0, exact: bool = True) -> FluxbaseAI:
        """Return the REST side; numbers as in `chat`."""
        timeout = self.timeout or timeout
        return FluxbaseAI(
            self.url, self.token, exact_numbers=exact, timeout=timeout, **self.options
        )

    @contextlib.contextmanager
    def naming(self, chatbot: str) -> Iterator[None]:
        """Give the error of a chatbot that is not found a hint: where it is, or what is alike."""
        try:
            yield
        except ChatbotNotFoundError as error:
            try:
                found = self.api(timeout=5.0).lookup_chatbot(chatbot)
            except NotFoundError as missing:
                error.hint = missing.hint or error.hint
            except FluxbaseChatError:
                pass  # the first error is the one to tell
            else:
                error.hint = f"it is in the namespace {found.namespace}: use --namespace"
            raise


def server_options(command: Command) -> Command:
    """Give a command the options of a server; it is called with a `Server` as `server`."""

    @click.option("--url", envvar="FLUXBASE_URL", show_envvar=True, help="The server's URL.")
    @click.option("--token", metavar="JWT", help="Better in FLUXBASE_TOKEN or a file.")
    @click.option(
        "--token-file",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="A file with the token and nothing else.",
    )
    @click.option(
        "--ca-file",
        type=click.Path(exists=True, dir_okay=False),
        help="The certificates of an authority of your own.",
    )
    @click.option("--proxy", metavar="URL", help='The proxy to go through; "env" looks for it.')
    @click.option(
        "--allow-insecure", is_flag=True, help="Send the token unencrypted to another machine."
    )
    @click.option(
        "--timeout",
        type=click.FloatRange(0, min_open=True),
        callback=_number,
        metavar="SECONDS",
        help="As long may the whole answer take.",
    )
    @functools.wraps(command)
    def with_server(
        *,
        url: str | None,
        token: str | None,
        token_file: Path | None,
        ca_file: str | None,
        proxy: str | None,
        allow_insecure: bool,
        timeout: float | None,
        **others: Any,
    ) -> Any:
        url = _url(url)
        options: dict[str, Any] = {"proxy": proxy, "allow_insecure": allow_insecure}
        if ca_file is not None:
            options["ssl_context"] = _trusting(ca_file)
        server = Server(
            url=url,
            token=_token(token, token_file) or saved_login(url, options),
            timeout=timeout,
            options=options,
        )
        return command(server=server, **others)

    return with_server


def _number(_: click.Context, __: click.Parameter, value: float | None) -> float | None:
    """Refuse what Python reads as a number, and is in the range, and is none."""
    if value is not None and not math.isfinite(value):
        raise click.BadParameter("it is no number of seconds")
    return value


def _url(url: str | None) -> str:
    if not url:
        raise ConfigurationError(
            "FLUXBASE_URL is not set",
            hint="it is the server's URL, such as wss://example.com; --url names it too",
        )
    if url != DEMO:
        parse_endpoint(url, "the URL")  # each part of the library calls it by another name
    return url


def _token(token: str | None, file: Path | None) -> str | None:
    if token is not None:
        if file is not None:
            raise click.UsageError("--token and --token-file exclude each other")
        if click.get_current_context().get_parameter_source("token") == ParameterSource.COMMANDLINE:
            click.echo(_EXPOSED, err=True)
        if not token.strip():
            raise click.BadParameter("it is empty", param_hint="--token")
        return token
    if file is None:
        return os.environ.get(TOKEN)
    try:
        text = file.read_text(encoding="utf-8-sig").strip()
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not text"
        raise click.BadParameter(f"cannot read it: {why}", param_hint="--token-file") from None
    if not text:
        raise click.BadParameter("there is no token in it", param_hint="--token-file")
    return text


def _trusting(file: str) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=file)
    except (OSError, ssl.SSLError):
        raise click.BadParameter(
            "it holds no certificates in PEM form", param_hint="--ca-file"
        ) from None


# -- chatbots -----------------------------------------------------------------------------------


def _complete(context: click.Context, _: click.Parameter, begun: str) -> list[CompletionItem]:
    """Return the chatbots whose names begin so, as the Tab key asks for them."""
    try:
        url = context.params.get("url") or os.environ.get("FLUXBASE_URL")
        # The list is public: no token leaves for a key that was pressed.
        bots = FluxbaseAI(str(url), timeout=_COMPLETING).list_chatbots()
    except FluxbaseChatError:
        return []
    return [
        CompletionItem(bot.name, help=" ".join(bot.description.split()))
        for bot in bots
        if bot.name.startswith(begun)
    ]


def chatbot_argument(command: Command) -> Command:
    """Give a command the argument CHATBOT, which the Tab key completes."""
    return click.argument("chatbot", shell_complete=_complete)(command)


def namespace_option(command: Command) -> Command:
    """Give a command the option of the chatbot's namespace."""
    text = "The chatbot's namespace.  [default: default]"
    return click.option("--namespace", help=text)(command)
