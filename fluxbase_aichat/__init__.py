"""A synchronous client for the AI chat of a Fluxbase server: no asyncio, no callbacks needed."""

from . import errors, events
from .client import FluxbaseAIChat
from .config import Limits, Timeouts
from .errors import *  # noqa: F403 - its __all__ is the error tree
from .results import Interval, QueryResult, Reply, ToolOutput, Usage
from .turn import Conversation, Turn

__all__ = [
    "Conversation",
    "FluxbaseAIChat",
    "Interval",
    "Limits",
    "QueryResult",
    "Reply",
    "Timeouts",
    "ToolOutput",
    "Turn",
    "Usage",
    "errors",
    "events",
    *errors.__all__,
]
