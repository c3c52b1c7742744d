"""`fluxbase-aichat serve`: the dev server, for one's own clients to talk to."""

from __future__ import annotations

from typing import Final

import click

from fluxbase_aichat.devserver import DevServer

__all__ = ["serve"]

_DAY: Final = 24 * 3600
# A person reads along at about this speed.
_DELAY: Final = 0.02

_WELCOME: Final = """\
The dev server listens at {url}. Ctrl-C ends it.

    chat      {ws_url}
    chatbots  sql-assistant, and others of the protocol's tests
    token     for ann, good for a day and until the server ends:

{token}

To talk to it, in another terminal:

export FLUXBASE_URL={ws_url}
export FLUXBASE_TOKEN={token}
python -c 'import fluxbase_aichat as f; c = f.FluxbaseAIChat.from_env(); print(c.ask(\
"sql-assistant", "Show me the top 10 users by order count"))'
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
    """Run the dev server: a small shop to ask about, its users' passwords public.

    It speaks the protocol of a real Fluxbase server and holds its data in memory.
    """
    with DevServer(host, port, chunk_delay=delay) as server:
        token = server.token("ann", expires_in=_DAY)
        click.echo(_WELCOME.format(url=server.url, ws_url=server.ws_url, token=token))
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            click.echo("\nThe dev server has ended.")
