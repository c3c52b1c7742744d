"""What is typed, or comes through a pipe. What it means it does not know."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Iterator
from typing import Final

import click

__all__ = ["plain_input", "read_all", "read_line", "read_question"]

_BLOCK: Final = '"""'
_GOES_ON: Final = "\\"
_MORE: Final = "... "


def plain_input() -> None:
    """Read what comes through a pipe as UTF-8, whatever the locale; call it before reading.

    A mark at its beginning and the line ends of other systems are no part of the text.
    """
    if isinstance(sys.stdin, io.TextIOWrapper) and not sys.stdin.isatty():
        sys.stdin.reconfigure(encoding="utf-8-sig", errors="strict", newline=None)


def read_all() -> str:
    """Return all of a pipe's text; raise `click.UsageError`."""
    with _text():
        return sys.stdin.read()


def read_line(prompt: str, *, hidden: bool = False) -> str:
    """Return what is typed, or a pipe's next line; raise `click.UsageError` when it is empty."""
    if sys.stdin.isatty():
        return str(click.prompt(prompt, hide_input=hidden, err=True))
    with _text():
        line = sys.stdin.readline().rstrip("\n")
    if not line:
        raise click.UsageError(f"{prompt}: nothing came on the standard input")
    return line


def read_question(prompt: str) -> str:
    r"""Return the user's next question; raise `EOFError` at the end and `KeyboardInterrupt`.

    A line that ends with \ goes on in the next; what stands between lines of three quotes is one
    question, whatever it holds. Raises `click.UsageError` for what is no text.
    """
    with contextlib.suppress(ImportError):  # a Python without it has no line editing
        import readline  # noqa: F401, PLC0415 - input() uses it when it is there
    terminal = sys.stdin.isatty()
    more = _MORE if terminal else ""
    with _text():
        line = input(prompt if terminal else "")
        if line.strip() == _BLOCK:
            lines = []
            while (line := input(more)).strip() != _BLOCK:
                lines.append(line)
            return "\n".join(lines).rstrip()
        lines = [line]
        while lines[-1].endswith(_GOES_ON):
            lines[-1] = lines[-1].removesuffix(_GOES_ON)
            lines.append(input(more))
        return "\n".join(lines).rstrip()


@contextlib.contextmanager
def _text() -> Iterator[None]:
    try:
        yield
    except UnicodeDecodeError:
        raise click.UsageError("the standard input is not text in UTF-8") from None
