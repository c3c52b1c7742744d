"""Asks the questions of a file, many at once, and writes the answers in their order.

    python -m examples.celery_batch examples/celery_batch/questions.jsonl answers.jsonl

With `CELERY_BROKER_URL` the workers are yours (tasks.py says how they are started). Without it, it
starts a Redis and a worker of its own, and without `FLUXBASE_URL` a dev server.

After Ctrl-C the workers go on, and the same command collects what they have done, for a day.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
from pathlib import Path

from .alone import all_of_it


def main() -> int:
    """Do it; return the exit code: 1 when a question has no answer."""
    parser = argparse.ArgumentParser(prog="python -m examples.celery_batch")
    parser.add_argument("questions", type=Path, help="as `fluxbase-aichat batch` reads them")
    parser.add_argument("answers", type=Path, help="a new file, or that of an interrupted run")
    parser.add_argument("--chatbot", default="sql-assistant")
    parser.add_argument(
        "--patience",
        type=float,
        default=3600.0,
        metavar="SECONDS",
        help="how long it waits for a worker to begin with the next question",
    )
    options = parser.parse_args()
    # As Ctrl-C: what was started here must not be left running.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with contextlib.ExitStack() as stack:
            if not os.environ.get("CELERY_BROKER_URL"):
                stack.enter_context(all_of_it())
            return _run(options)
    except KeyboardInterrupt:
        return _interrupted()


def _run(options: argparse.Namespace) -> int:
    from .batch import run  # noqa: PLC0415 - it reads what was set just now

    chosen = {"chatbot": options.chatbot, "patience": options.patience}
    try:
        return 0 if run(options.questions, options.answers, **chosen) else 1
    except KeyboardInterrupt:
        # While Redis is still there: the results that are waited for take their leave of it.
        return _interrupted()


def _interrupted() -> int:
    print("interrupted; the same command goes on.", file=sys.stderr)
    return 130


if __name__ == "__main__":
    sys.exit(main())
