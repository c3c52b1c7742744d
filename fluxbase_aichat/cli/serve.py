"""`fluxbase-aichat serve`: the dev server, for one's own clients to talk to."""

from __future__ import annotations

import shlex
import sys
from typing import Final

import click

from fluxbase_aichat.devserver import DevServer

__all__ = ["serve"]

_DAY: Final = 24 * 3600
# A person reads along at about this speed.
_DELAY: Final = 0.02

_WELCOME: Final = """\
The dev server listens at {url}; its chat is at {ws_url}.
Ctrl-C ends it. To talk to its chatbot sql-assistant, in another terminal, as the user ann:

export FLUXBASE_URL={ws_url}
export FLUXBASE_TOKEN={token}
{python} -c 'import fluxbase_aichat as f; print(f.FluxbaseAIChat.from_env().ask(\
"sql-assistant", "Show me the top 10 users by order count"))'

The token is good for a day, and for this run of the server only.
"""


@click.command()
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8080,
    show_default=True,
    help="The port; 0 picks a free one.",
)
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="A loopback name or address; no other."
)
@click.option(
    "--delay",
    type=click.FloatRange(0, 10),
    default=_DELAY,
    show_default=True,
    metavar="SECONDS",
    help="The time between two streamed words.",
)
def serve(port: int, host: str, delay: float) -> None:
    """Run the dev server for your own clients to talk to.

    It speaks the protocol of a real Fluxbase server, knows a small shop, and keeps all of it in
    memory. Its passwords are public, so it serves this machine only.
    """
    try:
        server = DevServer(host, port, chunk_delay=delay)
        server.start()
    except OSError as error:
        raise click.ClickException(f"cannot listen on {host}:{port}: {error.strerror}") from error
    with server:
        token = server.token("ann", expires_in=_DAY)
        try:
            welcome = _WELCOME.format(
                url=server.url,
                ws_url=server.ws_url,
                token=token,
                python=shlex.quote(sys.executable or "python"),
            )
            click.echo(welcome, nl=False)
            server.serve_forever()
        except KeyboardInterrupt:
            click.echo("\nThe dev server has ended.")
