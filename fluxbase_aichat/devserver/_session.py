"""One websocket connection's rules: one frame at a time, chatbot and identity that stick.

Nothing here reads a socket or knows HTTP.
"""

from __future__ import annotations

import json
import uuid
from typing import Any, Final

from ._auth import USERS, Identity
from ._chatbots import Chatbot
from ._conversations import Conversation
from ._gojson import dumps
from ._runtime import Runtime
from ._turn import Turn
from ._websocket import Peer

__all__ = ["Session"]

_FIELDS: Final = (
    "type",
    "chatbot",
    "namespace",
    "conversation_id",
    "content",
    "impersonate_user_id",
)


class Session:
    """What the server remembers of one connection."""

    def __init__(self, runtime: Runtime, client: Peer, identity: Identity) -> None:
        self._runtime = runtime
        self._client = client
        self._identity = identity
        self._chatbot: Chatbot | None = None
        self._conversations: dict[str, Conversation] = {}
        self._sent_in_turn = 0

    def handle(self, text: str) -> bool:
        """Answer one frame, to the end; `False` ends the connection."""
        frame = parse(text)
        if frame is None:
            self._error("", "Invalid message format", "INVALID_MESSAGE")
            return True
        match frame["type"]:
            case "start_chat":
                self._start_chat(frame)
            case "message":
                self._message(frame)
            case "cancel":
                self._send({"type": "cancelled", "conversation_id": frame["conversation_id"]})
                return False
            case _:
                self._error(frame["conversation_id"], "Unknown message type", "UNKNOWN_TYPE")
        return True

    def _start_chat(self, frame: dict[str, str]) -> None:
        chatbot = self._runtime.world.chatbot(frame["namespace"] or "default", frame["chatbot"])
        if chatbot is None:
            self._error("", "Chatbot not found or disabled", "CHATBOT_NOT_FOUND")
            return
        if frame["impersonate_user_id"] and not self._impersonate(frame["impersonate_user_id"]):
            return
        if self._identity.role == "anon" and not chatbot.anonymous:
            self._error("", "Authentication required", "AUTH_REQUIRED")
            return
        conversations = self._runtime.conversations
        conversation = conversations.resume(frame["conversation_id"])
        if conversation is None:
            conversation = conversations.start(chatbot, self._identity.user_id)
        self._chatbot = chatbot
        self._conversations[conversation.id] = conversation
        self._send(
            {"type": "chat_started", "conversation_id": conversation.id, "chatbot": chatbot.name}
        )

    def _impersonate(self, user_id: str) -> bool:
        if not self._identity.may_impersonate:
            self._error("", "Only admins can impersonate users", "FORBIDDEN")
            return False
        try:
            wanted = str(uuid.UUID(user_id))
        except ValueError:
            self._error("", "Failed to verify user", "USER_ERROR")
            return False
        if all(user.id != wanted for user in USERS.values()):
            self._error("", "User not found", "USER_NOT_FOUND")
            return False
        self._identity = Identity(wanted, "authenticated")
        return True

    def _message(self, frame: dict[str, str]) -> None:
        conversation = self._conversations.get(frame["conversation_id"])
        if conversation is None or self._chatbot is None:
            self._error(frame["conversation_id"], "No active chat session", "NO_SESSION")
            return
        self._sent_in_turn = 0
        self._runtime.turn_began()
        try:
            turn = Turn(
                self._runtime,
                self._chatbot,
                conversation,
                send=self._send_in_turn,
                cut=self._client.drop,
            )
            turn.run(frame["content"])
        finally:
            self._runtime.turn_ended()

    def _send_in_turn(self, text: str) -> None:
        self._client.send(text)
        self._sent_in_turn += 1
        faults = self._runtime.faults
        if faults.drop == self._sent_in_turn and faults.strikes("drop"):
            self._client.drop()
        if faults.after == self._sent_in_turn:
            garbage = faults.strikes("garbage")
            if garbage:
                self._client.send(garbage)
            self._runtime.stall("turn")

    def _error(self, conversation_id: str, error: str, code: str) -> None:
        about = {"conversation_id": conversation_id} if conversation_id else {}
        self._send({"type": "error", **about, "error": error, "code": code})

    def _send(self, frame: dict[str, Any]) -> None:
        self._client.send(dumps(frame))


def parse(text: str) -> dict[str, str] | None:
    """Return the fields of a client's frame, the missing ones empty; `None` if it is none."""
    try:
        frame = json.loads(text)
    except (ValueError, RecursionError):
        return None
    frame = {} if frame is None else frame  # so does Go
    if not isinstance(frame, dict):
        return None
    given = {name: frame.get(name) for name in _FIELDS}
    fields = {name: "" if value is None else value for name, value in given.items()}
    return fields if all(isinstance(value, str) for value in fields.values()) else None
