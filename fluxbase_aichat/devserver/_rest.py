"""The REST calls beside the socket: a request in, a status and a body out. No I/O but the store."""

from __future__ import annotations

import contextlib
import json
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import parse_qs, unquote, urlsplit

from ._auth import Auth, BadTokenError, Identity, TooManyTriesError
from ._conversations import Conversations
from ._store import Store
from ._world import World

__all__ = ["RATE_LIMITED", "Answer", "Rest"]

_AI: Final = "/api/v1/ai"
_CONVERSATION: Final = re.compile(rf"{_AI}/conversations/([^/]+)")
_CHATBOT: Final = re.compile(rf"{_AI}/chatbots/[^/]+")
_BY_NAME: Final = re.compile(rf"{_AI}/chatbots/by-name/([^/]+)")
_PAGE: Final = 50
_LONGEST_PAGE: Final = 100
_LONGEST_TITLE: Final = 200


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer with a JSON body."""

    status: int
    body: Any
    headers: Mapping[str, str] = field(default_factory=dict)


RATE_LIMITED: Final = Answer(
    429,
    {
        "code": "RATE_LIMIT_EXCEEDED",
        "error": "Rate limit exceeded",
        "message": "Too many login attempts. Please try again in 15 minutes.",
        "retry_after": 900,
    },
    {"Retry-After": "900"},
)
_NOT_FOUND: Final = Answer(404, {"error": "Conversation not found"})
_NO_CREDENTIALS: Final = Answer(
    401, {"error": "Authentication required. Provide Bearer token, X-Client-Key, or X-Service-Key"}
)


class Rest:
    """Answers REST calls; thread-safe."""

    def __init__(
        self, store: Store, auth: Auth, conversations: Conversations, world: World
    ) -> None:
        self._store = store
        self._auth = auth
        self._conversations = conversations
        self._world = world

    def answer(self, method: str, target: str, identity: Identity, body: bytes) -> Answer:
        """Answer a call by somebody who has been identified."""
        url = urlsplit(target)
        query = {name: values[-1] for name, values in parse_qs(url.query).items()}
        match method, url.path:
            case "POST", "/api/v1/auth/signin":
                return self._sign_in(_object(body))
            case "POST", "/api/v1/auth/refresh":
                return self._refresh(_object(body))
            case "GET", "/api/v1/ai/chatbots":
                found = [bot.summary() for bot in self._world.chatbots if bot.public]
                return Answer(200, {"chatbots": found or None, "count": len(found)})
            case "GET", "/api/v1/ai/conversations":
                return self._list(identity, query)
        if method == "GET" and (named := _BY_NAME.fullmatch(url.path)):
            return self._look_up(unquote(named[1]))
        if method == "GET" and _CHATBOT.fullmatch(url.path):
            # Even for a listed id: that is what the recorded servers do.
            return Answer(404, {"error": "Chatbot not found"})
        if about := _CONVERSATION.fullmatch(url.path):
            return self._conversation(method, about[1], identity, body)
        return Answer(404, {"error": "Not Found", "path": url.path})

    def _list(self, identity: Identity, query: Mapping[str, str]) -> Answer:
        if identity.role == "anon":
            return _NO_CREDENTIALS
        limit = _number(query.get("limit")) or _PAGE
        page = self._store.listing(
            identity.user_id,
            chatbot=query.get("chatbot"),
            namespace=query.get("namespace"),
            limit=min(limit, _LONGEST_PAGE),
            offset=_number(query.get("offset")),
        )
        return Answer(200, page)

    def _conversation(self, method: str, name: str, identity: Identity, body: bytes) -> Answer:
        what = {"GET": "get", "PATCH": "update", "DELETE": "delete"}.get(method)
        if what is None:
            return Answer(405, {"error": "Method Not Allowed"})
        if identity.role == "anon":
            return _NO_CREDENTIALS
        try:
            conversation_id = str(uuid.UUID(name))
        except ValueError:
            return Answer(500, {"error": f"Failed to {what} conversation"})
        title = _object(body).get("title") or ""
        if method == "PATCH":
            if not isinstance(title, str) or not title:
                return Answer(400, {"error": "Title cannot be empty"})
            if len(title) > _LONGEST_TITLE:
                return Answer(400, {"error": "Title must be 200 characters or less"})
        detail = self._store.detail(conversation_id, identity.user_id)
        if detail is None:
            return _NOT_FOUND
        if method == "PATCH":
            self._store.rename(conversation_id, title)
            detail = self._store.detail(conversation_id, identity.user_id)
        if method == "DELETE":
            self._store.delete(conversation_id)
            self._conversations.forget(conversation_id)
            return Answer(200, {"deleted": True, "id": conversation_id})
        return Answer(200, detail)

    def _sign_in(self, request: Mapping[str, Any]) -> Answer:
        try:
            user = self._auth.sign_in(str(request.get("email")), str(request.get("password")))
        except TooManyTriesError:
            return RATE_LIMITED
        if user is None:
            return Answer(401, {"error": "Invalid email or password"})
        known = {"id": user.id, "email": user.email, "role": user.role}
        return Answer(200, {"user": known, **self._auth.tokens(user)})

    def _refresh(self, request: Mapping[str, Any]) -> Answer:
        try:
            user = self._auth.user_of(str(request.get("refresh_token")), "refresh")
        except BadTokenError:
            return Answer(500, {"error": "Failed to refresh token"})
        return Answer(200, self._auth.tokens(user))

    def _look_up(self, name: str) -> Answer:
        found = self._world.chatbot("default", name)
        if found is None or not found.public:
            return Answer(404, {"ambiguous": False, "error": "Chatbot not found"})
        return Answer(200, {"chatbot": found.summary(), "ambiguous": False})


def _number(text: str | None) -> int:
    """Return a number of the query; what is none, or below zero, counts as zero."""
    with contextlib.suppress(ValueError):
        return max(0, int(text or "0"))
    return 0


def _object(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
