"""What holds for every test: no hang, nothing left behind, no settings from outside."""

from __future__ import annotations

import faulthandler
import gc
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

# What users get for their tests serves these as well.
pytest_plugins = ["fluxbase_aichat.testing"]

HANG_SECONDS = 60.0
"""A test that takes longer has deadlocked: all stacks are printed, and the run ends."""
LEFT_SECONDS = 3.0
"""How long a thread may take to end after its test."""

SLOW_SECONDS = 0.005
"""A collection that takes longer looks at more than tests make."""

DESCRIPTORS = Path("/proc/self/fd")

hypothesis.settings.register_profile("local", deadline=None, database=None)
hypothesis.settings.register_profile("ci", deadline=None, database=None, derandomize=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "local")

_stderr: list[int] = []


def pytest_configure() -> None:
    """Keep the real stderr: while a test runs, pytest has taken the descriptor away.

    A shell's job in the background ignores Ctrl-C, and so would the processes of the tests.
    """
    _stderr.append(os.dup(2))
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_unconfigure() -> None:
    """Give it back."""
    faulthandler.cancel_dump_traceback_later()
    while _stderr:
        os.close(_stderr.pop())


def pytest_collection_finish() -> None:
    """Make the collections after each test cheap: what was imported is never garbage."""
    gc.collect()
    gc.freeze()


def collect() -> None:
    """Collect garbage after a test, quickly: this was a third of the suite's time."""
    started = time.perf_counter()
    gc.collect()
    if time.perf_counter() - started > SLOW_SECONDS:
        gc.freeze()  # a test has imported something large, which is never garbage


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol() -> Iterator[None]:
    """Arm the hang guard for one test, its fixtures included."""
    faulthandler.dump_traceback_later(HANG_SECONDS, exit=True, file=_stderr[0])
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


def descriptors() -> dict[int, str]:
    """Return the open descriptors and what they are; nothing where the system does not say."""
    if not DESCRIPTORS.is_dir():
        return {}
    found = {}
    for entry in DESCRIPTORS.iterdir():
        try:
            found[int(entry.name)] = str(entry.readlink())
        except OSError:  # the one that was used for looking
            continue
    return found


def join(thread: threading.Thread, seconds: float) -> None:
    """Wait for a thread's end, also for one that is just being started."""
    while True:
        try:
            thread.join(seconds)
        except RuntimeError:
            continue  # it has yet to begin
        return


def running(before: set[threading.Thread]) -> list[threading.Thread]:
    """Return the threads that were not there before and do not end in time."""
    until = time.monotonic() + LEFT_SECONDS
    # What was started without join() knows its threads in threading.enumerate() only.
    for thread in threading.enumerate():
        if thread not in before and thread is not threading.current_thread():
            join(thread, max(0.0, until - time.monotonic()))
    return [t for t in threading.enumerate() if t not in before and t.is_alive()]


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """Fail a test that leaves a thread, a descriptor or a failed finalizer behind.

    pytest itself turns exceptions of threads and finalizers into warnings, which are errors.
    """
    threads, files = set(threading.enumerate()), descriptors().items()
    yield
    collect()
    left = [thread.name for thread in running(threads)]
    assert not left, f"threads are left: {left}"
    if descriptors().items() - files:
        collect()  # what only those threads held
    opened = descriptors().items() - files
    assert not opened, f"descriptors are left: {opened}"


@pytest.fixture(autouse=True)
def no_settings_from_outside(nothing_left: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the variables that the client and its command line read."""
    for name in list(os.environ):
        if name.startswith("FLUXBASE_"):
            monkeypatch.delenv(name)
