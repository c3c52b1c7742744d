"""The `fluxbase-aichat` command: its subcommands, and how an error reaches the terminal."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

import click

from fluxbase_aichat.config import nearest
from fluxbase_aichat.errors import FluxbaseChatError

from ._errors import INTERRUPTED, exit_code, show_error
from ._log import show_log
from .ask import ask
from .batch import batch
from .bots import bots
from .chat import chat
from .completion import completion
from .demo import demo
from .doctor import doctor
from .history import history
from .login import login
from .serve import serve

__all__ = ["run"]


def _version() -> str:
    try:
        return version("fluxbase-aichat")
    except PackageNotFoundError:
        return "of a source tree that is not installed"


class _InOrder(click.Group):
    def list_commands(self, _: click.Context) -> list[str]:
        """Return the commands as they were added, what is wanted most often first."""
        return list(self.commands)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command; say of a slip of the pen which one was probably meant."""
        command = super().get_command(ctx, cmd_name)
        # The Tab key asks as well, for what is still being typed.
        if command is None and not ctx.resilient_parsing:
            meant = nearest(cmd_name, self.commands)
            if meant:
                ctx.fail(f"No such command {cmd_name!r}. Did you mean {meant!r}?")
        return command


@click.group(cls=_InOrder, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(_version(), prog_name="fluxbase-aichat")
def app() -> None:
    """Chat with the AI chatbots of a Fluxbase server."""


# In the order of --help. A new command is a new module and a line here.
for _command in (ask, chat, bots, history, batch, login, doctor, demo, serve, completion):
    app.add_command(_command)


def run() -> int:
    """Run the command line and return the exit code; every error is a line, not a traceback."""
    try:
        show_log()
        code = app.main(prog_name="fluxbase-aichat", standalone_mode=False)
    except FluxbaseChatError as error:
        show_error(error)
        return exit_code(error)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    return code if isinstance(code, int) else 0
