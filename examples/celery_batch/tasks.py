"""What a worker does: it asks one question, and says what came of it.

    export CELERY_BROKER_URL=redis://... FLUXBASE_URL=wss://...
    export FLUXBASE_EMAIL=... FLUXBASE_PASSWORD=...
    celery -A examples.celery_batch.tasks worker --concurrency 8 --loglevel warning

The password (or a token, in `FLUXBASE_TOKEN`) is in the workers' environment only. Each process
signs in by itself, so neither is ever in Redis or in a monitor. From the level `info` on, Celery
logs the answers.
"""

from __future__ import annotations

import os
from typing import Any, Final

from celery import Task
from celery.exceptions import Ignore
from celery.utils.log import get_task_logger

from fluxbase_aichat import ChatPool, FluxbaseChatError

from .answers import dump_error, dump_reply
from .app import ASK, SECONDS, app
from .claims import give_back, take
from .login import read_login

__all__ = ["ask"]

# `BATCH_TRIES`: how often a question is tried that cannot be sent.
_TRIES: Final = int(os.environ.get("BATCH_TRIES", "5"))
# `BATCH_DELAY`: seconds before the second try; each further one waits twice as long.
_DELAY: Final = float(os.environ.get("BATCH_DELAY", "2"))
# Well below the visibility timeout of app.py. Who is to come back later than this is told so.
_LONGEST_DELAY: Final = 900.0

_log = get_task_logger(__name__)
_url, _token = read_login()

# Made before the worker forks, it opens nothing: each child has a pool and a login of its own.
# Nothing is tried again in here: Celery does, and meanwhile the process answers others.
_pool = ChatPool(_url, reconnect_attempts=0, exact_numbers=True)


@app.task(name=ASK, bind=True, max_retries=_TRIES - 1)
def ask(self: Task[Any, Any], chatbot: str, question: str) -> str:
    """Ask; return the answer or its error, as `answers` writes them."""
    request = self.request
    if not take(request.id, f"{request.hostname}, process {os.getpid()}"):
        raise Ignore  # delivered twice: whoever was first answers
    try:
        with _pool.chat(user="celery_batch", token=_token) as chat:
            return dump_reply(chat.ask(chatbot, question, timeout=SECONDS))
    except FluxbaseChatError as error:
        delay = _delay(error, request.retries)
        if delay is None:
            _log.warning("%s: %s", type(error).__name__, " ".join(str(error).split()))
            # No exception: of one, JSON keeps the message and no attribute.
            return dump_error(error)
        give_back(request.id)
        raise self.retry(exc=error, countdown=delay) from error


def _delay(error: FluxbaseChatError, retries: int) -> float | None:
    """Return the seconds until another try; `None` where there is to be none."""
    # With `sent` None nobody knows, and an answer that is paid for twice is worse than an error.
    if not error.retryable or error.sent is not False or retries >= _TRIES - 1:
        return None
    delay = error.retry_after or _DELAY * 2.0**retries
    return delay if delay <= _LONGEST_DELAY else None
