"""Builds the documentation, with every warning an error.

python -m docs [FOLDER]

The folder is build/docs by default.
"""

from __future__ import annotations

import sys
from pathlib import Path

try:
    from sphinx.cmd.build import build_main
except ModuleNotFoundError:
    sys.exit("Sphinx is missing: pip install -U pip && pip install -e '.[demo]' --group docs")

SOURCE = Path(__file__).parent
TARGET = SOURCE.parent / "build" / "docs"


def main() -> int:
    """Build the pages and say where they are."""
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else TARGET
    # All anew: what a build before has warned of, Sphinx does not say again.
    options = ["-b", "html", "--fail-on-warning", "--keep-going", "--quiet", "--fresh-env"]
    code = build_main([*options, "--write-all", str(SOURCE), str(target)])
    if code == 0:
        sys.stdout.write(f"{target / 'index.html'}\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
