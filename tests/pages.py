"""Pages with examples: their blocks, and how a block of Python is run as its reader would."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from fluxbase_aichat.devserver import DevServer

__all__ = ["ROOT", "blocks", "run"]

ROOT = Path(__file__).parent.parent

# What stands in a page for the reader's own, the longer one first.
URL = '"ws://localhost:8080/ai/ws"'
TOKENS = ('"my-jwt-token"', '"my-jwt"')


def blocks(language: str, text: str) -> list[str]:
    """Return a page's blocks of a language."""
    found = re.finditer(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [match[1] for match in found]


def run(block: str, page: Path, server: DevServer, names: dict[str, Any]) -> None:
    """Run a block as a reader with a server and a token, who has these names already."""
    # Numbered as in the page, so that a traceback shows the line to mend.
    text = page.read_text(encoding="utf-8")
    block = "\n" * text[: text.index(block)].count("\n") + block
    block = block.replace(URL, repr(server.ws_url))
    for token in TOKENS:
        block = block.replace(token, repr(server.token()))
    exec(compile(block, page.name, "exec"), names)  # noqa: S102 - our own pages
