"""The library's edge: a traceback ends there, at the line of the user's that called.

Where in here an error of ours came to be says nothing to a user; its text does. Python's
development mode (`python -X dev`) shows all frames.
"""

from __future__ import annotations

import functools
import sys
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import ParamSpec, TypeVar

from .errors import FluxbaseChatError

__all__ = ["brief", "edge"]

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
    while frames is not None:
        # What attrs has written for us has no name.
        name = str(frames.tb_frame.f_globals.get("__name__", "attr"))
        if name.partition(".")[0] not in (_PACKAGE, "attr"):
            break
        frames = frames.tb_next
    return frames
