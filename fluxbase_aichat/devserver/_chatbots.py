"""The chatbots of the dev server, as the recorded server had them. Nothing here answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

__all__ = ["CHATBOTS", "Chatbot"]

_SHOP: Final = frozenset({"users", "orders", "shop"})


@dataclass(frozen=True, slots=True)
class Chatbot:
    """One chatbot: who may use it, what it may read, and what it keeps."""

    name: str
    id: str
    description: str
    tables: frozenset[str]
    """Tables that it may read; `shop` stands for every table of that schema."""
    namespace: str = "default"
    public: bool = True
    """Listed and found by the look-up. One that is not can still be started by its name."""
    anonymous: bool = False
    persists: bool = False
    turn_limit: int | None = None
    tools: frozenset[str] = frozenset()
    """With tools of its own its calls are told as `executing` and `tool_result`."""
    forbids: tuple[str, str] | None = None
    """A word in the question, and the tool that it forbids."""

    def summary(self) -> dict[str, Any]:
        """Return what the REST API says about it."""
        return {
            "id": self.id,
            "name": self.name,
            "namespace": self.namespace,
            "description": self.description,
            "enabled": True,
            "is_public": self.public,
            "source": "filesystem",
            "updated_at": "2026-11-22T23:30:23Z",
        }


_ALL = (
    Chatbot(
        "hidden",
        "5f3b4a0e-7f36-4d19-9a55-0d1f6a2f9b11",
        "Not listed",
        _SHOP,
        public=False,
    ),
    Chatbot(
        "intent",
        "946c4b75-9bd6-4124-9cb7-e2bf6e6052d9",
        "Forbids a tool",
        _SHOP,
        forbids=("orders", "execute_sql"),
    ),
    Chatbot(
        "keeper",
        "a8f9a1a8-7099-4d49-8b49-f2a107d9ebd4",
        "Persists its conversations",
        _SHOP,
        persists=True,
    ),
    Chatbot(
        "oneturn", "6419a16a-d252-40e3-a8a5-78a68e330d27", "One turn only", _SHOP, turn_limit=1
    ),
    Chatbot(
        "sql-assistant",
        "077f32ea-8f34-4490-bf6e-faef0717efd0",
        "Answers questions about the shop with SQL",
        _SHOP | {"types"},
    ),
    Chatbot(
        "support",
        "6d6ecb5c-037c-4fe8-911a-6c2d08abafde",
        "Second bot",
        frozenset({"users"}),
        anonymous=True,
    ),
    Chatbot(
        "tools",
        "1e5d1087-f76e-4286-8574-45dcdf6f474a",
        "Uses MCP tools",
        _SHOP,
        tools=frozenset({"execute_sql", "query_table", "think"}),
    ),
)

CHATBOTS: Final = {(chatbot.namespace, chatbot.name): chatbot for chatbot in _ALL}
"""Every chatbot, by namespace and name."""
