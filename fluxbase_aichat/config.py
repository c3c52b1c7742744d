"""The validated settings of a client. Nothing here connects, waits or reads the clock.

Everything a caller can get wrong is found here, before anything is sent, with an error that
names the parameter and says what would be right.
"""

from __future__ import annotations

import functools
import inspect
import ipaddress
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Literal, ParamSpec, TypeVar
from urllib.parse import quote, unquote, urlsplit

import attrs

from ._edge import edge
from ._value import Value
from .errors import ConfigurationError

__all__ = [
    "RECOVER_SECONDS",
    "UNSET",
    "Endpoint",
    "Limits",
    "Proxy",
    "RenewableToken",
    "Settings",
    "Timeouts",
    "Unset",
    "check_count",
    "check_exposure",
    "check_name",
    "check_seconds",
    "check_secret",
    "check_text",
    "named_keywords",
    "nearest",
    "parse_endpoint",
    "parse_proxy",
    "suggest",
]

TokenSource = str | Callable[[], str]


class RenewableToken:
    """A callable token that hears which of its tokens a server has refused. See `login`."""

    def refused(self, token: str) -> None:
        """Give another token the next time."""
        raise NotImplementedError


P = ParamSpec("P")
R = TypeVar("R")


class Unset:
    """The type of `UNSET`, the default of every `timeout=`: `None` already means "no limit"."""

    def __repr__(self) -> str:
        return "UNSET"


UNSET: Final = Unset()

RECOVER_SECONDS: Final = 60.0
"""How long a lost answer is waited for, unless the caller says otherwise."""


def _shown(value: object) -> str:
    """Return a number as it is, and of anything else the type: a token may stand there."""
    return repr(value) if isinstance(value, (int, float)) else type(value).__name__


def check_seconds(name: str, value: float | None, *, zero: bool = False) -> float | None:
    """Return `value` when it is a number of seconds or `None`; raise `ConfigurationError` if not.

    A boolean, a string, a negative or infinite number is none; zero is one only if `zero`.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ConfigurationError(
            f"{name} must be a number of seconds or None, not {type(value).__name__}"
        )
    if not math.isfinite(value) or value < 0 or (value == 0 and not zero):
        raise ConfigurationError(
            f"{name} must be {'zero or more' if zero else 'more than zero'} seconds "
            f"(None is no limit), not {value!r}"
        )
    return float(value)


def check_name(name: str, value: object, *, what: str) -> str:
    """Return `value` when it is text with something in it; raise `ConfigurationError` if not."""
    if not isinstance(value, str):
        raise ConfigurationError(f"{name} must be {what}: a str, not {type(value).__name__}")
    if not value.strip():
        raise ConfigurationError(f"{name} must be {what}, and it is empty")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ConfigurationError(f"{name} has half of a surrogate pair in it") from None
    return value


def _seconds_field(default: float | None) -> Any:
    return attrs.field(
        default=default,
        validator=lambda _, field, value: check_seconds(f"timeouts.{field.name}", value),
    )


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Timeouts(Value):
    """How long each phase may last, in seconds; `None` is no limit.

    `start`, `idle` and `turn` count from when the request is written, not while it is queued.
    """

    connect: float | None = _seconds_field(10.0)
    """One deadline over name look-up, TCP, TLS and upgrade."""
    start: float | None = _seconds_field(30.0)
    """From a written `start_chat` to its answer."""
    idle: float | None = _seconds_field(300.0)
    """The longest silence inside a turn."""
    turn: float | None = _seconds_field(None)
    """A whole turn."""
    close: float | None = _seconds_field(2.0)
    """`disconnect()`: the close handshake, and the callbacks already received."""


def _timeouts(value: object) -> Timeouts:
    """Make one from a `Timeouts` or from seconds, which then bound connect, start and idle."""
    if isinstance(value, Timeouts):
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        check_seconds("timeouts", value)
        return Timeouts(connect=value, start=value, idle=value, close=min(value, 2.0))
    raise ConfigurationError(
        f"timeouts must be a Timeouts or a number of seconds, not {type(value).__name__}"
    )


def _check_bytes(_: object, field: attrs.Attribute[int], value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigurationError(
            f"limits.{field.name} must be a number of bytes, not {_shown(value)}"
        )


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Limits(Value):
    """How much is kept in memory, in bytes.

    The other bounds are constants of the transport, with their reasons.
    """

    message_bytes: int = attrs.field(default=64 * 2**20, validator=_check_bytes)
    """The longest message of the server that is accepted (64 MiB)."""
    turn_bytes: int = attrs.field(default=256 * 2**20, validator=_check_bytes)
    """The longest answer of one turn, rows included (256 MiB)."""
    backlog_bytes: int = attrs.field(default=256 * 2**20, validator=_check_bytes)
    """What may wait for slow callbacks before reading pauses (256 MiB)."""


@attrs.frozen(eq=False, repr=False)
class Endpoint(Value):
    """Where the server is."""

    secure: bool
    host: str
    port: int
    path: str
    query: str = attrs.field(default="", repr=False)
    scheme: Literal["ws", "http"] = "ws"
    """What it is asked for; with an s behind it where that is secure."""

    @property
    def authority(self) -> str:
        """Host and port as a `Host` header has them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.secure else 80) else f"{host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether what is sent stays on this machine."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def target(self, token: str | None = None) -> str:
        """Return the path and query of the request line, with the token in it when given."""
        extra = "" if token is None else f"token={quote(token, safe='')}"
        query = "&".join(part for part in (self.query, extra) if part)
        return f"{self.path}?{query}" if query else self.path

    def __str__(self) -> str:
        return f"{self.scheme}{'s' if self.secure else ''}://{self.authority}{self.path}"


