"""`fluxbase-aichat doctor`: every step on the way to an answer, one after the other, in a line."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from typing import Literal

import attrs
import click
from rich.text import Text

from fluxbase_aichat import FluxbaseAIChat
from fluxbase_aichat._deadline import Deadline
from fluxbase_aichat._harmless import harmless
from fluxbase_aichat._lifetime import calling
from fluxbase_aichat._net import call, open_socket
from fluxbase_aichat._proxy import opener
from fluxbase_aichat.errors import (
    AuthenticationError,
    ConfigurationError,
    ConnectError,
    FeatureDisabledError,
    FluxbaseChatError,
    PermissionDeniedError,
    RateLimitError,
)

from ._errors import exit_code, hint_of, message_of
from ._output import Form, form_options, print_rows, terminal
from ._server import Server, namespace_option, server_options

__all__ = ["doctor"]

_SECONDS = 10.0
"""For each step of connecting."""

_SERVER_DOWN = "does the server run, at this port, and no firewall before it?"
_PROXY_DOWN = (
    'is the proxy the right one (--proxy; the environment\'s, with "env"), does it run, and may it '
    "connect to this server?"
)

Status = Literal["ok", "failed", "skipped"]
_COLOURS = {"ok": "green", "failed": "red", "skipped": "yellow"}


class _Skip(Exception):  # noqa: N818 - nothing is wrong
    """The step does not apply; the text says why."""


@attrs.frozen
class _Finding:
    check: str
    status: Status
    detail: str
    advice: str = ""


@click.command()
@click.argument("chatbot", required=False)
@namespace_option
@form_options
@server_options
def doctor(*, chatbot: str | None, namespace: str | None, form: Form, server: Server) -> None:
    """Check the way to the server's chatbots, and say what is wrong and what to do.

    It asks no model anything: the round trip starts a chat with CHATBOT, or with the first that
    is listed. The exit code is that of `ask` for what is wrong.
    """
    examination = _Examination(server, chatbot, namespace)
    findings = []
    with contextlib.closing(examination):
        for finding in examination.findings():
            findings.append(finding)
            if form == "text":
                _print(finding)
    if form != "text":
        names = [field.name for field in attrs.fields(_Finding)]
        print_rows(form, names, [attrs.asdict(finding) for finding in findings])
    if examination.error is not None:
        raise click.exceptions.Exit(exit_code(examination.error))


def _print(finding: _Finding) -> None:
    mark = (f"{finding.status:<7}", _COLOURS[finding.status])
    advice = f" - {finding.advice}" if finding.advice else ""
    line = Text.assemble(mark, f"  {finding.check:<11}  {finding.detail}{advice}")
    terminal().print(line, soft_wrap=True)  # one line each, however narrow the terminal


class _Examination:
    """The steps. One that fails leaves out those that need it."""

    def __init__(self, server: Server, chatbot: str | None, namespace: str | None) -> None:
        self._server = server
        self._chatbot = chatbot
        self._namespace = namespace
        self._chat: FluxbaseAIChat = server.chat()
        self._settings = self._chat._session.settings  # noqa: SLF001 - our own
        self._endpoint = self._settings.endpoint
        self._proxied = opener(self._settings) is not None
        self._refusal: FluxbaseChatError | None = None
        self.error: FluxbaseChatError | None = None
        """The first that was found."""

    def close(self) -> None:
        self._chat.disconnect()

    def findings(self) -> Iterator[_Finding]:
        """Check one after the other."""
        steps: tuple[tuple[str, Callable[[], str], str], ...] = (
            ("name", self._name, "is the host's name right, and this machine online?"),
            ("TCP", self._tcp, _PROXY_DOWN if self._proxied else _SERVER_DOWN),
            ("TLS", self._tls, "ask who runs the server; --ca-file trusts an authority"),
            ("upgrade", self._upgrade, "is this the URL of a Fluxbase server, or of its chat?"),
            ("credentials", self._credentials, "sign in: `fluxbase-aichat login`"),
            ("feature", self._feature, "its administrator can switch AI chat on"),
            ("chatbots", self._chatbots, "its administrator can add one, or make it public"),
            ("round trip", self._round_trip, "try another chatbot, or later"),
        )
        fatal = ""
        for name, step, advice in steps:
            if fatal:
                yield _Finding(name, "skipped", f"the step before has to work first: {fatal}")
                continue
            try:
                yield _Finding(name, "ok", harmless(step()))
            except _Skip as reason:
                yield _Finding(name, "skipped", str(reason))
            except FluxbaseChatError as error:
                self.error = self.error or error
                told = " ".join(message_of(error).split())
                yield _Finding(name, "failed", told, hint_of(error) or advice)
                if name != "chatbots":  # one that is not listed may answer all the same
                    fatal = name

    def _name(self) -> str:
        if self._proxied:
            raise _Skip("it is left to the proxy")
        host, port = self._endpoint.host, self._endpoint.port
        with calling() as waker:
            try:
                found = call(
                    lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM),
                    Deadline(_SECONDS),
                    waker,
                    "dns",
                )
            except TimeoutError:
                raise ConnectError(f"no answer about the name {host} in {_SECONDS:g} s") from None
            except (OSError, UnicodeError) as error:
                why = error.strerror if isinstance(error, OSError) else "it is no name"
                raise ConnectError(f"nobody knows the host {host}: {why}") from None
        addresses = dict.fromkeys(str(where[0]) for *_, where in found)
        return f"{host} is {', '.join(addresses)}"

    def _tcp(self) -> str:
        start = time.monotonic()
        self._open(secure=False)
        way = "through the proxy" if self._proxied else "directly"
        return f"port {self._endpoint.port} answers {way}, in {_ms(start)}"

    def _tls(self) -> str:
        if not self._endpoint.secure:
            raise _Skip(f"{self._endpoint} is not encrypted")
        return f"{self._open(secure=True)}, with a certificate that is trusted"

    def _open(self, *, secure: bool) -> str:
        """Open a connection to the server's port; return the version of its TLS."""
        # Nothing is said on it, so that it may be a plain one to a server with TLS.
        endpoint = attrs.evolve(self._endpoint, secure=secure)
        context = self._settings.ssl_context
        with calling() as waker:
            try:
                sock = open_socket(
                    endpoint, context, Deadline(_SECONDS), waker, opener(self._settings)
                )
            except ConnectError as error:
                told = str(error.args[0]).replace(str(endpoint), str(self._endpoint))
                error.args = (told,)
                raise
            with contextlib.closing(sock):
                version = getattr(sock, "version", None)
                return str(version()) if version is not None else ""

    def _upgrade(self) -> str:
        try:
            self._chat.connect(timeout=_SECONDS)
        except (
            AuthenticationError,
            PermissionDeniedError,
            RateLimitError,
            FeatureDisabledError,
        ) as error:
            self._refusal = error  # a later step's: here is somebody who can say no
            return "a Fluxbase server answers, and refuses; see below"
        return f"{self._endpoint} is open"

    def _credentials(self) -> str:
        if isinstance(self._refusal, FeatureDisabledError):
            raise _Skip("nobody is let in while chat is switched off")
        if self._refusal is not None:
            raise self._refusal
        if self._settings.token is None and self._settings.service_key is None:
            return "none: you are anonymous, which few chatbots allow"
        try:
            self._server.api(timeout=_SECONDS).list_conversations(limit=1)
        except (AuthenticationError, PermissionDeniedError):
            raise
        except FeatureDisabledError:
            pass
        except FluxbaseChatError as error:
            return f"the chat accepts them; its REST side does not answer: {message_of(error)}"
        return "the server accepts them"

    def _feature(self) -> str:
        if self._refusal is not None:
            raise self._refusal
        return "AI chat is switched on"

    def _chatbots(self) -> str:
        names = [bot.name for bot in self._server.api(timeout=_SECONDS).list_chatbots()]
        if not names:
            raise ConfigurationError("the server lists none")
        self._chatbot = self._chatbot or names[0]
        return f"{len(names)}: {', '.join(names)}"

    def _round_trip(self) -> str:
        if self._chatbot is None:
            raise _Skip("there is no chatbot to talk to; name one")
        start = time.monotonic()
        with self._server.naming(self._chatbot):
            self._chat.start_chat(self._chatbot, self._namespace, timeout=_SECONDS)
        return f"{self._chatbot} answered in {_ms(start)}"


def _ms(start: float) -> str:
    return f"{(time.monotonic() - start) * 1000:.0f} ms"
