"""`fluxbase-aichat history`: the caller's stored conversations, and what was said in one."""

from __future__ import annotations

import itertools
from typing import Any

import attrs
import click

from fluxbase_aichat import Reply
from fluxbase_aichat.stored import StoredConversation, StoredMessage

from ._going_on import find_conversation
from ._output import Form, form_options, print_csv, print_json, print_rows, terminal
from ._screen import Screen, table
from ._server import Server, namespace_option, server_options

__all__ = ["history"]

_FIELDS = (
    "id", "updated_at", "chatbot", "namespace", "message_count", "title", "preview", "created_at",
)  # fmt: skip
_SHOWN_ID = 8
"""As many characters of an id tell one conversation of a person from the others."""


@click.command()
@click.argument("conversation_id", metavar="[ID]", required=False)
@click.option("--chatbot", help="Only those with this chatbot.")
@namespace_option
@click.option(
    "-n",
    "--limit",
    type=click.IntRange(1),
    default=20,
    show_default=True,
    help="As many are listed.",
)
@click.option("--all", "with_empty", is_flag=True, help="List those without a message as well.")
@form_options
@server_options
def history(
    *,
    conversation_id: str | None,
    chatbot: str | None,
    namespace: str | None,
    limit: int,
    with_empty: bool,
    form: Form,
    server: Server,
) -> None:
    """List the stored conversations, the last changed first, or show the one of an ID.

    The beginning of an ID is enough. `ask CHATBOT --cid ID` and `chat CHATBOT --cid ID` go on with
    a conversation, and -c with the last one. Not every chatbot has its conversations stored.
    """
    api = server.api(exact=form != "json")
    if conversation_id is not None:
        _show(find_conversation(api, conversation_id), form)
        return
    found = itertools.islice(
        (
            summary
            for summary in api.iter_conversations(chatbot=chatbot, namespace=namespace)
            if summary.message_count or with_empty
        ),
        limit,
    )
    rows = [attrs.asdict(summary) for summary in found]
    if form != "text":
        print_rows(form, _FIELDS, rows)
    elif rows:
        columns = ("id", "updated", "chatbot", "messages", "about")
        terminal().print(table(columns, [_row(row) for row in rows]))
    else:
        kind = "such" if chatbot or namespace else "stored"
        click.echo(f"There are no {kind} conversations.", err=True)


def _row(summary: dict[str, Any]) -> dict[str, Any]:
    updated = summary["updated_at"]
    return {
        "id": summary["id"][:_SHOWN_ID],
        "updated": "" if updated is None else f"{updated.astimezone():%Y-%m-%d %H:%M}",
        "chatbot": summary["chatbot"],
        "messages": summary["message_count"],
        "about": summary["title"] or summary["preview"],
    }


def _show(conversation: StoredConversation, form: Form) -> None:
    messages = conversation.messages
    if form == "json":
        head = {
            "id": conversation.id,
            "chatbot": conversation.chatbot,
            "namespace": conversation.namespace,
            "title": conversation.title,
        }
        print_json(head | {"messages": [_values(message) for message in messages]})
    elif form == "csv":
        rows = ((message.timestamp, message.role, message.content) for message in messages)
        print_csv(("timestamp", "role", "content"), rows)
    else:
        Screen(terminal(), live=False).stored(messages)


def _values(message: StoredMessage) -> dict[str, Any]:
    reply = Reply(query_results=message.query_results, usage=message.usage).to_dict()
    return {
        "role": message.role,
        "content": message.content,
        "timestamp": message.timestamp,
        "query_results": reply["query_results"],
        "usage": reply["usage"],
    }
