"""Runs an application under gunicorn: `web_app.py APPLICATION WORKER NAME=VALUE ...`.

It is `flask_app` or `django_app`, the examples, or `wsgi`, which is beside this file. The values
are variables for it; `WORKERS` and `THREADS` are gunicorn's. It prints its port, once it listens,
on which the workers accept.
"""

# ruff: noqa: T201 - it talks with its test by lines

import os
import sys
from importlib import import_module

from gunicorn.app.base import BaseApplication


def ready(server):
    """Say where it listens."""
    print(server.LISTENERS[0].sock.getsockname()[1], flush=True)


class Application(BaseApplication):
    """The application of that name."""

    def load_config(self):
        """Set the workers of that kind."""
        gthread = sys.argv[2] == "gthread"
        for name, value in {
            "bind": "127.0.0.1:0",
            "workers": int(os.environ.get("WORKERS", "2")),
            "worker_class": sys.argv[2],
            "threads": int(os.environ.get("THREADS", "4")) if gthread else 1,
            "preload_app": True,
            "when_ready": ready,
            "loglevel": "warning",
            "graceful_timeout": 5,
            "control_socket_disable": True,
        }.items():
            if name in self.cfg.settings:
                self.cfg.set(name, value)

    def load(self):
        """Make it."""
        if sys.argv[1] == "flask_app":
            return import_module("examples.flask_app.app").create_app()
        return import_module(
            "examples.django_app.wsgi" if sys.argv[1] == "django_app" else "wsgi"
        ).application


os.environ.update(setting.split("=", 1) for setting in sys.argv[3:])
Application().run()
