"""The command line: `main()`. Nothing is imported that a plain installation lacks, until it runs.

Each command is a module of this package; `_app` lists them.
"""

from __future__ import annotations

import io
import sys

from fluxbase_aichat.errors import MissingExtraError

__all__ = ["main"]


def main() -> int:
    """Run the command line and return its exit code.

    0 is success, 1 an error of the library, 2 a wrong call or a missing extra, 130 Ctrl-C.
    """
    for stream in (sys.stdout, sys.stderr):
        # What the terminal's encoding lacks becomes a question mark instead of a traceback.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
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

    return run()