_SCHEMES = {"ws": False, "http": False, "wss": True, "https": True}
_TARGET = re.compile(r"[!-~]*")


def parse_endpoint(value: object, name: str = "ws_url") -> Endpoint:
    """Read the URL of a server; raise `ConfigurationError` that says what is wrong with it.

    `name` is what its parameter is called.
    """
    if isinstance(value, Endpoint):
        return value
    url = check_name(name, value, what="the server's URL, such as wss://example.com")
    example = "use something like wss://example.com/ai/ws"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        # Its text quotes the part: of user:password@ without its host, the password.
        raise ConfigurationError(
            f"{name} cannot be read: its host or its port is none; {example}"
        ) from None
    if parts.scheme not in _SCHEMES:
        raise ConfigurationError(
            f"{name} must begin with ws://, wss://, http:// or https://; {example}"
        )
    if parts.username is not None or parts.password is not None:
        raise ConfigurationError(f"{name} must not hold a user name or password; use token=")
    if parts.fragment:
        raise ConfigurationError(f"{name} must not have a fragment (the part after #)")
    if not parts.hostname:
        raise ConfigurationError(f"{name} has no host; {example}")
    if not _TARGET.fullmatch(parts.path + parts.query):
        raise ConfigurationError(f"{name} has blanks or characters that must be percent-encoded")
    try:
        host = parts.hostname.encode("idna").decode("ascii")
    except UnicodeError:
        raise ConfigurationError(f"{name} has no valid host; {example}") from None
    if not re.fullmatch(r"[0-9A-Za-z._:%-]+", host):
        raise ConfigurationError(f"{name} has no valid host; {example}")
    if port == 0:
        raise ConfigurationError(f"{name} has port 0; a server listens on 1 to 65535")
    secure = _SCHEMES[parts.scheme]
    path = parts.path if parts.path not in {"", "/"} else "/ai/ws"
    return Endpoint(secure, host, port or (443 if secure else 80), path, parts.query)


_SECRET = re.compile(r"[!-~]+")
_FIELD_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_FIELD_VALUE = re.compile(r"[\t -~]*")
# What the handshake itself must say (RFC 6455, section 4.1) or what would change its framing.
_RESERVED = frozenset(
    {
        "host",
        "upgrade",
        "connection",
        "content-length",
        "transfer-encoding",
        "sec-websocket-accept",
        "sec-websocket-extensions",
        "sec-websocket-key",
        "sec-websocket-protocol",
        "sec-websocket-version",
    }
)


