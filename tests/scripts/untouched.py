"""Compares the process before the import, after it and after a chat: `untouched.py URL`."""

# ruff: noqa: T201 - it talks with its test by lines

import logging
import os
import signal
import socket
import sys
import threading
import warnings
from pathlib import Path

FDS = Path("/proc/self/fd")


def state():
    """Return what a library could change."""
    return {
        "threads": threading.active_count(),
        "descriptors": len(list(FDS.iterdir())) if FDS.is_dir() else 0,
        "signals": [signal.getsignal(number) for number in signal.valid_signals()],
        "logging": (logging.root.level, list(logging.root.handlers), logging.lastResort),
        "environment": dict(os.environ),
        "timeout": socket.getdefaulttimeout(),
        "hooks": (sys.excepthook, sys.unraisablehook, threading.excepthook, sys.gettrace()),
        "warnings": list(warnings.filters),
        "directory": Path.cwd(),
        "switch interval": sys.getswitchinterval(),
    }


before = state()
from fluxbase_aichat import FluxbaseAIChat  # noqa: E402

imported = state()
assert before == imported, (before, imported)

with FluxbaseAIChat(sys.argv[1], on_content=len) as chat:
    chat.ask("support", "Hi")
used = state()
assert before == used, (before, used)
print("untouched")
