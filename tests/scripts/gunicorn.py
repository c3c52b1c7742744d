"""Runs wsgi.py under gunicorn with two preloaded workers: `gunicorn.py URL WORKER`.

It prints its port, once it listens, on which the workers accept.
"""

# ruff: noqa: T201 - it talks with its test by lines

import os
import sys
from pathlib import Path

# This folder is where this file was started from, and gunicorn is not this file.
HERE = str(Path(__file__).parent)
sys.path.remove(HERE)

from gunicorn.app.base import BaseApplication  # noqa: E402


def ready(server):
    """Say where it listens."""
    print(server.LISTENERS[0].sock.getsockname()[1], flush=True)


class Application(BaseApplication):
    """The application of wsgi.py."""

    def load_config(self):
        """Set two workers of that kind."""
        for name, value in {
            "bind": "127.0.0.1:0",
            "workers": 2,
            "worker_class": sys.argv[2],
            "threads": 2 if sys.argv[2] == "gthread" else 1,
            "preload_app": True,
            "when_ready": ready,
            "loglevel": "warning",
            "graceful_timeout": 5,
            "control_socket_disable": True,
        }.items():
            if name in self.cfg.settings:
                self.cfg.set(name, value)

    def load(self):
        """Import it."""
        sys.path.insert(0, HERE)
        from wsgi import application  # noqa: PLC0415 - preloading is what is tested

        return application


os.environ["CHAT_URL"] = sys.argv[1]
Application().run()
