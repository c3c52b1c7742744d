"""What is needed for trying it out on one machine: a Redis, a worker and a dev server."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from .login import read_login

__all__ = ["all_of_it"]

_WORKER = ("worker", "--concurrency", "2", "--loglevel", "warning")
# It has no others to talk with.
_ALONE = ("--without-gossip", "--without-mingle", "--without-heartbeat")


@contextlib.contextmanager
def all_of_it() -> Iterator[None]:
    """Start what the variables do not name, and set them; end it all afterwards."""
    with contextlib.ExitStack() as stack:
        # The path of a socket must be short, which that of a user's folder may not be.
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if not os.environ.get("FLUXBASE_URL"):
            from fluxbase_aichat.devserver import DevServer  # noqa: PLC0415 - an extra

            server = stack.enter_context(DevServer(chunk_delay=0.02))
            ann = server.users["ann"]
            os.environ["FLUXBASE_URL"] = server.ws_url
            os.environ["FLUXBASE_EMAIL"], os.environ["FLUXBASE_PASSWORD"] = ann.email, ann.password
        read_login()  # a worker that cannot start would say so to nobody
        os.environ["CELERY_BROKER_URL"] = stack.enter_context(_redis(folder / "redis.sock"))
        stack.enter_context(_worker())
        yield


@contextlib.contextmanager
def _redis(socket: Path) -> Iterator[str]:
    """Run a Redis that keeps nothing and that nobody else reaches; give its URL."""
    program = shutil.which("redis-server")
    if program is None:
        raise SystemExit("redis-server is not installed; or set CELERY_BROKER_URL to a Redis")
    options = ["--port", "0", "--unixsocket", str(socket), "--save", "", "--appendonly", "no"]
    with _running([program, *options, "--dir", str(socket.parent)]) as process:
        assert process.stdout is not None  # noqa: S101 - for the type
        for line in process.stdout:
            if b"eady to accept connections" in line:
                break
        else:
            raise SystemExit(f"redis-server ended with {process.wait()}")
        yield f"redis+socket://{socket}"


@contextlib.contextmanager
def _worker() -> Iterator[None]:
    celery = [sys.executable, "-m", "celery", "-A", f"{__package__}.tasks"]
    with _running([*celery, *_WORKER, *_ALONE], stdout=subprocess.DEVNULL):
        yield


@contextlib.contextmanager
def _running(
    command: list[str], *, stdout: int = subprocess.PIPE
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program, out of reach of Ctrl-C: that is for the one that collects."""
    with subprocess.Popen(  # noqa: S603 - named above
        command, stdout=stdout, start_new_session=True
    ) as process:
        try:
            yield process
        finally:
            # With its children, and at once: nothing of it is needed any more.
            os.killpg(process.pid, signal.SIGKILL)
