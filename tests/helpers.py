"""What a test needs to follow a client at work: threads that report, callbacks that remember."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar

import pytest
from servers import WAIT

from fluxbase_aichat import (
    FluxbaseAIChat,
    _answer,
    _connection,
    _dispatch,
    _net,
    _session,
    _telling,
    pool,
)
from fluxbase_aichat.events import Event

__all__ = ["Heard", "LockOrder", "Running", "client_threads", "counting", "run", "spy"]

T = TypeVar("T")


class Running(Generic[T]):
    """A call in a thread of its own."""

    def __init__(self, function: Callable[..., T], *args: Any, **options: Any) -> None:
        self._value: list[T] = []
        self._error: BaseException | None = None

        def call() -> None:
            try:
                self._value.append(function(*args, **options))
            except BaseException as error:  # noqa: BLE001 - raised again in result()
                self._error = error

        self._thread = threading.Thread(target=call, name="a test's call", daemon=True)
        self._thread.start()

    @property
    def ended(self) -> bool:
        """Whether the call has returned or raised."""
        return not self._thread.is_alive()

    def result(self, seconds: float = WAIT) -> T:
        """Wait for the end of the call; return or raise what it did."""
        self._thread.join(seconds)
        assert self.ended, f"the call has not ended within {seconds:g} s"
        if self._error is not None:
            raise self._error
        return self._value[0]


def run(function: Callable[..., T], *args: Any, **options: Any) -> Running[T]:
    """Call a function in a thread of its own."""
    return Running(function, *args, **options)


class Heard:
    """A callback that remembers what it was called with, and can be waited for."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._items: list[Any] = []

    def __call__(self, *arguments: Any) -> None:
        """Be called back."""
        with self._changed:
            self._items.append(arguments[0] if len(arguments) == 1 else arguments)
            self._changed.notify_all()

    @property
    def items(self) -> list[Any]:
        """The arguments of each call: a tuple, or the only one."""
        with self._changed:
            return self._items.copy()

    @property
    def types(self) -> list[str]:
        """The types of the events, where it is an `on_event`."""
        return [item.type for item in self.items if isinstance(item, Event)]

    def wait_for(self, predicate: Callable[[list[Any]], bool]) -> list[Any]:
        """Wait until `predicate(items)` holds; return the items."""
        with self._changed:
            held = self._changed.wait_for(lambda: predicate(self._items), WAIT)
            assert held, f"in vain; heard so far: {self._items!r:.500}"
            return self._items.copy()

    def wait_for_type(self, name: str, count: int = 1) -> None:
        """Wait for an event of that type, where it is an `on_event`."""
        self.wait_for(lambda items: sum(item.type == name for item in items) >= count)


def spy(target: object, name: str, after: Callable[..., object]) -> None:
    """Have `after(*arguments)` called behind each call of a method of this one object.

    Waiting for a call that blocks to have come so far needs a look inside.
    """
    method = getattr(target, name)

    def spied(*args: Any, **options: Any) -> Any:
        value = method(*args, **options)
        after(*args, **options)
        return value

    setattr(target, name, spied)


def counting(chat: FluxbaseAIChat, name: str = "submit") -> Callable[[], None]:
    """Return a function that waits until one more call has been registered with the session."""
    came = threading.Semaphore(0)
    spy(chat._session, name, lambda *_: came.release())

    def wait() -> None:
        assert came.acquire(timeout=WAIT), "no call was registered"

    return wait


def client_threads(before: Iterable[threading.Thread] = ()) -> list[str]:
    """Return the names of the library's threads that are alive and were not `before`."""
    new = [thread for thread in threading.enumerate() if thread not in before]
    return [thread.name for thread in new if thread.name.startswith("fluxbase-aichat")]


class LockOrder:
    """Watches the library's locks: which was taken while which was held, in any thread.

    It takes the place of `threading` in the modules that make locks; a lock is named after the
    class that has made it. What was made before is not watched.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._here = threading.local()
        self.edges: set[tuple[str, str]] = set()
        """Pairs: with the first held, the second was taken."""
        self.taken: set[str] = set()
        """The names of the locks that were taken."""
        for module in (_answer, _connection, _dispatch, _net, _session, _telling, pool):
            monkeypatch.setattr(module, "threading", self)

    def __getattr__(self, name: str) -> Any:
        """Be `threading` for all else."""
        return getattr(threading, name)

    def Lock(self) -> Any:  # noqa: N802 - its name is fixed
        """Make a watched lock."""
        return _WatchedLock(self, _maker(), threading.Lock())

    def RLock(self) -> Any:  # noqa: N802
        """Make a watched re-entrant lock."""
        return _WatchedRLock(self, _maker(), threading.RLock())

    def Condition(self, lock: Any = None) -> threading.Condition:  # noqa: N802
        """Make a condition with a watched lock."""
        return threading.Condition(lock or self.RLock())

    @property
    def held(self) -> list[_WatchedLock]:
        """What the current thread holds, in the order of taking."""
        if not hasattr(self._here, "held"):
            self._here.held = []
        locks: list[_WatchedLock] = self._here.held
        return locks

    def wants(self, lock: _WatchedLock) -> None:
        """Note what is held by whoever is about to take a lock."""
        self.taken.add(lock.name)
        if lock not in self.held:
            self.edges.update((held.name, lock.name) for held in self.held)

    def check(self) -> None:
        """Fail when two threads could wait for each other: when the order has a cycle."""
        after: dict[str, set[str]] = {}
        for first, second in self.edges:
            after.setdefault(first, set()).add(second)
        for name in after:
            reached: set[str] = set()
            todo = [name]
            while todo:
                new = after.get(todo.pop(), set()) - reached
                reached |= new
                todo.extend(new)
            assert name not in reached, f"{name} may wait for itself: {sorted(self.edges)}"


class _WatchedLock:
    """A lock that reports to a `LockOrder`."""

    def __init__(self, order: LockOrder, name: str, lock: Any) -> None:
        self.order = order
        self.name = name
        self.lock = lock

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        self.order.wants(self)
        taken: bool = self.lock.acquire(blocking, timeout)
        if taken:
            self.order.held.append(self)
        return taken

    def release(self) -> None:
        self.order.held.remove(self)
        self.lock.release()

    def locked(self) -> bool:
        return bool(self.lock.locked())

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


class _WatchedRLock(_WatchedLock):
    """With what a condition needs of its lock."""

    def _is_owned(self) -> bool:
        return bool(self.lock._is_owned())

    def _release_save(self) -> tuple[Any, int]:
        count = self.order.held.count(self)
        for _ in range(count):
            self.order.held.remove(self)
        return self.lock._release_save(), count

    def _acquire_restore(self, saved: tuple[Any, int]) -> None:
        state, count = saved
        self.order.wants(self)
        self.lock._acquire_restore(state)
        self.order.held.extend([self] * count)


def _maker() -> str:
    """Return the class of the object that is made two calls up."""
    return type(sys._getframe(2).f_locals["self"]).__name__
