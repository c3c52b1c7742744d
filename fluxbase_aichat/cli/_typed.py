"""What was typed in earlier chats, for the arrow keys. It touches one file alone."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import click

__all__ = ["remembering", "typed_file"]

_KEPT: Final = 1000
"""As many lines are read again."""


def typed_file() -> Path:
    """Return where the lines are kept."""
    return Path(click.get_app_dir("fluxbase-aichat")) / "typed"


@contextlib.contextmanager
def remembering() -> Iterator[Callable[[], None]]:
    """Offer what was typed before; give what keeps all that was typed since, at each call.

    A line is appended as soon as it is typed, so no interruption loses any. A file that cannot be
    used is no reason not to chat.
    """
    try:
        import readline  # noqa: PLC0415 - a Python without it has no line editing
    except ImportError:
        yield lambda: None
        return
    file = typed_file()
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch(mode=0o600)  # questions are private
        readline.set_history_length(_KEPT)
        readline.read_history_file(file)
    known = readline.get_current_history_length()

    def keep() -> None:
        nonlocal known
        now = readline.get_current_history_length()
        with contextlib.suppress(OSError):
            if hasattr(readline, "append_history_file"):
                readline.append_history_file(max(0, now - known), file)
            else:  # libedit, which macOS has in its place, can only write all of it
                readline.write_history_file(file)
        known = now

    yield keep
