"""Sources of access tokens, for `token=`: they sign in, and refresh the token before it expires.

They keep the tokens and know when to ask for others; how a call is made is `_api`'s.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, NoReturn

import attrs

from . import _plain
from ._answer import Outcome, fresh
from ._api import Call, endpoint_of, perform
from ._deadline import Clock, Deadline
from ._handshake import come_back
from ._lifetime import calling, tell_of_forks
from ._net import check_ssl_context
from ._value import Value
from .config import (
    RenewableToken,
    Settings,
    check_exposure,
    check_name,
    check_seconds,
    check_secret,
    named_keywords,
)
from .errors import (
    ApiError,
    AuthenticationError,
    ConnectError,
    ConnectTimeoutError,
    FluxbaseChatError,
    PermissionDeniedError,
    RateLimitError,
)

if TYPE_CHECKING:
    import ssl

__all__ = ["PasswordLogin", "RefreshToken"]

# A token is replaced so long before it expires, so that it is still good when it arrives.
_EARLY: Final = 60.0
# What a token is taken to last when the server does not say.
_UNKNOWN: Final = 60.0
# A sign-in that was refused is not tried again for so long: ten tries lock an account (PROTOCOL 5).
_REFUSED: Final = 60.0
# With a token that is still good, a refresh that failed is not tried again for so long.
_PATIENCE: Final = 5.0
_WRONG: Final = "are the e-mail address and the password right?"
_EXPIRED: Final = "the refresh token is not accepted any more: sign in again"
# Recorded servers answer 500 to a bad refresh token (PROTOCOL 5).
_REFUSALS: Final = frozenset({400, 500})


@attrs.frozen(eq=False, repr=False)
class _Tokens(Value):
    """What signing in and refreshing give. No token is in its `repr`."""

    access: str = attrs.field(repr=False)
    refresh: str | None = attrs.field(repr=False)
    lifetime: float
    """Seconds from when they were asked for."""


@attrs.frozen(eq=False, repr=False)
class _Held(Value):
    """The tokens that are held, with the two clocks: one stops in a suspend, one can be set."""

    tokens: _Tokens
    expires: tuple[float, float]

    def good(self, now: tuple[float, float], early: float = 0.0) -> bool:
        """Whether the token is good for some seconds more."""
        return all(at - early > moment for at, moment in zip(self.expires, now, strict=True))


class _Source(RenewableToken):
    """Gives an access token, getting a new one when the old one expires.

    Of several threads that need a new one, one gets it and the others wait for it.
    """

    def __init__(
        self,
        url: str,
        *,
        headers: Mapping[str, str] | None,
        timeout: float | None,
        ssl_context: ssl.SSLContext | None,
        proxy: str | None,
        allow_insecure: bool,
    ) -> None:
        check_ssl_context(ssl_context)
        self._timeout = check_seconds("timeout", timeout)
        self._settings = Settings(
            endpoint=endpoint_of(url),
            headers=headers,
            ssl_context=ssl_context,
            proxy=proxy,
            allow_insecure=allow_insecure,
        )
        if not allow_insecure:
            check_exposure(self._settings.endpoint)
        self._clock: Clock = time.monotonic
        self._wall: Clock = time.time
        self._lock = threading.Lock()  # guards the three below
        self._held: _Held | None = None
        self._flight: Outcome | None = None
        self._refusal: tuple[float, FluxbaseChatError] | None = None
        tell_of_forks(self)

    def __call__(self) -> str:
        """Return an access token that is good for a minute, if the server gives one.

        Raises:
            AuthenticationError: the server does not accept who is signing in.
            PermissionDeniedError: it accepts, and refuses.
            RateLimitError: there were too many tries; `retry_after` says when to come back.
            ConnectError: it could not be asked.

        """
        mine: Outcome | None = None
        try:
            with self._lock:
                now = self._now()
                held = self._held
                if held is not None and held.good(now, min(_EARLY, held.tokens.lifetime / 2)):
                    return held.tokens.access
                flight = self._flight
                refusal = self._refusal
                if refusal is not None and now[0] >= refusal[0]:
                    refusal = None
                if (refusal or flight) is not None and held is not None and held.good(now):
                    return held.tokens.access  # another thread gets the next one, or none can
                if refusal is not None:
                    raise _still(*refusal, now[0])
                if flight is None:
                    mine = self._flight = flight = Outcome()
            if mine is not None:
                self._fly(mine, held)
            elif not flight.wait(self._timeout):
                raise ConnectTimeoutError("another thread is still signing in")
            return flight.get()
        finally:
            if mine is not None and not mine.done:  # Ctrl-C, or a bug of ours
                self._flight = None
                mine.fail(ConnectError("signing in was interrupted"))

    def refused(self, token: str) -> None:
        """Take note that the server did not accept a token: the next one is another."""
        with self._lock:
            if self._held is not None and self._held.tokens.access == token:
                self._held = attrs.evolve(self._held, expires=(0.0, 0.0))

    def after_fork(self) -> None:
        """Begin anew in a child process, with the same tokens."""
        self._lock = threading.Lock()
        self._flight = None

    # -- one thread at a time ---------------------------------------------------------------

    def _fly(self, flight: Outcome, held: _Held | None) -> None:
        """Get new tokens, and tell all who wait for them."""
        start = self._now()
        try:
            tokens = self._renew(held.tokens if held is not None else None)
        except FluxbaseChatError as failure:
            error = _told(failure)
            now = self._now()
            with self._lock:
                held = self._held
                good = held is not None and held.good(now)
                self._flight = None
                self._refusal = (now[0] + _hold(error, _PATIENCE if good else 0.0), error)
            if held is not None and good:
                flight.resolve(held.tokens.access)
            else:
                flight.fail(error)
        else:
            monotonic, wall = start
            expires = (monotonic + tokens.lifetime, wall + tokens.lifetime)
            with self._lock:
                self._flight = self._refusal = None
                self._held = _Held(tokens, expires)
            flight.resolve(tokens.access)

    def _renew(self, old: _Tokens | None) -> _Tokens:
        raise NotImplementedError

    def _get(self, path: str, name: str, body: dict[str, str], secret: str) -> _Tokens:
        call = Call(
            name=name,
            method="POST",
            path=path,
            body=body,
            read=_read_tokens,
            secret=secret,
        )
        with calling() as waker:
            tokens = perform(self._settings, call, Deadline(self._timeout), waker).value
        if tokens is None:
            raise AuthenticationError(
                f"{name} gave no access token", hint="does this account need a second factor?"
            )
        return tokens

    def _refresh(self, token: str) -> _Tokens:
        tokens = self._get("/auth/refresh", "refreshing the token", {"refresh_token": token}, token)
        return tokens if tokens.refresh is not None else attrs.evolve(tokens, refresh=token)

    def _now(self) -> tuple[float, float]:
        return self._clock(), self._wall()

    def __reduce__(self) -> NoReturn:
        name = type(self).__name__
        raise TypeError(f"a {name} holds secrets and cannot be pickled; make one in each process")

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._settings.endpoint}>"


class PasswordLogin(_Source):
    """A source of tokens that signs in with a password.

        login = PasswordLogin("https://example.com", "ann@example.com", os.environ["PASSWORD"])
        chat = FluxbaseAIChat("wss://example.com", token=login)

    It signs in when a token is first needed, refreshes it a minute before it expires, and signs in
    again when that is refused. One of them may serve any number of clients and threads. While the
    token is good, a refresh that fails is only tried again later. A password that was refused is
    not sent again for a minute, and after too many tries not before the server says so.

    Args:
        url: the server, as for `FluxbaseAI`.
        email: who is signing in.
        password: and how. It is shown nowhere.
        headers: further headers of the requests.
        timeout: seconds for signing in; `None` is no limit.
        ssl_context: how to trust the server; by default as the system does.
        proxy: the URL of a proxy, or `"env"`.
        allow_insecure: allow to send the password over `http://` to another machine.

    Raises:
        ConfigurationError: a parameter is wrong.

    """

    @named_keywords
    def __init__(
        self,
        url: str,
        email: str,
        password: str,
        *,
        headers: Mapping[str, str] | None = None,
        timeout: float | None = 30.0,
        ssl_context: ssl.SSLContext | None = None,
        proxy: str | None = None,
        allow_insecure: bool = False,
    ) -> None:
        self._email = check_name("email", email, what="an e-mail address")
        self._password = check_name("password", password, what="a password")
        super().__init__(
            url,
            headers=headers,
            timeout=timeout,
            ssl_context=ssl_context,
            proxy=proxy,
            allow_insecure=allow_insecure,
        )

    @property
    def refresh_token(self) -> str | None:
        """What a `RefreshToken` of another process goes on with. It is a secret.

        `None` before the first token, and from a server that gives none.
        """
        held = self._held
        return None if held is None else held.tokens.refresh

    def _renew(self, old: _Tokens | None) -> _Tokens:
        if old is not None and old.refresh is not None:
            try:
                return self._refresh(old.refresh)
            except (ApiError, AuthenticationError):
                pass  # it is no good any more, which servers tell with 500 (PROTOCOL 5)
        body = {"email": self._email, "password": self._password}
        try:
            return self._get("/auth/signin", "signing in", body, self._password)
        except AuthenticationError as error:
            if error.sent:
                error.hint = _WRONG
            raise


class RefreshToken(_Source):
    """A source of tokens that has a refresh token, as a browser's session keeps one.

        source = RefreshToken("https://example.com", os.environ["REFRESH_TOKEN"])
        chat = FluxbaseAIChat("wss://example.com", token=source)

    It asks for an access token when one is first needed, and for another a minute before it
    expires. A server may give another refresh token each time, which `refresh_token` then is. For
    the rest see `PasswordLogin`.

    Args:
        url: the server, as for `FluxbaseAI`.
        refresh_token: what signing in gave. It is shown nowhere.
        headers: further headers of the requests.
        timeout: seconds for a refresh; `None` is no limit.
        ssl_context: how to trust the server; by default as the system does.
        proxy: the URL of a proxy, or `"env"`.
        allow_insecure: allow to send the token over `http://` to another machine.

    Raises:
        ConfigurationError: a parameter is wrong.

    """

    @named_keywords
    def __init__(
        self,
        url: str,
        refresh_token: str,
        *,
        headers: Mapping[str, str] | None = None,
        timeout: float | None = 30.0,
        ssl_context: ssl.SSLContext | None = None,
        proxy: str | None = None,
        allow_insecure: bool = False,
    ) -> None:
        self._given = check_name("refresh_token", refresh_token, what="a refresh token")
        super().__init__(
            url,
            headers=headers,
            timeout=timeout,
            ssl_context=ssl_context,
            proxy=proxy,
            allow_insecure=allow_insecure,
        )

    @property
    def refresh_token(self) -> str:
        """The refresh token that serves next, to be kept for another process. It is a secret."""
        held = self._held
        return self._given if held is None or not held.tokens.refresh else held.tokens.refresh

    def _renew(self, old: _Tokens | None) -> _Tokens:
        try:
            return self._refresh(old.refresh if old is not None and old.refresh else self._given)
        except AuthenticationError as error:
            error.hint = _EXPIRED
            raise
        except ApiError as error:
            if error.status not in _REFUSALS:
                raise
            raise AuthenticationError(*error.args, hint=_EXPIRED) from None


def _read_tokens(values: Any) -> _Tokens | None:
    access = values.get("access_token")
    if not access:
        return None
    refresh = values.get("refresh_token") or None
    seconds = values.get("expires_in")
    return _Tokens(
        check_secret("access_token", access),
        None if refresh is None else _plain.text(refresh),
        _UNKNOWN if seconds is None else float(_plain.seconds(seconds)),
    )


def _told(error: FluxbaseChatError) -> FluxbaseChatError:
    """Return what to tell those who wanted a token: their own request was not sent."""
    kept = (AuthenticationError, PermissionDeniedError, RateLimitError, ConnectError)
    if not isinstance(error, kept):
        kind = ConnectTimeoutError if isinstance(error, TimeoutError) else ConnectError
        cause = error
        error = kind(
            *cause.args,
            retryable=cause.retryable,
            retry_after=cause.retry_after,
            hint=cause.hint,
        )
        error.__cause__ = cause
    error.sent = False
    return error


def _hold(error: FluxbaseChatError, patience: float) -> float:
    """Return the seconds for which the server is not asked again."""
    if isinstance(error, RateLimitError) and error.retry_after is not None:
        return error.retry_after
    refused = isinstance(error, (AuthenticationError, PermissionDeniedError, RateLimitError))
    return _REFUSED if refused else patience


def _still(until: float, error: FluxbaseChatError, now: float) -> FluxbaseChatError:
    """Return a refusal that still holds."""
    error = fresh(error)
    if isinstance(error, RateLimitError):
        error.retry_after = until - now
        error.hint = come_back(error.retry_after)
    return error
