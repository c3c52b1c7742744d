"""The loggers of the library, all below `fluxbase_aichat`: silent until somebody listens.

    fluxbase_aichat.connection   INFO: opened, lost, tried again
    fluxbase_aichat.turn         DEBUG: started, sent, ended; WARNING: failed, nobody looked
    fluxbase_aichat.callbacks    ERROR: a callback raised
    fluxbase_aichat.tracing      ERROR: the tracer raised

No message has a token, a question, an answer or an id in it. The ids are attributes of the records.
"""

from __future__ import annotations

import logging

__all__ = ["about"]

logging.getLogger("fluxbase_aichat").addHandler(logging.NullHandler())


def about(chatbot: str | None = None, conversation_id: str | None = None) -> dict[str, str]:
    """Return the `extra` of a record: `conversation_id` and `chatbot`, `""` where there is none."""
    return {"conversation_id": conversation_id or "", "chatbot": chatbot or ""}
