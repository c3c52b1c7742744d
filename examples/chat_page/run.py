"""Runs an application with one command, for trying it out; a web server is gunicorn's task."""

from __future__ import annotations

import argparse
import contextlib
import os
import secrets
import signal
import socketserver
import tempfile
from collections.abc import Callable, Iterator
from typing import Any
from wsgiref import simple_server

__all__ = ["run"]


class _Threaded(socketserver.ThreadingMixIn, simple_server.WSGIServer):
    """A thread a request: an answer that streams keeps nobody waiting."""

    daemon_threads = True


class _Quiet(simple_server.WSGIRequestHandler):
    """Logs no request: the applications log what went wrong."""

    def log_message(self, *_: Any) -> None:
        """Be quiet."""


def run(make: Callable[[], Any]) -> None:
    """Serve the application that `make` returns, until Ctrl-C."""
    parser = argparse.ArgumentParser(description="A chat in the browser.")
    parser.add_argument("--port", type=int, default=8000, help="0 picks a free one")
    port = parser.parse_args().port
    # As Ctrl-C: the folder of the sessions, in which tokens are, must not be left behind.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with _settings() as who:
        application = make()
        try:
            web = simple_server.make_server("127.0.0.1", port, application, _Threaded, _Quiet)
        except (OSError, OverflowError) as error:
            raise SystemExit(f"cannot listen on port {port}: {error}; --port 0 picks one") from None
        with web, contextlib.suppress(KeyboardInterrupt):
            print(f"http://127.0.0.1:{web.server_port}/{who}", flush=True)
            web.serve_forever(0.1)


@contextlib.contextmanager
def _settings() -> Iterator[str]:
    """Set what is not set: without `FLUXBASE_URL` to a dev server in this process."""
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        os.environ.setdefault("CHAT_DATA", folder)
        os.environ.setdefault("CHAT_SECRET_KEY", secrets.token_hex())
        if os.environ.get("FLUXBASE_URL"):
            yield ""
            return
        from fluxbase_aichat.devserver import DevServer  # noqa: PLC0415 - an extra

        server = stack.enter_context(DevServer(chunk_delay=0.02))
        os.environ["FLUXBASE_URL"] = server.ws_url
        yield "   sign in as ann@example.com with ann-password"
