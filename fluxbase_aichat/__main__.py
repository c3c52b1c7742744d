"""`python -m fluxbase_aichat`: the command line. All of it is in `cli`."""

from __future__ import annotations

import sys

from fluxbase_aichat.cli import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
