"""Who is calling: users, tokens and the sign-in. Nothing here knows a route or a socket."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import threading
import time
import uuid
from dataclasses import dataclass
from typing import Any, Final, Literal

__all__ = [
    "ACCESS_SECONDS",
    "USERS",
    "Auth",
    "BadTokenError",
    "Identity",
    "TooManyTriesError",
    "User",
]

Role = Literal["anon", "authenticated", "admin", "service"]

ACCESS_SECONDS: Final = 900
"""How long an access token lives, as on the recorded server."""
_REFRESH_SECONDS: Final = 7 * 24 * 3600
_MAX_FAILURES: Final = 10


@dataclass(frozen=True, slots=True)
class User:
    """Somebody who can sign in."""

    name: str
    id: str
    email: str
    password: str
    role: Role = "authenticated"


_ALL = (
    User("ann", "e0cb5439-bb84-4b6b-985d-b90a7c96dc76", "ann@example.com", "ann-password"),
    User("bob", "ebb17a12-04fa-4cef-9b92-e9af7141f9e3", "bob@example.com", "bob-password"),
    User(
        "admin",
        "7b0f4c52-58f5-4d3c-8f0e-3a1c5d9e6b20",
        "admin@example.com",
        "admin-password",
        "admin",
    ),
)

USERS: Final = {user.name: user for user in _ALL}
"""`ann` and `bob`, who are signed in on the recordings, and `admin`, who may impersonate."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Whom a connection or a REST call speaks for."""

    user_id: str | None = None
    role: Role = "anon"

    @property
    def may_impersonate(self) -> bool:
        """Administrators and the service key may, an impersonated user may not."""
        return self.role in ("admin", "service")


class BadTokenError(ValueError):
    """The credentials are no good; the message is the server's."""


class TooManyTriesError(Exception):
    """Too many wrong passwords."""


class Auth:
    """Signs and checks HS256 tokens; thread-safe.

    With `trusting` it takes what it did not sign for a token of ann's.
    """

    def __init__(self, secret: bytes, service_key: str, *, trusting: bool = False) -> None:
        self._secret = secret
        self._service_key = service_key
        self._trusting = trusting
        self._lock = threading.Lock()
        self._failures = 0

    def token(self, user: User, kind: str = "access", expires_in: float = ACCESS_SECONDS) -> str:
        """Return a token for `user` that is good for `expires_in` seconds (negative: expired)."""
        now = time.time()
        claims = {
            "sub": user.id,
            "email": user.email,
            "role": user.role,
            "token_type": kind,
            "iat": int(now),
            "exp": now + expires_in,
            "jti": str(uuid.uuid4()),
        }
        head = _encode(json.dumps({"alg": "HS256", "typ": "JWT"}).encode())
        signed = f"{head}.{_encode(json.dumps(claims).encode())}"
        return f"{signed}.{self._signature(signed)}"

    def _signature(self, signed: str) -> str:
        return _encode(hmac.digest(self._secret, signed.encode(), hashlib.sha256))

    def user_of(self, token: str, kind: str = "access") -> User:
        """Return whom `token` was given to; raise `BadTokenError` if it is not good."""
        signed, _, signature = token.rpartition(".")
        if not hmac.compare_digest(signature.encode(), self._signature(signed).encode()):
            raise BadTokenError("Invalid or expired Bearer token")
        claims: dict[str, Any] = json.loads(_decode(signed.partition(".")[2]))
        if claims["token_type"] != kind or claims["exp"] <= time.time():
            raise BadTokenError("Invalid or expired Bearer token")
        return next(user for user in _ALL if user.id == claims["sub"])

    def identify(self, authorization: str, service_key: str | None, query: str) -> Identity:
        """Return who calls, from two headers and the `token` of the query.

        An empty bearer token and a scheme other than Bearer are anonymous, as on the recorded
        server. Raises `BadTokenError`.
        """
        if service_key:
            known = hmac.compare_digest(service_key.encode(), self._service_key.encode())
            if not (known or self._trusting):
                raise BadTokenError("Invalid service key")
            return Identity(None, "service")
        scheme, _, token = authorization.strip().partition(" ")
        token = token.strip() if scheme.lower() == "bearer" else ""
        token = token or query
        if not token:
            return Identity()
        try:
            user = self.user_of(token)
        except BadTokenError:
            if not self._trusting:
                raise
            user = USERS["ann"]
        return Identity(user.id, user.role)

    def sign_in(self, email: str, password: str) -> User | None:
        """Return the user, or `None` for a wrong password; raise `TooManyTriesError`."""
        with self._lock:
            if self._failures >= _MAX_FAILURES:
                raise TooManyTriesError
            for user in _ALL:
                if user.email == email and user.password == password:
                    self._failures = 0
                    return user
            self._failures += 1
            return None

    def tokens(self, user: User) -> dict[str, Any]:
        """Return the tokens that signing in and refreshing answer with."""
        return {
            "access_token": self.token(user),
            "refresh_token": self.token(user, "refresh", _REFRESH_SECONDS),
            "expires_in": ACCESS_SECONDS,
        }


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _decode(text: str) -> bytes:
    try:
        return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except (binascii.Error, ValueError) as error:
        raise BadTokenError("Invalid or expired Bearer token") from error
