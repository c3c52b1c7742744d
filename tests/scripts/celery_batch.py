"""Runs a side of examples/celery_batch: `celery_batch.py worker|collect NAME=VALUE ... -- ...`.

The values are variables for it; the worker prints "ready" when it is, then how each task ended.
"""

# ruff: noqa: PLC0415 - an application reads the variables when it is imported

import os
import sys

side = sys.argv[1]
rest = sys.argv.index("--")
os.environ.update(setting.split("=", 1) for setting in sys.argv[2:rest])


def work():
    """Be a worker of two processes."""
    from celery import signals

    from examples.celery_batch.tasks import app

    def ready(**_):
        os.write(1, b"ready\n")

    def ended(state, **_):  # in the child
        os.write(1, f"{state}\n".encode())

    signals.worker_ready.connect(ready)
    signals.task_postrun.connect(ended)
    app.conf.worker_redirect_stdouts = False
    quick = ["--without-gossip", "--without-mingle", "--without-heartbeat"]
    arguments = ["worker", "--loglevel", "warning", *quick, *sys.argv[rest + 1 :]]
    app.worker_main(["--quiet", *arguments])


def collect():
    """Be the command."""
    from examples.celery_batch.__main__ import main

    sys.argv[1:] = sys.argv[rest + 1 :]
    sys.exit(main())


{"worker": work, "collect": collect}[side]()
