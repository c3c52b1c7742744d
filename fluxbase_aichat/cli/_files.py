"""Files written whole or not at all, and locks between processes. It knows nobody's contents."""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
from pathlib import Path
from typing import IO, Any

__all__ = ["lock", "write_whole"]


def write_whole(file: Path, text: str, *, private: bool = False) -> None:
    """Write all of a file, or leave it as it was: whoever is interrupted loses nothing.

    A `private` one is its owner's alone. Raises `OSError`.
    """
    file = Path(os.path.realpath(file))  # a link stays one
    mode = 0o600 if private else 0o666
    temporary = file.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        with open(  # Path.open() takes no opener
            temporary,
            "x",
            encoding="utf-8",
            newline="",
            opener=lambda path, flags: os.open(path, flags, mode),
        ) as opened:
            opened.write(text)
            opened.flush()
            os.fsync(opened.fileno())
        temporary.replace(file)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def lock(file: IO[Any], *, wait: bool) -> bool:
    """Lock an open file until it is closed; say whether no other process has it locked.

    Where there are no locks, on Windows and on some network drives, nobody has.
    """
    if sys.platform != "win32":
        import fcntl  # noqa: PLC0415 - not on Windows

        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            return False
        except OSError:
            pass
    return True
