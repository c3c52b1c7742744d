"""Commands as a person meets them: processes, some in a terminal, and calls in this process.

    with Process("chat", "keeper", terminal=True, **variables(server)) as chat:
        chat.until(PROMPT)

Its fixtures are imported by name.
"""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest
from click.testing import CliRunner, Result

from fluxbase_aichat import FluxbaseChatError
from fluxbase_aichat._harmless import harmless
from fluxbase_aichat.cli._app import app
from fluxbase_aichat.devserver import DevServer

__all__ = [
    "COMMAND",
    "DEADLINE",
    "ESCAPE",
    "PROMPT",
    "ROOT",
    "Process",
    "environment",
    "failure",
    "home",
    "interruptible",
    "invoke",
    "run",
    "server",
    "variables",
]

ROOT = Path(__file__).parent.parent
DEADLINE = 30.0
ESCAPE = "\x1b"
PROMPT = "\u276f "

COMMAND = (sys.executable, "-m", "fluxbase_aichat")
# A new session whose terminal is standard input, as a terminal emulator starts a shell: only
# then is a Ctrl-C that is typed there a SIGINT.
IN_TERMINAL = (
    sys.executable,
    "-c",
    "import os, sys; os.login_tty(0); os.execv(sys.executable, sys.argv[1:])",
    *COMMAND,
)


def environment(**variables: str) -> dict[str, str]:
    """Return the environment of a process, the same wherever the tests run."""
    unwanted = {"FORCE_COLOR", "NO_COLOR", "COLUMNS", "LINES", "TTY_COMPATIBLE", "CI"}
    kept = {name: value for name, value in os.environ.items() if name not in unwanted}
    path = os.pathsep.join(filter(None, [variables.pop("first_on_path", ""), str(ROOT)]))
    return kept | {"PYTHONPATH": path, "PYTHONUTF8": "1"} | variables


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command without a terminal."""
    return subprocess.run(  # noqa: S603 - our own command
        [*COMMAND, *arguments],
        cwd=ROOT,
        env=environment(**variables),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=DEADLINE,
        check=False,
    )


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """Give processes a SIGINT that is not ignored, as a shell in the background hands it down."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Process:
    """A running command: what it prints is waited for, and it is gone at the end."""

    def __init__(self, *arguments: str, terminal: bool = False, **variables: str) -> None:
        command = [*(IN_TERMINAL if terminal else COMMAND), *arguments]
        variables = {"PYTHONUNBUFFERED": "1"} | variables
        self.text = ""
        self._raw = b""
        self._seen = 0
        if terminal:
            self._end, inner = os.openpty()
            outer = inner
        else:
            inner = subprocess.DEVNULL
            self._end, outer = os.pipe()
        try:
            self._process = subprocess.Popen(  # noqa: S603 - our own command
                command,
                cwd=ROOT,
                env=environment(**variables),
                stdin=inner,
                stdout=outer,
                stderr=outer,
            )
        finally:
            os.close(outer)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._end)

    def until(self, *markers: str) -> str:
        """Read until the markers have come, in this order; return what came up to the last."""
        until = time.monotonic() + DEADLINE
        begin = self._seen
        for marker in markers:
            while (found := self.text.find(marker, self._seen)) < 0:
                assert self._read(until), f"{marker!r} did not come in {self.text[begin:]!r}"
            self._seen = found + len(marker)
        return self.text[begin : self._seen]

    def end(self) -> tuple[int, str]:
        """Read until it has ended; return its exit code and what came since the last marker."""
        until = time.monotonic() + DEADLINE
        while self._read(until):
            pass
        return self._process.wait(DEADLINE), self.text[self._seen :]

    def ended_within(self, seconds: float) -> bool:
        """Say whether it ends in time, reading what it writes meanwhile."""
        until = time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(self._end, selectors.EVENT_READ)
            while selector.select(max(0.0, until - time.monotonic())):
                if not self._read(until):
                    return True
        return False

    def type(self, text: str) -> None:
        """Press keys."""
        os.write(self._end, text.encode())

    def interrupt_at_prompt(self) -> None:
        """Press Ctrl-C until it ends.

        Python's readline misses a signal that comes between the prompt and its select(), until the
        next: then a person presses again.
        """
        self.type("\x03")
        while not self.ended_within(2):
            self.type("\x03")

    def interrupt(self) -> None:
        """Send what Ctrl-C sends."""
        self._process.send_signal(signal.SIGINT)

    def _read(self, until: float) -> bool:
        """Read what there is, without the sequences that colour it; `False` at the end."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._end, selectors.EVENT_READ)
            if not selector.select(max(0.0, until - time.monotonic())):
                pytest.fail(f"nothing came in time after {self.text!r}")
        try:
            data = os.read(self._end, 65536)
        except OSError:  # how Linux says that nobody has the terminal open any more
            return False
        # All of it again: a sequence or a character may have come in two pieces.
        self._raw += data
        self.text = harmless(self._raw.decode(errors="replace"))
        return bool(data)


@pytest.fixture
def server() -> Iterator[DevServer]:
    """Serve the shop."""
    with DevServer() as server:
        yield server


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep the logins of whoever runs the tests out of them."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path


def variables(server: DevServer, token: str | None = None) -> dict[str, str]:
    """Return what says which server it is, and that ann asks it."""
    return {"FLUXBASE_URL": server.ws_url, "FLUXBASE_TOKEN": token or server.token()}


def invoke(
    server: DevServer,
    *arguments: str,
    token: str | None = "",
    env: dict[str, str] | None = None,
    **options,
) -> Result:
    """Run a command in this process, as ann; `token=None` is anonymous."""
    env = variables(server) | ({} if token == "" else {"FLUXBASE_TOKEN": token}) | (env or {})
    return CliRunner().invoke(app, arguments, env=env, standalone_mode=False, **options)


def failure(result: Result) -> FluxbaseChatError:
    """Return the error that a command has ended with."""
    assert isinstance(result.exception, FluxbaseChatError), result
    return result.exception
