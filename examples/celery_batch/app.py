"""The Celery application: what the workers and whoever spreads the questions agree on.

It opens no connection, and knows no token.
"""

from __future__ import annotations

import os
from typing import Final

from celery import Celery

__all__ = ["ASK", "BROKER", "KEPT", "LONGEST", "SECONDS", "app"]

BROKER: Final = os.environ.get("CELERY_BROKER_URL") or "redis://127.0.0.1:6379/0"
"""Redis: it carries the questions and, for a day, the answers. So it is as secret as they are."""

ASK: Final = "celery_batch.ask"
"""The task's name: who spreads questions imports nothing of what answers them."""

SECONDS: Final = float(os.environ.get("BATCH_SECONDS", "180"))
"""`BATCH_SECONDS`: how long an answer may take. The library ends it then, with what has come."""

LONGEST: Final = SECONDS + 30
"""A process that has not come back by then hangs, and Celery kills it."""

KEPT: Final = 24 * 3600
"""Seconds for which a question waits for a worker, and an answer for who collects it."""

app = Celery("celery_batch", broker=BROKER, backend=BROKER)
app.conf.update(
    # JSON and nothing else: whoever can write to Redis could run code with pickles.
    accept_content=["json"],
    task_serializer="json",
    result_serializer="json",
    result_expires=KEPT,
    task_time_limit=LONGEST,
    # A question that was asked when its worker died is paid for, and may have been answered. It is
    # reported and not asked again, so it is taken off the queue before it is asked.
    task_acks_late=False,
    # An idle worker finds no question that a busy one has reserved for later.
    worker_prefetch_multiplier=1,
    # Redis gives a question to another worker when nobody has taken it off for so long. One that
    # waits to be tried again is such a question: tasks.py lets none wait that long.
    broker_transport_options={"visibility_timeout": 3600, "socket_connect_timeout": 10},
    redis_socket_connect_timeout=10,
    broker_connection_retry_on_startup=True,
    # Who collects answers is told soon that Redis is down.
    result_backend_transport_options={"retry_policy": {"max_retries": 5}},
)
