"""`fluxbase-aichat bots`: the chatbots that a server lists."""

from __future__ import annotations

import attrs
import click

from ._output import Form, form_options, print_rows, terminal
from ._screen import table
from ._server import Server, server_options

__all__ = ["bots"]

_COLUMNS = ("name", "namespace", "description")
_MORE = ("id", "model", "enabled", "source", "updated_at")


@click.command()
@form_options
@server_options
def bots(*, form: Form, server: Server) -> None:
    """List the chatbots of the server that are public."""
    found = sorted(server.api().list_chatbots(), key=lambda bot: (bot.name, bot.namespace))
    columns = _COLUMNS if form == "text" else _COLUMNS + _MORE
    rows = [attrs.asdict(bot) for bot in found]
    if form != "text":
        print_rows(form, columns, rows)
    elif rows:
        terminal().print(table(columns, rows))
    else:
        click.echo("The server lists no chatbots; those that are not public it does not.", err=True)
