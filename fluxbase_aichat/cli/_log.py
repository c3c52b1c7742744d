"""Shows the library's log on the terminal when `FLUXBASE_AICHAT_LOG` asks for it."""

from __future__ import annotations

import logging
import os
import sys
from typing import Final

import click

from fluxbase_aichat._harmless import harmless

__all__ = ["VARIABLE", "show_log"]

VARIABLE: Final = "FLUXBASE_AICHAT_LOG"
"""Names a level: `debug`, `info`, `warning` or `error`."""

_LEVELS: Final = ("debug", "info", "warning", "error")


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        """Write a record with its ids behind it, and without what a terminal would obey."""
        ids = [(name, getattr(record, name, "")) for name in ("chatbot", "conversation_id")]
        told = " ".join(f"{name}={value}" for name, value in ids if value)
        return harmless(super().format(record)) + (f" [{harmless(told)}]" if told else "")


def show_log() -> None:
    """Log to the standard error, if the environment says so.

    Raises `click.UsageError` for a level that does not exist.
    """
    level = os.environ.get(VARIABLE, "").strip().lower()
    if not level:
        return
    if level not in _LEVELS:
        raise click.UsageError(f"{VARIABLE} must be one of {', '.join(_LEVELS)}, not {level!r}")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger = logging.getLogger("fluxbase_aichat")
    logger.addHandler(handler)
    logger.setLevel(level.upper())
