"""What a test needs to follow a client at work: threads that report, callbacks that remember."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar

from servers import WAIT

from fluxbase_aichat import FluxbaseAIChat
from fluxbase_aichat.events import Event

__all__ = ["Heard", "Running", "client_threads", "counting", "run", "spy"]

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
