"""Some Markdown that grows: which paragraphs of it are complete. It prints nothing."""

from __future__ import annotations

import itertools
from typing import Final

__all__ = ["Paragraphs"]

_FENCE: Final = ("```", "~~~")


class Paragraphs:
    """The text that came and was not taken. Each line is looked at once, however long the text."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        """The complete ones."""
        self._complete = 0
        """As many of them are complete paragraphs."""
        self._fence: int | None = None
        """The line with the fence that is open."""
        self._rest: list[str] = []
        """The pieces of the last line."""

    def __bool__(self) -> bool:
        return bool(self._lines or self._rest)

    def add(self, text: str) -> None:
        """Go on with some text."""
        if "\n" not in text:
            self._rest.append(text)
            return
        *lines, rest = ("".join(self._rest) + text).split("\n")
        self._rest = [rest] if rest else []
        for line in lines:
            if line.lstrip().startswith(_FENCE):
                self._fence = len(self._lines) if self._fence is None else None
            self._lines.append(f"{line}\n")
            # A blank line inside a fence ends nothing.
            if self._fence is None and not line.strip():
                self._complete = len(self._lines)

    def take(self) -> str:
        """Return the complete paragraphs, and keep the rest."""
        if not self._complete:
            return ""
        lines, self._lines = self._lines[: self._complete], self._lines[self._complete :]
        if self._fence is not None:
            self._fence -= self._complete
        self._complete = 0
        return "".join(lines)

    def take_all(self) -> str:
        """Return all there is."""
        text = "".join([*self._lines, *self._rest])
        self._lines, self._rest, self._complete, self._fence = [], [], 0, None
        return text

    def end(self, width: int, height: int) -> str:
        """Return about as much of its end as a terminal of this size has room for."""
        last = "".join(self._rest)[-width * height :]
        found: list[str] = []
        for line in itertools.chain([last], reversed(self._lines)):
            height -= 1 + len(line) // width
            if found and height < 0:
                break
            found.append(line)
        first = len(self._lines) + 1 - len(found)
        if self._fence is not None and self._fence < first:
            found.append(self._lines[self._fence])  # it is code all the same
        return "".join(reversed(found))
