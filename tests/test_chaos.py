"""Twenty seconds of chaos; `python -m tests.chaos` runs it for longer."""

from __future__ import annotations

import os
import random

from chaos import Chaos

# Read here, because each test hides the variables that begin so.
SEED = os.environ.get("FLUXBASE_CHAOS_SEED")


def test_chaos() -> None:
    """Whatever breaks, the promises hold. The seed is printed, and can be given."""
    seed = int(SEED) if SEED else random.SystemRandom().randrange(10**6)
    print(f"FLUXBASE_CHAOS_SEED={seed}")  # noqa: T201 - shown when it fails
    wrong = Chaos(20.0, seed).run()
    assert not wrong, "\n".join(wrong)
