"""Lists the chatbots and the conversations that they have kept, and goes on with the newest.

    python examples/history.py "And by revenue?"

`FLUXBASE_URL` and `FLUXBASE_TOKEN` say where; `fluxbase-aichat serve` prints both.
"""

from __future__ import annotations

import os
import sys

from fluxbase_aichat import FluxbaseAI

CHATBOT = "keeper"


def main() -> None:
    """Show what the REST side knows, ask one question more, and show the whole conversation."""
    question = " ".join(sys.argv[1:]) or "Show me the top 3 users by order count"
    api = FluxbaseAI(os.environ["FLUXBASE_URL"], os.environ["FLUXBASE_TOKEN"])

    for chatbot in api.list_chatbots():
        print(f"{chatbot.namespace}/{chatbot.name}: {chatbot.description}")
    for stored in api.iter_conversations(chatbot=CHATBOT):  # asks for page after page
        print(stored.updated_at, stored.title or stored.preview, stored.message_count)

    last = api.last_conversation(CHATBOT)
    with api.create_chat() as chat:
        # The server keeps it, so only somebody's deleting can lose it.
        conversation = chat.conversation(
            CHATBOT, conversation_id=last.id if last else None, on_lost="new"
        )
        conversation.ask(question, timeout=120)
        for message in conversation.history():
            print(f"{message.role}: {message.content}")


if __name__ == "__main__":
    main()
