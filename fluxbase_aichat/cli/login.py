"""`fluxbase-aichat login`: signs in once, so that the other commands need no token."""

from __future__ import annotations

import os

import click

from fluxbase_aichat import PasswordLogin
from fluxbase_aichat._api import endpoint_of
from fluxbase_aichat._harmless import harmless

from ._input import plain_input, read_line
from ._logins import DEMO, forget_login, login_file, save_login, saved_login
from ._server import Server, server_options

__all__ = ["login"]

_PASSWORD = "FLUXBASE_PASSWORD"  # noqa: S105 - its name


@click.command()
@click.argument("email", required=False)
@click.option(
    "--print",
    "printed",
    is_flag=True,
    help="Print an access token, and keep no login; without EMAIL that of the kept one.",
)
@click.option("--forget", is_flag=True, help="Forget the login that is kept for the server.")
@server_options
def login(*, email: str | None, printed: bool, forget: bool, server: Server) -> None:
    """Sign in as EMAIL, and keep the login for the other commands.

    The password is asked for; without a terminal it is read from the standard input, or taken from
    FLUXBASE_PASSWORD. It is not kept: a token is, in a file that only you can read. FLUXBASE_TOKEN
    and --token-file go before a login.
    """
    if server.url == DEMO:
        raise click.UsageError("the demo needs no login")
    plain_input()
    shown = endpoint_of(server.url)
    try:
        if forget:
            known = forget_login(server.url)
            click.echo(f"{'Forgot the' if known else 'There was no'} login for {shown}.", err=True)
            return
        if printed and not email and (kept := saved_login(server.url, server.options)):
            click.echo(kept())
            return
        if not email:
            email = read_line("E-mail address")
        source = PasswordLogin(
            server.url,
            email,
            os.environ.get(_PASSWORD) or read_line("Password", hidden=True),
            timeout=30.0 if server.timeout is None else server.timeout,
            **server.options,
        )
        token = source()
        if printed:
            click.echo(token)
            return
        refresh_token = source.refresh_token
        if refresh_token is None:
            raise click.ClickException(
                "this server gives no login that can be kept; use --print, and FLUXBASE_TOKEN"
            )
        save_login(server.url, refresh_token)
    except OSError as error:
        if not error.filename:
            raise  # the library's own, which says all
        raise click.ClickException(f"cannot write {login_file()}: {error.strerror}") from error
    click.echo(f"Signed in at {shown} as {harmless(email)}.", err=True)
