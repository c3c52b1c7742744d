"""Makes a server's text harmless for a terminal or a notebook. Nothing here prints."""

from __future__ import annotations

import re
from typing import Final

__all__ = ["harmless", "harmless_markdown"]

# ECMA-48: a control sequence, a control string (a title, a link, a clipboard) with its end, and
# the shorter escapes. Each also in its form of one character, 0x80 to 0x9f.
_SEQUENCES: Final = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"
    r"|(?:\x1b[PX\]^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)"
    r"|\x1b[ -/]*[0-OQ-WYZ\\`-~]"
)
# What is left of control characters, and those that turn the direction of writing round.
_CONTROLS: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u202a-\u202e\u2066-\u2069]")
# What begins HTML in Markdown, and a picture, which the browser would fetch from anywhere. A
# notebook trusts what it has just run, and a row may have told the model what to write.
_HTML: Final = re.compile(r"<(?=[A-Za-z/!?])")
_PICTURE: Final = re.compile(r"!(?=\[)")
_SURROGATES: Final = re.compile(r"[\ud800-\udfff]")


def harmless(text: str) -> str:
    """Return `text` without escape sequences and control characters but newline and tab.

    Half of a surrogate pair, which no terminal can be sent, becomes U+FFFD.
    """
    text = _SEQUENCES.sub("", text.replace("\r\n", "\n"))
    return _SURROGATES.sub("\ufffd", _CONTROLS.sub("", text))


def harmless_markdown(text: str) -> str:
    """Return some Markdown without HTML and pictures: both can be read, and neither does a thing.

    It does not look for code, where the escapes can be seen: what is code to one renderer is
    HTML to another.
    """
    text = _PICTURE.sub(r"!\\", _HTML.sub("&lt;", text))
    return _SURROGATES.sub("\ufffd", text)
