"""The library's edge: a traceback ends there, at the line of the user's that called.

Where in here an error of ours came to be says nothing to a user; its text does. Python's
development mode (`python -X dev`) shows all frames.
"""

from __future__ import annotations

import functools
import sys
import traceback
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import ParamSpec, TypeVar

from .errors import FluxbaseChatError

__all__ = ["brief", "edge", "edge_at_init"]

P = ParamSpec("P")
R = TypeVar("R")

_PACKAGE = __name__.partition(".")[0]


def edge(function: Callable[P, R]) -> Callable[P, R]:
    """Have a public function raise the library's errors without the frames below it."""

    @functools.wraps(function)
    def edged(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except FluxbaseChatError as error:
            # A shell keeps the last traceback, and with its frames the client, which the next
            # run of a notebook's connecting cell replaces.
            del args, kwargs
            brief(error)
            raise
        except BaseException as error:
            if "ipykernel" in sys.modules:
                traceback.clear_frames(error.__traceback__)
                del args, kwargs
            raise

    return edged


def edge_at_init(kind: type[R]) -> type[R]:
    """Have a class whose `__init__` attrs has written raise as `edge` says."""
    kind.__init__ = edge(kind.__init__)  # type: ignore[method-assign]
    return kind


def brief(error: BaseException) -> None:
    """Take our frames out of an error that is raised again, and out of its causes.

    Those of user code that the library has called, such as `token()`, stay.
    """
    cause: BaseException | None = error
    known: set[int] = set()
    while cause is not None and id(cause) not in known and not sys.flags.dev_mode:
        known.add(id(cause))
        cause.__traceback__ = _foreign(cause.__traceback__)
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)


def _foreign(frames: TracebackType | None) -> TracebackType | None:
    while frames is not None and _is_ours(frames.tb_frame):
        frames = frames.tb_next
    return frames


def _is_ours(frame: FrameType) -> bool:
    name = frame.f_globals.get("__name__")
    if name is None:  # written by attrs, whose "file" is named after the class
        return f" {_PACKAGE}." in frame.f_code.co_filename
    return str(name).partition(".")[0] in (_PACKAGE, "attr")
