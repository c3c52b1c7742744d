"""The command line: `main()`. Nothing is imported that a plain installation lacks, until it runs.

Each command is a module of this package; `_app` lists them.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from pathlib import Path

from fluxbase_aichat.errors import MissingExtraError

__all__ = ["main"]


def main() -> int:
    """Run the command line and return its exit code; `ask --help` says which there are."""
    _open_streams()
    try:
        code = _run()
    except KeyboardInterrupt:  # before there is a command to be interrupted
        return 130
    try:
        sys.stdout.flush()
    except OSError as error:
        return _lost(error)
    return code


def _run() -> int:
    try:
        import click  # noqa: F401, PLC0415 - an extra
        import rich  # noqa: F401, PLC0415 - an extra
    except ImportError as error:
        missing = MissingExtraError(
            f"the command line needs {error.name}: pip install 'fluxbase-aichat[cli]'"
        )
        print(f"Error: {missing}", file=sys.stderr)  # noqa: T201 - click is what is missing
        return 2
    from ._app import run  # noqa: PLC0415 - needs click

    try:
        return run()
    except OSError as error:
        return _lost(error)


def _open_streams() -> None:
    """Make the standard streams such that using them raises nothing but `OSError`."""
    # A process may be started without them. The first descriptors that are free are theirs, so
    # that no socket becomes the standard output of a process of ours.
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        # What the terminal's encoding lacks becomes a question mark instead of a traceback.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _lost(error: OSError) -> int:
    """Say that what was to be written could not be, on a full disk for example; return 1."""
    what = f"read or write {error.filename}" if error.filename else "write the output"
    with contextlib.suppress(OSError):
        print(f"Error: cannot {what}: {error.strerror or error}", file=sys.stderr)  # noqa: T201
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            # What it still holds would be tried, and told, once more at the interpreter's exit.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
    return 1
