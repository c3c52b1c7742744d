"""Builds the documentation into build/docs, with every warning an error.

python -m docs
"""

from __future__ import annotations

import sys
from pathlib import Path

from sphinx.cmd.build import build_main

SOURCE = Path(__file__).parent
TARGET = SOURCE.parent / "build" / "docs"


def main() -> int:
    """Build the pages and say where they are."""
    options = ["-b", "html", "--fail-on-warning", "--keep-going", "--quiet"]
    code = build_main([*options, *sys.argv[1:], str(SOURCE), str(TARGET)])
    if code == 0:
        sys.stdout.write(f"{TARGET / 'index.html'}\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
