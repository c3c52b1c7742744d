"""Shows an answer while it grows: in the cell of a notebook, or as text where there is none.

It waits for nothing and asks nobody; IPython is looked for where it runs already, never imported
elsewhere.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Sequence
from typing import Any, Final

from . import events
from ._harmless import harmless, harmless_markdown
from ._wire import ContentRun
from .errors import FluxbaseChatError, TurnCancelledError
from .results import QueryResult, ToolOutput

__all__ = ["Live", "follow_cells"]

_FRAME: Final = 0.1
"""Seconds between two pictures, at least."""
_RATE: Final = 100_000
"""Characters of pictures a second, for each is the whole text again: Jupyter drops the output of a
cell that sends more than 1 MB a second (`iopub_data_rate_limit`)."""

# What is markup in the middle of a line; a note never begins one.
_MARKUP: Final = re.compile(r"([\\`*_\[\]|~$])")


class Live:
    """An answer that is shown as it comes. For one thread."""

    def __init__(self) -> None:
        self._screen: _Cell | _Terminal = _Cell() if _kernel_shell() else _Terminal()

    @property
    def patience(self) -> float | None:
        """Seconds after which `show` is to be called again, with nothing; `None` is never."""
        return self._screen.patience

    def show(self, items: Sequence[events.Event | ContentRun]) -> None:
        """Show what came next."""
        for item in items:
            match item:
                case ContentRun():
                    self._screen.text("".join(item.deltas))
                case events.Content():
                    self._screen.text(item.delta)
                case events.Progress():
                    self._screen.step(" ".join(harmless(item.message or item.step).split()))
                case events.QueryResultEvent():
                    self._screen.result(item.result)
                case events.ToolResult():
                    self._screen.result(item.output.query_result or item.output)
        self._screen.refresh()

    def end(self, error: FluxbaseChatError | None) -> None:
        """Show the whole answer, or that it has none and why."""
        if error is None:
            self._screen.end("")
        elif isinstance(error, TurnCancelledError):
            self._screen.end("Cancelled.")
        else:
            self._screen.end(f"The answer broke off: {type(error).__name__}.")


class _Cell:
    """Outputs of the cell that runs. Only the last of them still changes."""

    def __init__(self) -> None:
        self._handle: Any = None
        self._text = ""
        self._step = ""
        self._due = float("-inf")
        self._stale = False

    @property
    def patience(self) -> float | None:
        return max(0.0, self._due - time.monotonic()) if self._stale else None

    def text(self, delta: str) -> None:
        self._text += delta
        self._stale = True

    def step(self, message: str) -> None:
        self._step = message
        self._stale = True

    def result(self, result: QueryResult | ToolOutput) -> None:
        self._step = ""
        if self._text.strip():
            self._paint()
            self._handle = None
        self._update({"text/html": result._repr_html_(), "text/plain": repr(result)})
        self._handle = None
        self._text = ""
        self._stale = False

    def refresh(self) -> None:
        if self._stale and time.monotonic() >= self._due:
            self._paint()

    def end(self, note: str) -> None:
        self._step = note
        if self._handle is not None or self._text.strip() or note:
            self._paint()

    def _paint(self) -> None:
        step = _MARKUP.sub(r"\\\1", self._step)
        parts = [self._text.rstrip(), f"*{step}*" if step else ""]
        markdown = harmless_markdown("\n\n".join(part for part in parts if part))
        self._update({"text/markdown": markdown, "text/plain": markdown})

    def _update(self, bundle: dict[str, str]) -> None:
        if self._handle is None:
            from IPython.display import display  # noqa: PLC0415 - it runs here

            self._handle = display(bundle, raw=True, display_id=True)
        else:
            self._handle.update(bundle, raw=True)
        self._due = time.monotonic() + _FRAME + len(bundle["text/plain"]) / _RATE
        self._stale = False


class _Terminal:
    """Text on the standard output, as it comes."""

    patience: float | None = None

    def __init__(self) -> None:
        self._at_start = True

    def text(self, delta: str) -> None:
        delta = harmless(delta)
        self._write(delta)

    def step(self, message: str) -> None:
        self._line(f"[{message}]")

    def result(self, result: QueryResult | ToolOutput) -> None:
        if isinstance(result, QueryResult):
            self._line(harmless(result.query))
        self._line(repr(result))

    def refresh(self) -> None:
        sys.stdout.flush()

    def end(self, note: str) -> None:
        self._line(note)
        self.refresh()

    def _line(self, text: str) -> None:
        if not self._at_start:
            self._write("\n")
        if text:
            self._write(f"{text}\n")

    def _write(self, text: str) -> None:
        if text:
            sys.stdout.write(text)
            self._at_start = text.endswith("\n")


def follow_cells() -> None:
    """Have what this thread displays land in the cell whose context it runs in, not in the newest.

    From ipykernel 7 on it does; in 6 only what is printed does.
    """
    shell = _kernel_shell()
    publisher = getattr(shell, "display_pub", None)
    if hasattr(publisher, "_parent_header"):
        return
    register = getattr(publisher, "register_hook", None)  # for this thread alone
    if register is not None:
        register(_to_the_cell_that_asked)


def _to_the_cell_that_asked(message: dict[str, Any]) -> dict[str, Any]:
    header = getattr(sys.stdout, "parent_header", None)
    return {**message, "parent_header": header} if header else message


def _kernel_shell() -> Any:
    """Return IPython's shell if it shows its outputs in cells."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell if getattr(shell, "kernel", None) is not None else None
