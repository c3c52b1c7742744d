"""The conversations in the server's memory, in front of the store. Nothing here knows the wire."""

from __future__ import annotations

import threading
import uuid
from dataclasses import dataclass, field

from ._chatbots import Chatbot
from ._gojson import Raw
from ._store import Store

__all__ = ["Conversation", "Conversations", "Message"]


@dataclass(eq=False, slots=True)
class Message:
    """A question or an answer; `id` is its number in the store."""

    role: str
    content: str
    id: str | None = None


@dataclass(eq=False, slots=True)
class Conversation:
    """A conversation as its connections share it."""

    id: str
    persists: bool
    turns: int = 0
    messages: list[Message] = field(default_factory=list)


class Conversations:
    """Every conversation that this run of the server knows; thread-safe."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._known: dict[str, Conversation] = {}

    def start(self, chatbot: Chatbot, user_id: str | None) -> Conversation:
        """Begin a conversation; it persists if its chatbot says so."""
        conversation = Conversation(str(uuid.uuid4()), chatbot.persists)
        if chatbot.persists:
            self._store.add_conversation(conversation.id, chatbot.name, chatbot.namespace, user_id)
        with self._lock:
            self._known[conversation.id] = conversation
        return conversation

    def resume(self, conversation_id: str) -> Conversation | None:
        """Return a known conversation, whoever asks (PROTOCOL 4.13), else a stored one."""
        with self._lock:
            known = self._known.get(conversation_id)
        if known is not None:
            return known
        loaded = self._store.load(conversation_id)
        if loaded is None:
            return None
        row, messages = loaded
        stored = Conversation(row["id"], persists=True, turns=row["turns"])
        stored.messages = [Message(role, content) for role, content in messages]
        with self._lock:  # another connection may have been quicker
            return self._known.setdefault(conversation_id, stored)

    def questions(self, conversation: Conversation) -> list[str]:
        """Return what the user has said so far."""
        with self._lock:
            return [m.content for m in conversation.messages if m.role == "user"]

    def add(
        self,
        conversation: Conversation,
        message: Message,
        results: Raw | None = None,
        usage: Raw | None = None,
    ) -> None:
        """Add a question, or an answer with its results and usage."""
        if conversation.persists:
            message.id = self._store.add_message(
                conversation.id, message.role, message.content, results, usage
            )
        with self._lock:
            conversation.messages.append(message)
            conversation.turns += message.role == "user"

    def remove(self, conversation: Conversation, message: Message) -> None:
        """Forget the question of a turn that failed; it still counts as a turn."""
        if message.id is not None:
            self._store.remove_message(message.id)
        with self._lock:
            conversation.messages.remove(message)

    def forget(self, conversation_id: str) -> None:
        """Forget a deleted conversation."""
        with self._lock:
            self._known.pop(conversation_id, None)
