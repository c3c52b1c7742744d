"""`fluxbase-aichat completion`: the commands, options and chatbots for the Tab key."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

__all__ = ["completion"]

_PROGRAM = "fluxbase-aichat"
_VARIABLE = "_FLUXBASE_AICHAT_COMPLETE"


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the completion for a SHELL.

    For bash, this line in ~/.bashrc loads it: eval "$(fluxbase-aichat completion bash)"
    """
    kind = get_completion_class(shell)
    if kind is None:
        raise click.ClickException(f"this version of click knows no {shell}")
    root = context.find_root().command
    try:
        click.echo(kind(root, {}, _PROGRAM, _VARIABLE).source())
    except RuntimeError as error:
        raise click.ClickException(str(error)) from error
