"""Runs a script of this folder in a process of its own, and talks with it by lines."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import attr
import websocket

__all__ = ["INTERRUPTED", "Script", "find_python"]

SECONDS: Final = 20.0
"""A script that takes longer hangs, where its test allows no more; its stacks are on its stderr."""

INTERRUPTED: Final = -signal.SIGINT
"""How a process ends that does not catch `KeyboardInterrupt`."""

FOLDER: Final = Path(__file__).parent
PATHS: Final = [FOLDER.parent.parent, *(Path(m.__file__).parent.parent for m in (attr, websocket))]


class Script:
    """`with Script("name.py", url, ...) as script:`; what runs at the end is killed."""

    def __init__(
        self,
        name: str,
        *arguments: str,
        python: str = sys.executable,
        options: tuple[str, ...] = (),
        seconds: float = SECONDS,
    ) -> None:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("FLUXBASE_")}
        environment["PYTHONPATH"] = os.pathsep.join(map(str, PATHS))
        # A file never fills up while its stdout is read.
        self._stderr = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115 - in __exit__
        self._process = subprocess.Popen(  # noqa: S603 - our own script
            [python, "-X", "faulthandler", *options, str(FOLDER / name), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            env=environment,
            start_new_session=True,
        )
        self._guard = threading.Timer(seconds, self._kill, [signal.SIGABRT])
        self._guard.daemon = True
        self._guard.start()
        self.took = 0.0
        """Seconds from the last line read, or the interrupt, to the end."""
        self._since = time.monotonic()

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    def line(self) -> str:
        """Wait for the next line of its stdout, and return it."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline().rstrip("\n")
        self._since = time.monotonic()
        if not line:
            status, out, err = self.end()
            raise AssertionError(f"it ended with {status}, and not with a line: {out}{err}")
        return line

    def say(self, line: str = "go") -> None:
        """Write a line to its stdin."""
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def interrupt(self) -> None:
        """Press Ctrl-C."""
        self._since = time.monotonic()
        self._process.send_signal(signal.SIGINT)

    def terminate(self) -> None:
        """Ask it to end."""
        self._process.terminate()

    def end(self) -> tuple[int, str, str]:
        """Wait for its end; return its status, the rest of its stdout, and its stderr."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        # Not communicate(): it misses what was read into a buffer behind a line.
        out = self._process.stdout.read()
        status = self._process.wait()
        self.took = time.monotonic() - self._since
        self._stderr.seek(0)
        return status, out, self._stderr.read()

    def _kill(self, number: int) -> None:
        # Its own session: what it has started goes with it.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._guard.cancel()
        self._guard.join()
        self._kill(signal.SIGKILL)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._stderr):
            assert stream is not None
            with contextlib.suppress(OSError):
                stream.close()


def find_python(version: str) -> str | None:
    """Return another interpreter, as `3.13`; `None` where there is none."""
    root = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    found = [str(path) for path in sorted((root / "versions").glob(f"{version}.*/bin/python"))]
    on_path = shutil.which(f"python{version}")
    for path in [*([on_path] if on_path else []), *found]:
        answer = subprocess.run(  # noqa: S603 - it says which version it is
            [path, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"],
            capture_output=True,
            text=True,
            check=False,
        )
        if answer.stdout.strip() == version:
            return path
    return None
