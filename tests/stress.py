"""The tests of races, again and again, with threads that change as often as they can.

    python -m tests.stress
    python -m tests.stress --times 100 -k test_q03

It runs pytest with itself as a plugin, a process a round.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

__all__ = ["RACES", "main", "pytest_configure"]

RACES = " or ".join(
    [
        # Those of FAULTS.md in which threads meet,
        *("test_c01_", "test_c08_", "test_c10_", "test_k12_"),
        *("test_q01_", "test_q02_", "test_q03_", "test_q04_", "test_q05_", "test_x02_"),
        # and all of these files.
        *("test_client.py", "test_machine.py"),
        *("test_pool.py", "test_pool_schedules.py", "test_many.py", "test_web.py"),
    ]
)
"""What pytest's `-k` selects."""


def pytest_configure() -> None:
    """Let another thread come between any two steps of one."""
    sys.setswitchinterval(1e-6)


def main(arguments: list[str] | None = None) -> int:
    """Run it from the command line; options that are not its own are pytest's."""
    parser = argparse.ArgumentParser(prog="python -m tests.stress", description=__doc__)
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("-k", default=RACES, metavar="EXPRESSION")
    options, further = parser.parse_known_args(arguments)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.stress", "-k", options.k]
    root = Path(__file__).parent.parent
    failed: list[int] = []
    began = time.monotonic()
    for number in range(1, options.times + 1):
        run = subprocess.run(  # noqa: S603 - this interpreter, and what the caller typed
            [*command, *further], cwd=root, capture_output=True, text=True, check=False
        )
        if run.returncode:
            failed.append(number)
            print(run.stdout, run.stderr, sep="\n")  # noqa: T201
        summary = run.stdout.strip().splitlines() or ["pytest said nothing"]
        print(f"round {number}: {summary[-1]}", flush=True)  # noqa: T201
    what = f"rounds {failed} failed" if failed else "all passed"
    print(f"{options.times} rounds in {time.monotonic() - began:.0f} s: {what}")  # noqa: T201
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