def check_count(name: str, value: object, least: int = 1) -> None:
    """Raise `ConfigurationError` for what is no whole number, or a smaller one."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigurationError(
            f"{name} must be a whole number, {least} or more, not {_shown(value)}"
        )


def check_text(name: str, value: object) -> str:
    """Return a text; never quote in the error what is none."""
    if not isinstance(value, str):
        raise ConfigurationError(f"{name} must be a str, not {type(value).__name__}")
    return value


def check_secret(name: str, value: object) -> str:
    """Return a token or key that can stand in a header; never quote it in the error."""
    value = check_text(name, value)
    if not value.strip():
        # The server takes an empty bearer token for an anonymous caller (PROTOCOL 1).
        raise ConfigurationError(
            f"{name} is empty: is the secret missing? Leave it out to connect anonymously"
        )
    if not _SECRET.fullmatch(value):
        raise ConfigurationError(
            f"{name} has blanks, control or non-ASCII characters (a newline from a file?); "
            "strip() it first"
        )
    return value


_PROXY_PORTS = {"http": 80, "socks4": 1080, "socks4a": 1080, "socks5": 1080, "socks5h": 1080}


@attrs.frozen(eq=False, repr=False)
class Proxy(Value):
    """What stands between the client and the server. Its password is in no `repr`."""

    scheme: str
    host: str
    port: int
    user: str = attrs.field(default="", repr=False)
    password: str = attrs.field(default="", repr=False)

    def __str__(self) -> str:
        return f"proxy {self.scheme}://{self.host}:{self.port}"


def parse_proxy(value: object) -> Proxy | Literal["env"] | None:
    """Read a `proxy`: a URL, `"env"` or `None`; raise `ConfigurationError` for anything else."""
    if value is None or value == "env" or isinstance(value, Proxy):
        return value
    url = check_name("proxy", value, what='a URL such as http://proxy.example:3128, or "env"')
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        # Its text quotes the part: of user:password@ without its host, the password.
        raise ConfigurationError("proxy cannot be read: its host or its port is none") from None
    if parts.scheme not in _PROXY_PORTS:
        raise ConfigurationError(
            f'proxy must be a URL that begins with {"://, ".join(_PROXY_PORTS)}://, or "env"'
        )
    if not parts.hostname:
        raise ConfigurationError("proxy has no host")
    return Proxy(
        parts.scheme,
        parts.hostname,
        port or _PROXY_PORTS[parts.scheme],
        unquote(parts.username or ""),
        unquote(parts.password or ""),
    )


def _headers(headers: object) -> tuple[tuple[str, str], ...]:
    if headers is None:
        return ()
    if isinstance(headers, tuple):
        headers = dict(headers)
    if not isinstance(headers, Mapping):
        raise ConfigurationError(
            f"headers must be a mapping of names to values, not {type(headers).__name__}"
        )
    for name, value in headers.items():
        if not isinstance(name, str) or not _FIELD_NAME.fullmatch(name):
            raise ConfigurationError("headers has a name that is no HTTP field name")
        if name.lower() in _RESERVED:
            raise ConfigurationError(f"headers must not set {name}: the handshake does")
        if not isinstance(value, str) or not _FIELD_VALUE.fullmatch(value):
            raise ConfigurationError(
                f"headers[{name!r}] must be a str without control or non-ASCII characters"
            )
    return tuple(headers.items())


def _check_token(_: object, field: attrs.Attribute[Any], value: object) -> None:
    if value is not None and not callable(value):
        check_secret(field.name, value)


def _check_service_key(_: object, field: attrs.Attribute[Any], value: object) -> None:
    if value is not None:
        check_secret(field.name, value)


def _check_user(_: object, field: attrs.Attribute[Any], value: object) -> None:
    if value is not None:
        check_name(field.name, value, what="a user's id")


def _check_flag(_: object, field: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, bool):
        raise ConfigurationError(f"{field.name} must be True or False, not {type(value).__name__}")


def _check_attempts(_: object, field: attrs.Attribute[Any], value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ConfigurationError(
            f"{field.name} must be a whole number, 0 for none, not {_shown(value)}"
        )


def _check_delay(_: object, field: attrs.Attribute[Any], value: Any) -> None:
    delay = check_seconds(field.name, value, zero=True)
    if delay is None:
        raise ConfigurationError(f"{field.name} must be a number of seconds, not None")
    if delay > _LONGEST_DELAY:
        raise ConfigurationError(
            f"{field.name} is in seconds, and {delay:g} is more than a minute: "
            f"were milliseconds meant ({delay / 1000:g})?"
        )


def _check_limits(_: object, field: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, Limits):
        raise ConfigurationError(f"{field.name} must be a Limits, not {type(value).__name__}")


# The JavaScript SDK's reconnectDelay counts milliseconds; no one waits a minute on purpose.
_LONGEST_DELAY = 60.0


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Settings(Value):
    """All that a client was told, checked. Secrets are in no `repr`."""

    endpoint: Endpoint = attrs.field(converter=parse_endpoint)
    token: TokenSource | None = attrs.field(default=None, repr=False, validator=_check_token)
    service_key: str | None = attrs.field(default=None, repr=False, validator=_check_service_key)
    headers: tuple[tuple[str, str], ...] = attrs.field(default=None, repr=False, converter=_headers)
    token_in_query: bool = attrs.field(default=False, validator=_check_flag)
    impersonate_user_id: str | None = attrs.field(default=None, validator=_check_user)
    reconnect_attempts: int = attrs.field(default=3, validator=_check_attempts)
    reconnect_delay: float = attrs.field(default=1.0, validator=_check_delay)
    timeouts: Timeouts = attrs.field(factory=Timeouts, converter=_timeouts)
    limits: Limits = attrs.field(factory=Limits, validator=_check_limits)
    ssl_context: Any = None
    proxy: Proxy | Literal["env"] | None = attrs.field(default=None, converter=parse_proxy)
    allow_insecure: bool = attrs.field(default=False, validator=_check_flag)
    exact_numbers: bool = attrs.field(default=False, validator=_check_flag)
    recover_replies: bool = attrs.field(default=False, validator=_check_flag)
    tracer: Any = attrs.field(default=None, repr=False)
    trace_content: bool = attrs.field(default=False, validator=_check_flag)

    def __attrs_post_init__(self) -> None:
        names = {name.lower() for name, _ in self.headers}
        if self.token is not None and self.service_key is not None:
            raise ConfigurationError("give token or service_key, not both: which one counts?")
        if self.token is not None and "authorization" in names:
            raise ConfigurationError("headers must not set Authorization when token is given")
        if self.trace_content and self.tracer is None:
            raise ConfigurationError("trace_content needs a tracer")
        if self.token_in_query and self.token is None:
            raise ConfigurationError("token_in_query needs a token")
        secret = self.token is not None or self.service_key is not None
        secret = secret or not names.isdisjoint({"authorization", "cookie", "x-service-key"})
        if secret and not self.allow_insecure:
            check_exposure(self.endpoint)


def check_exposure(endpoint: Endpoint) -> None:
    """Raise `ConfigurationError` where a secret would be read on its way, unless that is allowed.

    The caller has looked at `allow_insecure`; the environment may allow it too.
    """
    if endpoint.secure or endpoint.is_loopback:
        return
    if os.environ.get("FLUXBASE_ALLOW_INSECURE") != "1":
        raise ConfigurationError(
            "the URL: the credentials would cross the network unencrypted to "
            f"{endpoint.host}; use wss:// or https://, or pass allow_insecure=True (or set "
            "FLUXBASE_ALLOW_INSECURE=1) where the network is trusted"
        )


def suggest(wrong: str, names: Iterable[str]) -> str:
    """Say which name was probably meant: the SDK's camelCase, or a slip of the pen."""
    known = sorted(names)
    snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", wrong).lower()
    meant = snake if snake in known else nearest(snake, known)
    return f"did you mean {meant}?" if meant else f"it takes {', '.join(known)}"


def nearest(wrong: str, names: Iterable[str]) -> str:
    """Return the name that was probably meant, `""` if none is like it."""
    import difflib  # noqa: PLC0415 - only a mistake needs it

    return next(iter(difflib.get_close_matches(wrong, list(names), n=1)), "")


def named_keywords(function: Callable[P, R]) -> Callable[P, R]:
    """Answer a misspelt or camelCase keyword with the right name, as a `ConfigurationError`."""
    parameters = inspect.signature(function).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        raise TypeError(f"{function.__qualname__} takes any keyword")
    names = frozenset(name for name in parameters if name != "self")

    @edge
    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        if not names.issuperset(kwargs):
            wrong = next(name for name in kwargs if name not in names)
            what = function.__qualname__.removesuffix(".__init__")
            raise ConfigurationError(f"{what}() has no parameter {wrong}: {suggest(wrong, names)}")
        return function(*args, **kwargs)

    return checked


# The slips that are told of a client's keywords are told of these as well.
for _values in (Timeouts, Limits):
    _values.__init__ = named_keywords(_values.__init__)  # type: ignore[method-assign]
