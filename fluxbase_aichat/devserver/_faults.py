"""The faults that a test can switch on in the dev server. Nothing here touches a socket."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Final, Literal

__all__ = ["Faults"]

_OFF: Final[dict[str, Any]] = {
    "refuse": False,
    "dribble": False,
    "stall": None,
    "drop": None,
    "garbage": None,
    "unauthorized": False,
    "status": None,
    "retry_after": None,
    "after": 2,
    "times": None,
}


class Faults:
    """What goes wrong, until it is set otherwise; thread-safe, may be set at any time.

    An attribute is set by itself (`server.faults.drop = 3`) or with others by `set()`. With `times`
    the next fault that strikes so many times clears everything.
    """

    refuse: bool
    """The port is closed; connections that are open stay so. Takes effect before it returns."""
    dribble: bool
    """Everything is sent one byte at a time."""
    stall: Literal["handshake", "turn"] | None
    """Nothing is answered: no request at all, or no turn beyond its frame `after`. Goes on when
    it is set otherwise."""
    drop: int | None
    """The TCP connection is cut after so many frames of a turn, which goes on without it."""
    garbage: str | None
    """This text is sent as a frame after the frame `after` of a turn."""
    unauthorized: bool
    """Every request is answered with 401."""
    status: int | None
    """Every request is answered with this status."""
    retry_after: float | str | None
    """The `Retry-After` that goes with it."""
    after: int
    """Where in a turn `stall` and `garbage` strike."""
    times: int | None
    """How often a fault strikes before all are cleared; `None`: until then."""

    def __init__(self, changed: Callable[[frozenset[str]], None]) -> None:
        object.__setattr__(self, "_lock", threading.Lock())
        object.__setattr__(self, "_changed", changed)
        for name, value in _OFF.items():
            object.__setattr__(self, name, value)

    def __setattr__(self, name: str, value: Any) -> None:
        self.set(**{name: value})

    def __repr__(self) -> str:
        on = {name: getattr(self, name) for name in _OFF if getattr(self, name) != _OFF[name]}
        return f"Faults({', '.join(f'{name}={value!r}' for name, value in on.items())})"

    def set(self, **values: Any) -> None:
        """Set several at once; raises `TypeError`, and sets nothing, if one is no fault."""
        unknown = values.keys() - _OFF.keys()
        if unknown:
            raise TypeError(f"no such fault: {', '.join(sorted(unknown))}")
        with self._lock:
            changed = frozenset(name for name in values if values[name] != getattr(self, name))
            for name, value in values.items():
                object.__setattr__(self, name, value)
        self._changed(changed)

    def clear(self) -> None:
        """Switch everything off."""
        self.set(**_OFF)

    def strikes(self, name: str) -> Any:
        """Return the value of the fault `name`, counting it if it is on."""
        if not getattr(self, name):  # the usual case takes no lock
            return None
        with self._lock:
            value = getattr(self, name)
            if not value or self.times is None:
                return value
            object.__setattr__(self, "times", self.times - 1)
            if self.times > 0:
                return value
        self.clear()
        return value

    _lock: threading.Lock
    _changed: Callable[[frozenset[str]], None]
